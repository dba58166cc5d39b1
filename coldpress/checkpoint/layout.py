"""The order in which llama.cpp touches tensors for a token, and their places in a file.

A file read from front to back then delivers the weights in the order in which they are needed.
"""

import re
from collections.abc import Iterable
from dataclasses import replace

from coldpress.checkpoint.gguf_header import Tensor, pad

_BLOCK = re.compile(r"(enc\.|dec\.)?blk\.(\d+)\.(.+)")
# By prefix of the name inside a block; a name that is not here follows, in its old order.
_IN_BLOCK = (
    "attn_norm",
    "attn_qkv",
    "attn_q.",
    "attn_q_",
    "attn_k.",
    "attn_k_",
    "attn_v",
    "attn_output",
    "attn_post_norm",
    "post_attention_norm",
    "ffn_norm",
    "ffn_gate_inp",
    "ffn_gate",
    "ffn_up",
    "ffn_down",
    "post_ffw_norm",
)
_BEFORE, _ENCODER, _ENCODER_END, _BLOCKS, _OUTPUT_NORM, _OUTPUT = range(6)


def execution_order(tensors: Iterable[Tensor]) -> tuple[Tensor, ...]:
    """Sort tensors: embeddings, blocks by number, output norm, output; stable beyond that."""
    return tuple(sorted(tensors, key=lambda tensor: _rank(tensor.name)))


def place(tensors: Iterable[Tensor], alignment: int) -> tuple[Tensor, ...]:
    """Give tensors consecutive offsets, each a multiple of ``alignment``."""
    placed, end = [], 0
    for tensor in tensors:
        placed.append(replace(tensor, offset=end))
        end = pad(end + tensor.size_bytes, alignment)
    return tuple(placed)


def _rank(name: str) -> tuple[int, int, int]:
    if found := _BLOCK.fullmatch(name):
        half, number, role = found.groups()
        section = _ENCODER if half == "enc." else _BLOCKS
        return section, int(number), _role_rank(role)
    if name.startswith("enc."):
        return _ENCODER_END, 0, 0
    plain = name.removeprefix("dec.")
    if plain.startswith("output_norm"):
        return _OUTPUT_NORM, 0, 0
    if plain.startswith("output"):
        return _OUTPUT, 0, 0
    # token_embd first, then what goes with it: its norm, positions, rope factors.
    return _BEFORE, 0 if name.startswith("token_embd.") else 1, 0


def _role_rank(role: str) -> int:
    ranks = (rank for rank, prefix in enumerate(_IN_BLOCK) if role.startswith(prefix))
    return next(ranks, len(_IN_BLOCK))
