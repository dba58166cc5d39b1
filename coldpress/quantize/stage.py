"""A bf16 GGUF → a quantized GGUF that stock llama.cpp loads, encoded by ggml itself."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, assert_never

from coldpress import artifact, libllama
from coldpress.errors import UsageError
from coldpress.progress import note
from coldpress.quantize.types import PRESET_PREFIX, TYPES, GgmlType, Preset, resolve

if TYPE_CHECKING:
    from coldpress.calibrate.imatrix import Imatrix
    from coldpress.quantize.measure import TensorRecord

_QUANTIZATION_VERSION = 2  # GGML_QNT_VERSION


@dataclass(frozen=True)
class QuantizeOptions:
    """What to quantize to.

    Args:
        type: a ggml type for every matrix, or one of llama.cpp's presets; see ``types``.
    """

    type: str = "Q4_K_M"

    def __post_init__(self) -> None:
        resolve(self.type)


@dataclass(frozen=True)
class Quantized:
    """The written file.

    ``bits_per_weight`` counts every tensor's bytes over every weight; ``n_fallback`` is the number
    of tensors whose rows the asked type's blocks do not divide, each listed in ``tensors.json``.
    """

    path: str
    type: str
    size_bytes: int
    bits_per_weight: float
    n_tensors: int
    n_fallback: int
    imatrix: bool


def plan(
    source: Path, out: Path, options: QuantizeOptions, *, imatrix: Path | None = None
) -> tuple[dict[str, Path], dict[str, object]]:
    """What a quantization depends on: (inputs, resolved options)."""
    inputs = {"source": source} | ({} if imatrix is None else {"imatrix": imatrix})
    resolved: dict[str, object] = {
        **asdict(options),
        "type": _canonical(resolve(options.type)),
        "encoder": f"llama-cpp-python {libllama.version()}",
    }
    return inputs, resolved


def quantize(
    source: Path, out: Path, options: QuantizeOptions, *, imatrix: Path | None = None
) -> Quantized:
    """Quantize a GGUF and write the artifact ``out`` with ``model.gguf`` and ``tensors.json``.

    Args:
        source: a GGUF file of F32, F16 or BF16 tensors, or an artifact that holds ``model.gguf``.
        imatrix: an ``imatrix.gguf`` or an artifact that holds one.

    Raises:
        InputError: the source is not a GGUF or already quantized; the imatrix is another model's.
        UsageError: the type needs an imatrix, or no type fits the model's rows.
    """
    from coldpress.quantize import importance
    from coldpress.quantize import source as sources

    kind = resolve(options.type)
    if kind.needs_imatrix and imatrix is None:
        raise UsageError(
            f"{_canonical(kind)} needs an imatrix; without one the model answers nonsense",
            "make one with `coldpress calibrate` and give it with --imatrix",
        )
    path = sources.gguf_path(source)
    reader = sources.open_unquantized(path)
    weights = None if imatrix is None else importance.read(imatrix, reader)
    inputs, resolved = plan(source, out, options, imatrix=imatrix)
    tools = {"llama-cpp-python": libllama.version()}
    with artifact.create(out, "quantize", inputs=inputs, options=resolved, tools=tools) as draft:
        gguf = draft.folder / "model.gguf"
        _write(path, reader, gguf, kind, weights)
        records = _measure(reader, gguf, kind, weights)
        _write_records(draft.folder / "tensors.json", records)
        size_bytes = gguf.stat().st_size
    fallbacks = [record for record in records if record.instead_of is not None]
    if fallbacks:
        note(
            f"  note: {len(fallbacks)} of {len(records)} tensors have rows that {_canonical(kind)} "
            f"does not divide and took {', '.join(sorted({each.type for each in fallbacks}))}"
        )
    stored = sum(record.size_bytes for record in records)
    return Quantized(
        path=str(out / "model.gguf"),
        type=_canonical(kind),
        size_bytes=size_bytes,
        bits_per_weight=8 * stored / sum(int(tensor.n_elements) for tensor in reader.tensors),
        n_tensors=len(records),
        n_fallback=len(fallbacks),
        imatrix=weights is not None,
    )


def _write(
    path: Path, reader: Any, gguf: Path, kind: GgmlType | Preset, weights: "Imatrix | None"
) -> None:
    """Write the file: a uniform type by our own encoder loop, a preset by libllama."""
    from coldpress.quantize import importance, presets, write
    from coldpress.quantize.encode import encode_tensor
    from coldpress.quantize.layout import uniform

    about = importance.metadata(weights)
    match kind:
        case Preset():
            presets.write(path, gguf, kind, weights, about)
        case GgmlType():
            metadata = {
                "general.file_type": kind.file_type,
                "general.quantization_version": _QUANTIZATION_VERSION,
                **about,
            }

            def encode(tensor: Any, wanted: GgmlType) -> Any:
                known = None if weights is None else weights.importance(tensor.name)
                return encode_tensor(tensor, wanted, known)

            write.write(reader, uniform(reader, kind), metadata, gguf, encode)
        case _:
            assert_never(kind)


def _measure(
    reader: Any, gguf: Path, kind: GgmlType | Preset, weights: "Imatrix | None"
) -> list["TensorRecord"]:
    """Read the written file back and compare it with the source, tensor by tensor."""
    from coldpress.quantize.measure import measure
    from coldpress.quantize.source import open_gguf

    asked = TYPES[kind.base] if isinstance(kind, Preset) else kind
    originals = {tensor.name: tensor for tensor in reader.tensors}
    return [
        measure(originals[tensor.name], tensor, weights, asked)
        for tensor in open_gguf(gguf).tensors
    ]


def _write_records(path: Path, records: Iterable["TensorRecord"]) -> None:
    text = json.dumps({"tensors": [asdict(record) for record in records]}, indent=1)
    path.write_text(text + "\n", encoding="utf-8")


def _canonical(kind: GgmlType | Preset) -> str:
    """The one spelling of a name: ``preset:`` only where a type has the same name."""
    ambiguous = isinstance(kind, Preset) and kind.name in TYPES
    return PRESET_PREFIX + kind.name if ambiguous else kind.name
