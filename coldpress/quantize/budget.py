"""What a file may weigh: a size, bits per weight or a list of them, from words to bytes.

A budget is always in bytes of the whole file – header, padding, embeddings and head included – so
that what fits here fits there. Decimal units are powers of ten, binary ones powers of two.
"""

import math
import re
from collections.abc import Container
from decimal import Decimal
from typing import Any

from coldpress.errors import UsageError
from coldpress.quantize.layout import Metadata, predict_size

_UNITS = {"B": 1} | {
    f"{letter}{binary}B": (1024 if binary else 1000) ** power
    for power, letter in enumerate("KMGT", start=1)
    for binary in ("", "I")
}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Z]*)", re.IGNORECASE)
_SIZE_HINT = "a number with KB, MB, GB (powers of 1000) or KiB, MiB, GiB (1024): 1.9GB, 700MiB"
_BITS = (0.5, 32.0)


def parse_size(text: str) -> int:
    """Bytes of a size such as ``1.9GB``, ``700MiB`` or ``2100000``, rounded down.

    Raises:
        UsageError: not a size above zero.
    """
    match = _SIZE.fullmatch(text.strip())
    unit = _UNITS.get((match[2] or "B").upper()) if match else None
    size = int(Decimal(match[1]) * unit) if match and unit else 0
    if size <= 0:
        raise UsageError(f"{text!r} is not a size", _SIZE_HINT)
    return size


def parse_bits(text: str) -> float:
    """Bits per weight.

    Raises:
        UsageError: not a number that a file can have.
    """
    try:
        bits = float(text)
    except ValueError:
        bits = math.nan
    if not _BITS[0] <= bits <= _BITS[1]:
        raise UsageError(
            f"{text!r} is not a number of bits per weight", "a number from 0.5 to 32, such as 3.5"
        )
    return bits


def parse_sweep(text: str) -> tuple[float, ...]:
    """The bits per weight of a ladder, ``2.25,3,4``, smallest first and each once.

    Raises:
        UsageError: an entry is not a number of bits per weight.
    """
    return tuple(sorted({parse_bits(part) for part in text.split(",")}))


def format_size(size_bytes: int) -> str:
    """A size that ``parse_size`` reads back as no less, in decimal units with four digits or more."""
    for unit, letter in ((10**9, "GB"), (10**6, "MB"), (10**3, "KB")):
        if size_bytes >= unit:
            thousandths = -(-size_bytes * 1000 // unit)
            return f"{thousandths // 1000}.{thousandths % 1000:03d}{letter}"
    return f"{size_bytes}B"


def n_weights(reader: Any) -> int:
    """Every weight of a GGUF, those included that stay as they are."""
    return sum(int(tensor.n_elements) for tensor in reader.tensors)


def fixed_bytes(reader: Any, metadata: Metadata, choosable: Container[str]) -> int:
    """Bytes of the written file that no choice of types changes: header and copied tensors."""
    chosen = [tensor for tensor in reader.tensors if tensor.name in choosable]
    data = sum(padded(int(tensor.n_bytes), reader) for tensor in chosen)
    return predict_size(reader, {}, metadata) - data


def file_bytes(bits_per_weight: float, reader: Any, metadata: Metadata) -> int:
    """The largest file whose tensors have at most so many bits per weight.

    Counts as ``Quantized.bits_per_weight`` does, every tensor's bytes over every weight, and adds
    the header; padding between tensors is taken from the budget, so the bits are never exceeded.
    """
    data = sum(padded(int(tensor.n_bytes), reader) for tensor in reader.tensors)
    header = predict_size(reader, {}, metadata) - data
    return header + math.floor(bits_per_weight * n_weights(reader) / 8)


def padded(size_bytes: int, reader: Any) -> int:
    """Bytes that a tensor takes in the file, up to the next tensor's start."""
    alignment = int(reader.alignment)
    return -(-size_bytes // alignment) * alignment
