"""Blocks of the scalar types, taken apart and put together: scales, sub-scales, mins and codes.

A weight is ``d·scale·level[code] − dmin·min``. A block holds ``d`` and ``dmin`` once, in half precision, and
an integer scale and min per sub-block; the types of 32 weights have one sub-block whose scale is 1. Decoding
follows ggml's order of operations, so that it gives the bits of ggml's float32.

Source: ggml-common.h and ggml-quants.c of llama.cpp.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

IQ4_LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


@dataclass(frozen=True)
class Block:
    """The fields of (rows,) blocks of one type; integers are stored as float32.

    ``d`` and ``dmin`` are (rows, 1), ``scale`` and ``min`` (rows, sub-blocks), ``code`` (rows, weights).
    """

    d: Tensor
    dmin: Tensor
    scale: Tensor
    min: Tensor
    code: Tensor


@dataclass(frozen=True)
class Grid:
    """How a type stores a block.

    ``codes`` is the lowest and highest code, ``levels`` what they stand for if not themselves; ``scales`` and
    ``mins`` are the ranges of the integers per sub-block, (1, 1) where there is none to choose.
    """

    sub_block: int
    codes: tuple[int, int]
    scales: tuple[int, int]
    mins: tuple[int, int]
    has_min: bool
    unpack: Callable[[Tensor], Block]
    pack: Callable[[Block], Tensor]
    levels: tuple[int, ...] | None = None

    def level(self, code: Tensor) -> Tensor:
        """What a code stands for in units of its scale."""
        if self.levels is None:
            return code
        return torch.tensor(self.levels, dtype=code.dtype, device=code.device)[code.long()]

    def code(self, x: Tensor) -> Tensor:
        """The code whose level is nearest to ``x``; halves go to the even code."""
        if self.levels is None:
            return x.round().clamp_(*self.codes)
        levels = torch.tensor(self.levels, dtype=x.dtype, device=x.device)
        return torch.bucketize(x.contiguous(), (levels[1:] + levels[:-1]) / 2).to(x.dtype)

    def snap(self, x: Tensor) -> Tensor:
        """The level nearest to ``x``, which is used up."""
        if self.levels is None:
            return x.round_().clamp_(*self.codes)
        return self.level(self.code(x))

    def spread(self, per_sub_block: Tensor) -> Tensor:
        """A value per sub-block → per weight, (rows, sub-blocks) → (rows, weights)."""
        return per_sub_block.repeat_interleave(self.sub_block, dim=1)

    def decode(self, block: Block) -> Tensor:
        """The weights of blocks, (rows, weights), as ggml decodes them."""
        step = self.spread(block.d * block.scale)
        decoded = step * self.level(block.code)
        return decoded - self.spread(block.dmin * block.min) if self.has_min else decoded


def halves(values: Tensor) -> Tensor:
    """Round to half precision, kept as float32."""
    return values.clamp(-65504, 65504).half().float()


def _to_half(bytes_: Tensor) -> Tensor:
    return bytes_.contiguous().view(torch.float16).float()


def _from_half(values: Tensor) -> Tensor:
    return values.half().reshape(-1).view(torch.uint8).view(-1, 2)


def _planes(packed: Tensor, bits: int, run: int) -> Tensor:
    """Bytes whose lowest ``bits`` are ``run`` weights, the next the ``run`` after, …: (rows, weights)."""
    rows = packed.shape[0]
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device).view(1, 1, -1, 1)
    planes = (packed.view(rows, -1, 1, run) >> shifts) & ((1 << bits) - 1)
    return planes.reshape(rows, -1)


def _unplanes(codes: Tensor, bits: int, run: int) -> Tensor:
    """The inverse of ``_planes``."""
    rows, count = codes.shape[0], 8 // bits
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=codes.device).view(1, 1, -1, 1)
    planes = codes.to(torch.uint8).view(rows, -1, count, run) << shifts
    return planes.sum(2, dtype=torch.uint8).reshape(rows, -1)


def _none(d: Tensor, sub_blocks: int = 1) -> Tensor:
    return torch.zeros(len(d), sub_blocks, device=d.device)


def _one(d: Tensor) -> Tensor:
    return torch.ones(len(d), 1, device=d.device)


def _unpack_q2_k(raw: Tensor) -> Block:
    scales, codes = raw[:, :16], raw[:, 16:80]
    d, dmin = _to_half(raw[:, 80:82]), _to_half(raw[:, 82:84])
    return Block(
        d, dmin, (scales & 15).float(), (scales >> 4).float(), _planes(codes, 2, 32).float()
    )


def _pack_q2_k(block: Block) -> Tensor:
    scales = block.scale.to(torch.uint8) | (block.min.to(torch.uint8) << 4)
    parts = (scales, _unplanes(block.code, 2, 32), _from_half(block.d), _from_half(block.dmin))
    return torch.cat(parts, 1)


def _unpack_q3_k(raw: Tensor) -> Block:
    high, low, d = raw[:, :32], raw[:, 32:96], _to_half(raw[:, 108:110])
    fours = torch.cat([_planes(raw[:, 96:104], 4, 8)], 1)
    twos = _planes(raw[:, 104:108], 2, 4)
    scale = (fours | (twos << 4)).float() - 32
    code = _planes(low, 2, 32).float() + 4 * _planes(high, 1, 32).float() - 4
    return Block(d, _none(d), scale, _none(d, 16), code)


def _pack_q3_k(block: Block) -> Tensor:
    code, scale = (block.code + 4).to(torch.uint8), (block.scale + 32).to(torch.uint8)
    parts = (
        _unplanes(code >> 2, 1, 32),
        _unplanes(code & 3, 2, 32),
        _unplanes(scale & 15, 4, 8),
        _unplanes(scale >> 4, 2, 4),
        _from_half(block.d),
    )
    return torch.cat(parts, 1)


def _unpack_scales_mins(raw: Tensor) -> tuple[Tensor, Tensor]:
    """Q4_K's and Q5_K's twelve bytes → eight 6-bit scales and eight 6-bit mins."""
    a, b, c = raw[:, :4], raw[:, 4:8], raw[:, 8:12]
    scale = torch.cat([a & 63, (c & 15) | ((a >> 6) << 4)], 1)
    mins = torch.cat([b & 63, (c >> 4) | ((b >> 6) << 4)], 1)
    return scale.float(), mins.float()


def _pack_scales_mins(scale: Tensor, mins: Tensor) -> Tensor:
    s, m = scale.to(torch.uint8), mins.to(torch.uint8)
    a = s[:, :4] | ((s[:, 4:] >> 4) << 6)
    b = m[:, :4] | ((m[:, 4:] >> 4) << 6)
    c = (s[:, 4:] & 15) | ((m[:, 4:] & 15) << 4)
    return torch.cat([a, b, c], 1)


def _unpack_q4_k(raw: Tensor) -> Block:
    d, dmin = _to_half(raw[:, :2]), _to_half(raw[:, 2:4])
    return Block(d, dmin, *_unpack_scales_mins(raw[:, 4:16]), _planes(raw[:, 16:], 4, 32).float())


def _pack_q4_k(block: Block) -> Tensor:
    scales = _pack_scales_mins(block.scale, block.min)
    codes = _unplanes(block.code, 4, 32)
    return torch.cat([_from_half(block.d), _from_half(block.dmin), scales, codes], 1)


def _unpack_q5_k(raw: Tensor) -> Block:
    d, dmin = _to_half(raw[:, :2]), _to_half(raw[:, 2:4])
    code = _planes(raw[:, 48:], 4, 32) | (_planes(raw[:, 16:48], 1, 32) << 4)
    return Block(d, dmin, *_unpack_scales_mins(raw[:, 4:16]), code.float())


def _pack_q5_k(block: Block) -> Tensor:
    code = block.code.to(torch.uint8)
    parts = (
        _from_half(block.d),
        _from_half(block.dmin),
        _pack_scales_mins(block.scale, block.min),
        _unplanes(code >> 4, 1, 32),
        _unplanes(code & 15, 4, 32),
    )
    return torch.cat(parts, 1)


def _unpack_q6_k(raw: Tensor) -> Block:
    d = _to_half(raw[:, 208:210])
    scale = raw[:, 192:208].contiguous().view(torch.int8).float()
    code = _planes(raw[:, :128], 4, 64) | (_planes(raw[:, 128:192], 2, 32) << 4)
    return Block(d, _none(d), scale, _none(d, 16), code.float() - 32)


def _pack_q6_k(block: Block) -> Tensor:
    code = (block.code + 32).to(torch.uint8)
    scale = block.scale.to(torch.int8).contiguous().view(torch.uint8)
    parts = (_unplanes(code & 15, 4, 64), _unplanes(code >> 4, 2, 32), scale, _from_half(block.d))
    return torch.cat(parts, 1)


def _high_bits(raw: Tensor) -> Tensor:
    """Four bytes → 32 bits, (rows, 32)."""
    bits = torch.arange(8, dtype=torch.uint8, device=raw.device)
    return ((raw[:, :, None] >> bits) & 1).reshape(len(raw), 32)


def _from_high_bits(bits: Tensor) -> Tensor:
    shifts = torch.arange(8, dtype=torch.uint8, device=bits.device)
    return (bits.view(len(bits), 4, 8) << shifts).sum(2, dtype=torch.uint8)


def _unpack_q4_0(raw: Tensor) -> Block:
    d = _to_half(raw[:, :2])
    return Block(d, _none(d), _one(d), _none(d), _planes(raw[:, 2:], 4, 16).float() - 8)


def _pack_q4_0(block: Block) -> Tensor:
    return torch.cat([_from_half(block.d), _unplanes(block.code + 8, 4, 16)], 1)


def _unpack_q4_1(raw: Tensor) -> Block:
    d, dmin = _to_half(raw[:, :2]), -_to_half(raw[:, 2:4])
    return Block(d, dmin, _one(d), _one(d), _planes(raw[:, 4:], 4, 16).float())


def _pack_q4_1(block: Block) -> Tensor:
    return torch.cat(
        [_from_half(block.d), _from_half(-block.dmin), _unplanes(block.code, 4, 16)], 1
    )


def _unpack_q5_0(raw: Tensor) -> Block:
    d = _to_half(raw[:, :2])
    code = _planes(raw[:, 6:], 4, 16) | (_high_bits(raw[:, 2:6]) << 4)
    return Block(d, _none(d), _one(d), _none(d), code.float() - 16)


def _pack_q5_0(block: Block) -> Tensor:
    code = (block.code + 16).to(torch.uint8)
    return torch.cat(
        [_from_half(block.d), _from_high_bits(code >> 4), _unplanes(code & 15, 4, 16)], 1
    )


def _unpack_q5_1(raw: Tensor) -> Block:
    d, dmin = _to_half(raw[:, :2]), -_to_half(raw[:, 2:4])
    code = _planes(raw[:, 8:], 4, 16) | (_high_bits(raw[:, 4:8]) << 4)
    return Block(d, dmin, _one(d), _one(d), code.float())


def _pack_q5_1(block: Block) -> Tensor:
    code = block.code.to(torch.uint8)
    high, low = _from_high_bits(code >> 4), _unplanes(code & 15, 4, 16)
    return torch.cat([_from_half(block.d), _from_half(-block.dmin), high, low], 1)


def _unpack_q8_0(raw: Tensor) -> Block:
    d = _to_half(raw[:, :2])
    return Block(d, _none(d), _one(d), _none(d), raw[:, 2:].contiguous().view(torch.int8).float())


def _pack_q8_0(block: Block) -> Tensor:
    codes = block.code.to(torch.int8).contiguous().view(torch.uint8)
    return torch.cat([_from_half(block.d), codes], 1)


def _unpack_iq4_nl(raw: Tensor) -> Block:
    d = _to_half(raw[:, :2])
    return Block(d, _none(d), _one(d), _none(d), _planes(raw[:, 2:], 4, 16).float())


def _pack_iq4_nl(block: Block) -> Tensor:
    return torch.cat([_from_half(block.d), _unplanes(block.code, 4, 16)], 1)


def _unpack_iq4_xs(raw: Tensor) -> Block:
    d = _to_half(raw[:, :2])
    low, high = _planes(raw[:, 4:8], 4, 1), _planes(raw[:, 2:4], 2, 1)
    scale = (low | (high << 4)).float() - 32
    return Block(d, _none(d), scale, _none(d, 8), _planes(raw[:, 8:], 4, 16).float())


def _pack_iq4_xs(block: Block) -> Tensor:
    scale = (block.scale + 32).to(torch.uint8)
    low, high = _unplanes(scale & 15, 4, 1), _unplanes(scale >> 4, 2, 1)
    return torch.cat([_from_half(block.d), high, low, _unplanes(block.code, 4, 16)], 1)


_FIXED = (1, 1)
GRIDS = {
    "Q2_K": Grid(16, (0, 3), (0, 15), (0, 15), True, _unpack_q2_k, _pack_q2_k),
    "Q3_K": Grid(16, (-4, 3), (-32, 31), _FIXED, False, _unpack_q3_k, _pack_q3_k),
    "Q4_K": Grid(32, (0, 15), (0, 63), (0, 63), True, _unpack_q4_k, _pack_q4_k),
    "Q5_K": Grid(32, (0, 31), (0, 63), (0, 63), True, _unpack_q5_k, _pack_q5_k),
    "Q6_K": Grid(16, (-32, 31), (-128, 127), _FIXED, False, _unpack_q6_k, _pack_q6_k),
    "Q4_0": Grid(32, (-8, 7), _FIXED, _FIXED, False, _unpack_q4_0, _pack_q4_0),
    "Q4_1": Grid(32, (0, 15), _FIXED, _FIXED, True, _unpack_q4_1, _pack_q4_1),
    "Q5_0": Grid(32, (-16, 15), _FIXED, _FIXED, False, _unpack_q5_0, _pack_q5_0),
    "Q5_1": Grid(32, (0, 31), _FIXED, _FIXED, True, _unpack_q5_1, _pack_q5_1),
    "Q8_0": Grid(32, (-128, 127), _FIXED, _FIXED, False, _unpack_q8_0, _pack_q8_0),
    "IQ4_NL": Grid(32, (0, 15), _FIXED, _FIXED, False, _unpack_iq4_nl, _pack_iq4_nl, IQ4_LEVELS),
    "IQ4_XS": Grid(32, (0, 15), (-32, 31), _FIXED, False, _unpack_iq4_xs, _pack_iq4_xs, IQ4_LEVELS),
}
