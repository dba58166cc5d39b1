"""Text → what every linear layer is given: its input's second moments, and their diagonal."""

import ctypes
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from coldpress import artifact, shapes
from coldpress.errors import UsageError

_HELD_EVERY = 8


@dataclass(frozen=True)
class CalibrateOptions:
    """How much text to calibrate on.

    Args:
        context: tokens per sequence.
        max_tokens: tokens in all, from sequences spread evenly over the text.
    """

    context: int = 512
    max_tokens: int = 65536

    def __post_init__(self) -> None:
        if self.context < 2 or self.max_tokens < 2 * self.context:
            raise UsageError(
                f"context {self.context} and max_tokens {self.max_tokens} leave nothing to run",
                "context is 2 or more, max_tokens at least two contexts",
            )


@dataclass(frozen=True)
class Calibrated:
    """The artifact: how many layers it covers and how many tokens it is from."""

    path: str
    n_layers: int
    n_tokens: int
    n_sequences: int


def plan(
    model: Path, out: Path, options: CalibrateOptions, *, text: Path, against: Sequence[Path] = ()
) -> tuple[dict[str, Path], dict[str, object]]:
    """What a calibration depends on: (inputs, resolved options)."""
    others = {f"against {index}": path for index, path in enumerate(against)}
    return {"model": model, "text": text, **others}, asdict(options)


def calibrate(
    model: Path, out: Path, options: CalibrateOptions, *, text: Path, against: Sequence[Path] = ()
) -> Calibrated:
    """Run a model over text and write the artifact ``out``: an imatrix and second moments.

    The model is run in float32, one block at a time; see ``stream`` and, for the files,
    ``statistics``. ``imatrix.gguf`` is of every sequence, as llama-imatrix has it; the second
    moments leave an eighth of the sequences out, to judge with.

    Args:
        model: a Hugging Face model folder.
        text: plain text to calibrate on.
        against: texts, or folders of texts, that the result will be evaluated on.

    Raises:
        InputError: the text is missing, empty, binary, shorter than two contexts, or shares text
            with one of ``against``.
        NotAModelError: the folder is no model.
        CorruptModelError: a weight is missing or not finite, or leads to what is not.
        UnsupportedModelError: a weight has no GGUF name, or is multiplied out of sight.
    """
    from coldpress.calibrate import overlap
    from coldpress.calibrate import text as texts
    from coldpress.convert import checks, reference

    content = texts.read(text)
    sketch = overlap.sketch(content)
    for other in against:
        overlap.refuse(sketch, text, other)
    checks.read_config(model)
    checks.check_weights(model)
    tokens = texts.blocks(
        reference.load_tokenizer(model), content, options.context, options.max_tokens
    )
    inputs, resolved = plan(model, out, options, text=text, against=against)
    with artifact.create(out, "calibrate", inputs=inputs, options=resolved) as draft:
        overlap.write(draft.folder, sketch)
        n_layers = _collect(model, draft.folder, tokens, text.name)
    _give_back_memory()
    return Calibrated(
        path=str(out / "imatrix.gguf"),
        n_layers=n_layers,
        n_tokens=int(tokens.size),
        n_sequences=len(tokens),
    )


def _collect(model: Path, folder: Path, tokens: Any, dataset: str) -> int:
    """Write the files of the artifact; returns the number of weights that they cover."""
    from coldpress.convert import checks, reference

    network = reference.empty_model(model)
    # Not before: they import torch, and the reference prepares its threads first.
    from coldpress.calibrate import imatrix, kept, names, statistics, stream, weights

    shape = shapes.of(checks.read_config(model))
    places = kept.places(names.weights(network), shape)
    tensors_of: dict[str, list[str]] = {}  # Parameter → GGUF names.
    for name, parts in places.items():
        tensors_of.setdefault(parts[0].parameter, []).append(name)
    held = held_out(len(tokens))
    writer = statistics.Writer(folder, places)
    sums, counts = {}, {}
    source = weights.Weights(model, network)
    for found in stream.collect(network, source, list(tensors_of), tokens, held, folder):
        tensors = [name for parameter in found.parameters for name in tensors_of[parameter]]
        moments = kept.moments(found.moments, tensors[0], shape)
        writer.add(tensors, moments)
        for name in tensors:
            sums[name], counts[name] = moments.sums, moments.n_all
        del found  # Not kept while the next block is loaded.
    writer.finish(tokens, held)
    imatrix.write(
        folder / "imatrix.gguf",
        imatrix.from_moments(sums, counts, dataset, tokens.shape[1], len(tokens)),
    )
    return len(sums)


def _give_back_memory() -> None:
    """glibc keeps what many layers' activations took, and rounding needs it next."""
    with suppress(AttributeError):  # Another C library has no such function.
        ctypes.CDLL(None).malloc_trim(0)


def held_out(sequences: int) -> tuple[int, ...]:
    """Which sequences to hold out: every eighth, and at least the last."""
    return tuple(range(_HELD_EVERY - 1, sequences, _HELD_EVERY)) or (sequences - 1,)
