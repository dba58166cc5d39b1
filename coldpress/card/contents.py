"""What is in a model's folder, from its files alone: a GGUF, or a GPTQ checkpoint's safetensors."""

import json
from collections import defaultdict
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal

from coldpress.errors import InputError

_GGUF, _SAFETENSORS, _RECORDS = "model.gguf", "model.safetensors", "tensors.json"
_PACKED = ("qzeros", "scales", "g_idx")


@dataclass(frozen=True)
class Kind:
    """All tensors of a type; ``n_weights`` counts the model's weights that they hold."""

    type: str
    n_tensors: int
    n_weights: int
    size_bytes: int


@dataclass(frozen=True)
class Contents:
    """A model's file.

    ``name`` and ``license`` are what the file itself says, None where it says nothing.
    ``bits_per_weight`` counts the tensors' bytes over every weight. ``n_compensated`` is None where no
    tensor's rounding was recorded.
    """

    file: str
    library: Literal["gguf", "transformers"]
    name: str | None
    license: str | None
    size_bytes: int
    n_weights: int
    bits_per_weight: float
    kinds: tuple[Kind, ...]
    n_compensated: int | None
    n_fallback: int


def read(folder: Path) -> Contents:
    """Read a folder that quantize, convert or checkpoint wrote, finished or not.

    Raises:
        InputError: it holds no model.
    """
    if (folder / _GGUF).is_file():
        return _gguf(folder)
    if (folder / _SAFETENSORS).is_file():
        return _gptq(folder / _SAFETENSORS)
    raise InputError(f"{folder} holds no model", "give a folder that quantize wrote")


def _gguf(folder: Path) -> Contents:
    from coldpress import inspect
    from coldpress.checkpoint import gguf_header

    inspected = inspect.inspect(folder)
    header = gguf_header.read(folder / _GGUF)
    known = {key: header.field(f"general.{key}") for key in ("name", "license")}
    said = {key: None if field is None else str(field.value()) for key, field in known.items()}
    records = folder / _RECORDS
    tensors = json.loads(records.read_bytes())["tensors"] if records.is_file() else []
    rounded = [each["rounding"] for each in tensors if each.get("rounding")]
    return Contents(
        file=_GGUF,
        library="gguf",
        name=said["name"],
        license=said["license"],
        size_bytes=inspected.size_bytes,
        n_weights=inspected.n_weights,
        bits_per_weight=inspected.bits_per_weight,
        kinds=tuple(
            Kind(each.type, each.n_tensors, each.n_weights, each.size_bytes)
            for each in inspected.types
        ),
        n_compensated=rounded.count("compensated") if rounded else None,
        n_fallback=sum(each.get("instead_of") is not None for each in tensors),
    )


def _gptq(path: Path) -> Contents:
    config = json.loads((path.parent / "config.json").read_bytes())
    bits = int(config["quantization_config"]["bits"])
    kinds = _kinds(_entries(path), bits)
    n_weights = sum(kind.n_weights for kind in kinds)
    return Contents(
        file=_SAFETENSORS,
        library="transformers",
        name=None,
        license=_license(path.with_name("README.md")),
        size_bytes=path.stat().st_size,
        n_weights=n_weights,
        bits_per_weight=8 * sum(kind.size_bytes for kind in kinds) / n_weights,
        kinds=kinds,
        n_compensated=None,
        n_fallback=0,
    )


def _license(card: Path) -> str | None:
    """The licence on the card that lies there, the original model's or ours."""
    from huggingface_hub import ModelCard

    try:
        license_ = ModelCard.load(card).data.get("license") if card.is_file() else None
    except ValueError:  # Front matter that is no YAML: a person's text, and no reason to stop.
        return None
    return license_ if isinstance(license_, str) else None


def _entries(path: Path) -> dict[str, Any]:
    """A safetensors header: 8 bytes of length, then JSON."""
    with path.open("rb") as stream:
        header: dict[str, Any] = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    header.pop("__metadata__", None)
    return header


def _kinds(entries: dict[str, Any], bits: int) -> tuple[Kind, ...]:
    """By type, the most bytes first; a layer's scales, zero points and order count to its codes."""
    sums: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    for name, entry in entries.items():
        part = name.rpartition(".")[2]
        packed = part == "qweight" or part in _PACKED
        total = sums[f"GPTQ {bits} bits" if packed else entry["dtype"]]
        begin, end = entry["data_offsets"]
        total[2] += end - begin
        if part not in _PACKED:
            count = prod(entry["shape"])
            total[0] += 1
            total[1] += count * 32 // bits if packed else count  # codes lie in int32
    kinds = (Kind(kind, *total) for kind, total in sums.items())
    return tuple(sorted(kinds, key=lambda kind: (-kind.size_bytes, kind.type)))
