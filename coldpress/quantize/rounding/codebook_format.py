"""The vector-codebook types of ggml as tensors: a super-block's bytes ↔ its scales and values.

A weight is ``d × steps[level] × (value + shifts[level])``: ``d`` is one fp16 number per 256
weights, a run of 16 or 32 weights shares a 3- or 4-bit level, and values are entries of a fixed
grid, ``group`` weights each, with a sign per weight. Every product is exact in float32.

Source: ggml-common.h (block_iq*), dequantize_row_iq* in ggml-quants.c; the grids are gguf's.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Literal, NamedTuple

import gguf.quants
import torch
from torch import Tensor

OCTET = 8  # weights that share a byte of signs


@dataclass(frozen=True)
class Codes:
    """n super-blocks: ``d`` (n,) float32 and an fp16 number; ``level`` (n, runs) int64;
    ``values`` (n, 256) float32, grid entries with their signs.
    """

    d: Tensor
    level: Tensor
    values: Tensor


class Fields(NamedTuple):
    """What the bytes hold, all int64: ``d`` (n, 2) bytes, ``level`` (n, runs), ``entry``
    (n, groups) into the grid, ``signs`` (n, 32), bit i set where weight i of the octet is negative.
    """

    d: Tensor
    level: Tensor
    entry: Tensor
    signs: Tensor


@dataclass(frozen=True)
class Format:
    """A codebook type. ``signs``: any, an even number of minuses per octet, or none at all.

    ``read`` and ``write`` turn block bytes, int64 (n, block_bytes), into fields and back.
    """

    group: int
    run: int
    signs: Literal["free", "even", "none"]
    levels: int
    read: Callable[[Tensor], Fields]
    write: Callable[[Fields], Tensor]


@dataclass(frozen=True)
class Grid:
    """A type's constants on one device: ``entries`` (E, group); ``steps``, ``shifts`` (levels,);
    ``digits``, the sorted distinct numbers of the entries; ``keys`` (E,) sorted, ``order`` (E,).
    """

    entries: Tensor
    steps: Tensor
    shifts: Tensor
    digits: Tensor
    keys: Tensor
    order: Tensor


@cache
def grid(name: str, device: torch.device) -> Grid:
    """The constants of type ``name``."""
    source = getattr(gguf.quants, name)
    source.init_grid()
    entries = torch.tensor(source.grid.reshape(source.grid_shape), device=device)
    level = torch.arange(FORMATS[name].levels, device=device)
    shifts = torch.zeros(len(level), device=device)
    match name:
        case "IQ3_XXS":
            steps = (level + 0.5) * 0.5
        case "IQ3_S" | "IQ1_M":
            steps = level * 2 + 1.0
        case "IQ1_S":  # the shift's sign is the level's lowest bit, so that near levels are alike
            steps = level // 2 * 2 + 1.0
            shifts = source.delta * (1.0 - level % 2 * 2)
        case _:
            steps = (level + 0.5) * 0.25
    if name == "IQ1_M":  # the shift's sign is the entry's highest bit
        entries = torch.cat([entries + source.delta, entries - source.delta])
    digits = torch.tensor(sorted(set(entries.flatten().tolist())), device=device)
    keys, order = _key(entries, digits).sort()
    return Grid(entries, steps, shifts, digits, keys, order)


def unpack(blocks: Tensor, name: str) -> Codes:
    """Read block bytes, uint8 (n, block_bytes)."""
    kind, constants = FORMATS[name], grid(name, blocks.device)
    fields = kind.read(blocks.long())
    values = constants.entries[fields.entry].flatten(1)
    if kind.signs != "none":
        values = values * (1 - 2 * _split(fields.signs, 1, 8))
    d = fields.d.to(torch.uint8).view(torch.float16)[:, 0].float()
    return Codes(d, fields.level, values)


def pack(codes: Codes, name: str) -> Tensor:
    """Write block bytes, uint8 (n, block_bytes); every value must be one that the type has."""
    kind, constants = FORMATS[name], grid(name, codes.d.device)
    entries = codes.values if kind.signs == "none" else codes.values.abs()
    key = _key(torch.unflatten(entries, 1, (-1, kind.group)), constants.digits)
    entry = constants.order[torch.searchsorted(constants.keys, key)]
    d = codes.d.half()[:, None].view(torch.uint8).long()
    signs = _join((codes.values < 0).long(), 1, 8)
    return kind.write(Fields(d, codes.level, entry, signs)).to(torch.uint8)


def scales(d: Tensor, level: Tensor, name: str) -> Tensor:
    """``d × steps[level]``; the two broadcast."""
    return d * grid(name, level.device).steps[level]


def weights(d: Tensor, level: Tensor, values: Tensor, name: str) -> Tensor:
    """``d × steps[level] × (values + shifts[level])``; the three broadcast."""
    return scales(d, level, name) * (values + grid(name, level.device).shifts[level])


def decode(codes: Codes, name: str) -> Tensor:
    """The weights, (n, 256) float32, bit for bit those of ggml."""
    values = torch.unflatten(codes.values, 1, (-1, FORMATS[name].run))
    return weights(codes.d[:, None, None], codes.level[..., None], values, name).flatten(1)


def _key(entries: Tensor, digits: Tensor) -> Tensor:
    """One int64 per entry, (..., group) → (...): its numbers' places among the ≤ 8 ``digits``."""
    place = torch.searchsorted(digits, entries.contiguous())
    return (place << 3 * torch.arange(entries.shape[-1], device=entries.device)).sum(-1)


def _split(words: Tensor, width: int, count: int) -> Tensor:
    """``count`` fields of ``width`` bits of each word, lowest first: (n, w) → (n, w·count)."""
    shift = width * torch.arange(count, device=words.device)
    return (words[..., None] >> shift & (1 << width) - 1).flatten(1)


def _join(fields: Tensor, width: int, count: int) -> Tensor:
    """The inverse of ``_split``: (n, w·count) → (n, w)."""
    shift = width * torch.arange(count, device=fields.device)
    return (torch.unflatten(fields, 1, (-1, count)) << shift).sum(-1)


def _even(signs: Tensor) -> Tensor:
    """Seven signs → eight, the last such that the number of minuses is even."""
    minuses = torch.unflatten(_split(signs, 1, 7), 1, (-1, 7)).sum(-1)
    return signs | (minuses & 1) << 7


def _read_iq2_xxs(b: Tensor) -> Fields:
    words = _join(b[:, 2:], 8, 4)
    entry, high = words[:, ::2], words[:, 1::2]
    return Fields(b[:, :2], high >> 28, _split(entry, 8, 4), _even(_split(high, 7, 4)))


def _write_iq2_xxs(f: Fields) -> Tensor:
    high = _join(f.signs & 127, 7, 4) | f.level << 28
    words = torch.stack([_join(f.entry, 8, 4), high], 2).flatten(1)
    return torch.cat([f.d, _split(words, 8, 4)], 1)


def _read_iq2_xs(b: Tensor) -> Fields:
    words = _join(b[:, 2:66], 8, 2)
    return Fields(b[:, :2], _split(b[:, 66:], 4, 2), words & 511, _even(words >> 9))


def _write_iq2_xs(f: Fields) -> Tensor:
    words = f.entry | (f.signs & 127) << 9
    return torch.cat([f.d, _split(words, 8, 2), _join(f.level, 4, 2)], 1)


def _read_iq2_s(b: Tensor) -> Fields:
    entry = b[:, 2:34] | _split(b[:, 66:74], 2, 4) << 8
    return Fields(b[:, :2], _split(b[:, 74:], 4, 2), entry, b[:, 34:66])


def _write_iq2_s(f: Fields) -> Tensor:
    high, level = _join(f.entry >> 8, 2, 4), _join(f.level, 4, 2)
    return torch.cat([f.d, f.entry & 255, f.signs, high, level], 1)


def _read_iq3_xxs(b: Tensor) -> Fields:
    words = _join(b[:, 66:], 8, 4)
    return Fields(b[:, :2], words >> 28, b[:, 2:66], _even(_split(words, 7, 4)))


def _write_iq3_xxs(f: Fields) -> Tensor:
    words = _join(f.signs & 127, 7, 4) | f.level << 28
    return torch.cat([f.d, f.entry, _split(words, 8, 4)], 1)


def _read_iq3_s(b: Tensor) -> Fields:
    entry = b[:, 2:66] | _split(b[:, 66:74], 1, 8) << 8
    return Fields(b[:, :2], _split(b[:, 106:], 4, 2), entry, b[:, 74:106])


def _write_iq3_s(f: Fields) -> Tensor:
    high, level = _join(f.entry >> 8, 1, 8), _join(f.level, 4, 2)
    return torch.cat([f.d, f.entry & 255, high, f.signs, level], 1)


def _read_iq1_s(b: Tensor) -> Fields:
    words = _join(b[:, 34:], 8, 2)
    entry = b[:, 2:34] | _split(words, 3, 4) << 8
    return Fields(b[:, :2], (words >> 12 & 7) << 1 | words >> 15, entry, entry[:, :0])


def _write_iq1_s(f: Fields) -> Tensor:
    words = _join(f.entry >> 8, 3, 4) | f.level >> 1 << 12 | (f.level & 1) << 15
    return torch.cat([f.d, f.entry & 255, _split(words, 8, 2)], 1)


def _read_iq1_m(b: Tensor) -> Fields:
    words = _join(b[:, 48:], 8, 2)
    entry = b[:, :32] | _split(b[:, 32:48], 4, 2) << 8
    d = _split(_join(words >> 12, 4, 4), 8, 2)
    return Fields(d, _split(words, 3, 4), entry, entry[:, :0])


def _write_iq1_m(f: Fields) -> Tensor:
    words = _join(f.level, 3, 4) | _split(_join(f.d, 8, 2), 4, 4) << 12
    return torch.cat([f.entry & 255, _join(f.entry >> 8, 4, 2), _split(words, 8, 2)], 1)


FORMATS = {
    "IQ3_S": Format(4, 32, "free", 16, _read_iq3_s, _write_iq3_s),
    "IQ3_XXS": Format(4, 32, "even", 16, _read_iq3_xxs, _write_iq3_xxs),
    "IQ2_S": Format(8, 16, "free", 16, _read_iq2_s, _write_iq2_s),
    "IQ2_XS": Format(8, 16, "even", 16, _read_iq2_xs, _write_iq2_xs),
    "IQ2_XXS": Format(8, 32, "even", 16, _read_iq2_xxs, _write_iq2_xxs),
    "IQ1_M": Format(8, 16, "none", 8, _read_iq1_m, _write_iq1_m),
    "IQ1_S": Format(8, 32, "none", 16, _read_iq1_s, _write_iq1_s),
}
