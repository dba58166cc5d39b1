"""GPTQ's packed integers: codes and zero points in 32-bit words, and the weights they stand for.

Along the packed axis, 32 codes of ``bits`` bits fill ``bits`` words as one stream from the lowest bit of the
first word on, so a 3-bit code may begin in one word and end in the next. ``qweight`` is packed along the
inputs, (in·bits/32, out); ``qzeros`` along the outputs, (groups, out·bits/32). The first format of the two,
"gptq", stores a zero point minus one; "gptq_v2" stores it as it is.

Source: AutoGPTQ 0.7 and GPTQModel 7.6, their ``pack`` and ``dequantize_weight``.
"""

import torch
from torch import Tensor

from coldpress.gptq.layout import V1

LANES = 32
_WORD = 0xFFFFFFFF


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack uint8 codes (n, m) along the first axis, n a multiple of 32 → int32 (n·bits/32, m)."""
    lanes = codes.view(-1, LANES, codes.shape[1])
    words = torch.zeros(len(lanes), bits, codes.shape[1], dtype=torch.int64)
    for lane in range(LANES):
        word, shift = divmod(lane * bits, 32)
        code = lanes[:, lane].to(torch.int64)
        words[:, word] |= (code << shift) & _WORD
        if shift + bits > 32:
            words[:, word + 1] |= code >> (32 - shift)
    return words.view(-1, codes.shape[1]).to(torch.int32)


def unpack(words: Tensor, bits: int) -> Tensor:
    """The inverse of ``pack``: int32 (n·bits/32, m) → uint8 codes (n, m)."""
    blocks = words.view(-1, bits, words.shape[1])
    codes = torch.empty(len(blocks), LANES, words.shape[1], dtype=torch.uint8)
    for lane in range(LANES):
        word, shift = divmod(lane * bits, 32)
        code = (blocks[:, word].to(torch.int64) & _WORD) >> shift
        if shift + bits > 32:
            code |= blocks[:, word + 1].to(torch.int64) << (32 - shift)
        codes[:, lane] = (code & (2**bits - 1)).to(torch.uint8)
    return codes.view(-1, words.shape[1])


def pack_zeros(zeros: Tensor, bits: int) -> Tensor:
    """Zero points (groups, out) of 1 … 2^bits − 1 → ``qzeros`` of the first format."""
    return pack((zeros - 1).T.contiguous(), bits).T.contiguous()


def unpack_zeros(qzeros: Tensor, bits: int, checkpoint_format: str) -> Tensor:
    """``qzeros`` → zero points (groups, out), uint8."""
    if checkpoint_format == V1 and LANES % bits == 0:
        # GPTQModel subtracts from whole words: a zero point of 0 borrows from its neighbour.
        qzeros = qzeros + sum(1 << shift for shift in range(0, 32, bits))
    zeros = unpack(qzeros.T.contiguous(), bits).T
    if checkpoint_format == V1 and LANES % bits != 0:
        zeros = (zeros + 1) & (2**bits - 1)
    return zeros


def dequantize(
    qweight: Tensor,
    qzeros: Tensor,
    scales: Tensor,
    g_idx: Tensor,
    bits: int,
    checkpoint_format: str,
) -> Tensor:
    """The float32 weights (out, in) of a layer.

    Args:
        qweight: int32 (in·bits/32, out).
        qzeros: int32 (groups, out·bits/32).
        scales: (groups, out).
        g_idx: the group of each input, (in,).
        checkpoint_format: ``layout.V1`` or ``V2``.
    """
    zeros = unpack_zeros(qzeros, bits, checkpoint_format).float()
    group = g_idx.long()
    W = unpack(qweight, bits).float()  # (in, out)
    return W.sub_(zeros[group]).mul_(scales.float()[group]).T.contiguous()
