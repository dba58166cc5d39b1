"""Round a matrix onto a ggml type so that the errors of its columns answer one another.

First block by block: a block is encoded by ggml under the curvature that is left when all later columns
answer optimally, refined inside (``scalar``, ``codebook``), and its error moved onto the columns after it.
Then once more over all blocks, each given all others.
"""

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from coldpress.quantize.encode import Bytes, encode
from coldpress.quantize.rounding import codebook, scalar
from coldpress.quantize.rounding.factor import Factor, inverse_factor, invert_upper
from coldpress.quantize.rounding.grids import GRIDS
from coldpress.quantize.source import Floats
from coldpress.quantize.types import GgmlType


class Refine(Protocol):
    """Better bytes for one block of every row: (W, bytes, U) → (bytes, decoded)."""

    def __call__(
        self, W: Tensor, blocks: Tensor, U: Tensor, *, again: bool
    ) -> tuple[Tensor, Tensor]:
        """``again``: the bytes are refined already, for other targets."""


def compensate(W: Floats, kind: GgmlType, factor: Factor) -> Bytes:
    """Encode ``W``, weighing its errors by second moments.

    Args:
        W: weights, (rows, inputs); ``inputs`` a multiple of the type's block size; finite.
        factor: of the layer's input, (inputs, inputs).

    Returns:
        (rows, bytes of a row).

    Source: Frantar et al. 2022, arXiv:2210.17323, Algorithm 1, by blocks with ggml as the inner quantizer;
    the second pass: Nair and Suggala 2024, arXiv:2406.17542.
    """
    refine, weights = _refiner(kind), torch.from_numpy(np.array(W, np.float32))
    raw, E = feed_back(weights, kind, factor, refine)
    return settle(weights, raw, E, kind, factor, refine).numpy()


def feed_back(W: Tensor, kind: GgmlType, factor: Factor, refine: Refine) -> tuple[Tensor, Tensor]:
    """One pass over the blocks, left to right.

    Returns:
        bytes (rows, blocks, bytes of a block) and what they miss of the weights, (rows, inputs).
    """
    R, E, size = factor.R, torch.empty_like(W), kind.block_size
    raw = torch.empty(len(W), W.shape[1] // size, kind.block_bytes, dtype=torch.uint8)
    for block in range(raw.shape[1]):
        own, done = slice(block * size, (block + 1) * size), slice(0, block * size)
        U = invert_upper(R[own, own])
        target = W[:, own] + E[:, done] @ R[done, own] @ U
        importance = R[own, own].square().sum(1).numpy()  # What later columns cannot mend.
        begun = torch.from_numpy(encode(target.numpy(), kind, importance))
        raw[:, block], Q = refine(target, begun, U, again=False)
        E[:, own] = W[:, own] - Q
    return raw, E


def settle(
    W: Tensor, raw: Tensor, E: Tensor, kind: GgmlType, factor: Factor, refine: Refine
) -> Tensor:
    """Refine each block once more, given all others; no row's error rises. Returns (rows, bytes)."""
    R, size, raw = factor.R, kind.block_size, raw.clone()
    if raw.shape[1] > 1:
        P = E @ R  # The objective is the sum of P², a block's gradient P times its rows of R.
        for block in range(raw.shape[1]):
            own, rest = slice(block * size, (block + 1) * size), slice(block * size, None)
            S, panel = factor.curvature(own), R[own, rest]
            pull = (
                P[:, rest] @ panel.T - E[:, own] @ S
            )  # What the other columns' errors ask of these.
            target = W[:, own] + torch.linalg.solve(S, pull, left=False)
            before = raw[:, block].contiguous()
            raw[:, block], Q = refine(target, before, inverse_factor(S), again=True)
            new = W[:, own] - Q
            P[:, rest].addmm_(new - E[:, own], panel)
            E[:, own] = new
    return raw.view(len(W), -1)


def _refiner(kind: GgmlType) -> Refine:
    """Each type's own way to refine a block."""

    def by_scalar(W: Tensor, blocks: Tensor, U: Tensor, *, again: bool) -> tuple[Tensor, Tensor]:
        return scalar.refine(W, blocks, U, kind.name, walks=not again)

    def by_codebook(W: Tensor, blocks: Tensor, U: Tensor, *, again: bool) -> tuple[Tensor, Tensor]:
        return codebook.refine(W, blocks, U, kind)

    return by_scalar if kind.name in GRIDS else by_codebook
