"""Read a safetensors file's header with the standard library alone, as strictly as its own reader.

Source: huggingface/safetensors, README (format) and safetensors/src/tensor.rs (what it refuses).
"""

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coldpress.errors import InputError

_MAX_HEADER_BYTES = 100_000_000
_MAX_SIZE = 1 << 62
_MAX_DIMS = 64
_HINT = "give a file that safetensors wrote, or fetch it again"
BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E8M0", "F8_E4M3", "F8_E5M2"), 8),
    **dict.fromkeys(("F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
"""Bits per value of each dtype."""


@dataclass(frozen=True)
class Tensor:
    """One tensor: ``shape`` has the row length last, ``start`` and ``end`` count from the data."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """Everything before the data, which starts at byte ``data_offset``; tensors in order of place."""

    tensors: tuple[Tensor, ...]
    data_offset: int
    data_bytes: int


def read(path: Path) -> Header:
    """Read a file's header and check that the tensors are exactly the rest of the file.

    Raises:
        InputError: not a safetensors file, or it is truncated.
    """
    try:
        with path.open("rb") as stream:
            raw = stream.read(8)
            length = struct.unpack("<Q", raw)[0] if len(raw) == 8 else 0
            raw += stream.read(min(length, _MAX_HEADER_BYTES))
            size = stream.seek(0, 2)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}", "check the path") from error
    header = parse(raw, str(path))
    end = header.data_offset + header.data_bytes
    if size != end:
        raise _bad(path, f"it has {size} bytes, its header says {end}")
    return header


def parse(raw: bytes, where: str = "header") -> Header:
    """Decode the header at the start of ``raw``.

    Raises:
        InputError: see ``read``.
    """
    if len(raw) < 8:
        raise _bad(where, "it ends inside its header")
    length = struct.unpack("<Q", raw[:8])[0]
    if not 2 <= length <= _MAX_HEADER_BYTES:
        raise _bad(where, f"its header has {length} bytes")
    text = raw[8 : 8 + length]
    if len(text) < length:
        raise _bad(where, "it ends inside its header")
    if text[:1] != b"{":
        raise _bad(where, "its header does not start with {")
    try:
        entries = json.loads(text.decode(), object_pairs_hook=_unique)
        metadata = entries.pop("__metadata__", {})
        if not all(isinstance(value, str) for value in metadata.values()):
            raise TypeError("its metadata is not text")
        tensors = sorted(
            (_tensor(name, entry) for name, entry in entries.items()),
            key=lambda tensor: (tensor.start, tensor.end),
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _bad(where, str(error)[:200]) from error
    end = 0
    for tensor in tensors:
        if tensor.start != end:
            raise _bad(where, f"{tensor.name} starts at {tensor.start}, expected {end}")
        end = tensor.end
    return Header(tuple(tensors), 8 + length, end)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _tensor(name: str, entry: Any) -> Tensor:
    name.encode()  # half a surrogate pair is no name
    if entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name} has the wrong keys")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise ValueError(f"{name} has unknown dtype {str(dtype)[:20]!r}")
    if not isinstance(shape, list) or len(shape) > _MAX_DIMS:
        raise ValueError(f"{name} has no shape")
    if not isinstance(offsets, list) or len(offsets) != 2:
        raise ValueError(f"{name} has no place")
    if not all(type(number) is int and 0 <= number <= _MAX_SIZE for number in (*shape, *offsets)):
        raise ValueError(f"{name} has a shape or place that is no size")
    start, end = offsets
    # The factors are bounded one by one: a zero must not hide an absurd dimension.
    if math.prod(max(dim, 1) for dim in shape) > _MAX_SIZE:
        raise ValueError(f"{name} has an impossible shape")
    if 8 * (end - start) != math.prod(shape) * BITS[dtype]:
        raise ValueError(f"{name} has {end - start} bytes, not those of its shape")
    return Tensor(name, dtype, tuple(shape), start, end)


def _bad(where: object, what: str) -> InputError:
    return InputError(f"{where} is not a readable safetensors file: {what}", _HINT)
