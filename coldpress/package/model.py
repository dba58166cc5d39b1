"""What a package says of the model in it, from the checkpoint's own header and index."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coldpress import artifact
from coldpress import memory as account
from coldpress.errors import InputError
from coldpress.memory import Memory
from coldpress.platforms import Target, table

_INDEX = "model.index.json"


@dataclass(frozen=True)
class Metric:
    """A figure that an evaluation has measured, by the name that people know it by."""

    name: str
    value: float
    stderr: float | None = None


@dataclass(frozen=True)
class Facts:
    """A model: ``fields`` is its GGUF metadata, ``files`` file → sha256; ``license`` may be empty.

    ``quantization`` is the type that most of its bytes have; ``metrics`` are of an evaluation near it.
    """

    name: str
    root_sha256: str
    size_bytes: int
    architecture: str
    license: str
    files: Mapping[str, str]
    fields: Mapping[str, Any]
    quantization: str = ""
    metrics: tuple[Metric, ...] = ()


def read(checkpoint: Path, root_sha256: str, evaluation: Path | None = None) -> Facts:
    """Read a verified checkpoint's facts, and what an evaluation's folder says of it."""
    from coldpress.checkpoint import index, source

    model = source.read(checkpoint)
    fields = {field.key: field.value() for field in model.fields}
    sizes: Counter[str] = Counter()
    for tensor in model.tensors:
        sizes[tensor.type] += tensor.size_bytes
    listed = index.read(checkpoint / _INDEX).files
    return Facts(
        name=_printable(fields.get("general.name")) or "a model",
        root_sha256=root_sha256,
        size_bytes=sum(file.size_bytes for file in listed),
        architecture=_printable(fields.get("general.architecture")),
        license=_printable(fields.get("general.license")),
        files={file.name: file.sha256 for file in listed},
        fields=fields,
        quantization=sizes.most_common(1)[0][0],
        metrics=() if evaluation is None else _metrics(evaluation),
    )


def evaluation_of(checkpoint: Path) -> Path | None:
    """The folder of an evaluation of what a checkpoint holds, where a run or a person put it.

    It is found by the digests that manifests name: beside the checkpoint and one folder above and below.
    """
    own = _manifest(checkpoint)
    if own is None:
        return None
    roots = (checkpoint.absolute().parent, checkpoint.absolute().parent.parent)
    near = {path.parent for root in roots for path in root.glob(f"*/{artifact.MANIFEST}")}
    near |= {path.parent for path in roots[0].glob(f"*/*/{artifact.MANIFEST}")}
    known = {folder: found for folder in sorted(near) if (found := _manifest(folder))}
    wanted = {own.inputs.get("gguf", ""), *_names(own)}
    for found in known.values():
        names = _names(found)
        wanted |= names if names & wanted else set()
    measured = (
        folder
        for folder, found in known.items()
        if found.stage == "evaluate" and found.inputs.get("gguf") in wanted
    )
    return next(measured, None)


def _names(found: artifact.Manifest) -> set[str]:
    """The digests by which later stages name an artifact: its own, or its GGUF's."""
    return {found.digest} | {file.sha256 for file in found.files if file.name == "model.gguf"}


def _manifest(folder: Path) -> artifact.Manifest | None:
    try:
        return artifact.read(folder)
    except (InputError, OSError):
        return None


def _metrics(folder: Path) -> tuple[Metric, ...]:
    from coldpress.evaluate import result

    found = result.read(folder)
    metrics = [
        Metric(f"accuracy, by {scoring}", each.accuracy, each.stderr)
        for scoring, each in found.questions.items()
    ]
    if found.kl is not None:
        metrics.append(Metric("KL divergence from the base model, nats per token", found.kl.mean))
    if found.perplexity is not None:
        metrics.append(Metric("perplexity", found.perplexity.value, found.perplexity.stderr))
    return tuple(metrics)


def memory(facts: Facts, target: Target) -> Memory:
    """What an instance needs beside the weights, served as the image starts it."""
    shape = account.Shape.read(facts.fields)
    return account.account(shape, None, table().targets[target].parallel)


def _printable(text: object) -> str:
    """It goes into YAML and Markdown: letters, digits and a few signs only."""
    return "".join(sign for sign in str(text or "") if sign.isalnum() or sign in " ._-").strip()
