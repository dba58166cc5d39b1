"""GPTQ: round a layer's weights column by column, moving each error onto the columns not yet rounded.

With H = E[x xᵀ] of the layer's input, the loss of rounding W to Q is tr((W − Q) H (W − Q)ᵀ). Algorithm 1
of the paper rounds column i and moves (w_i − q_i)/U_ii · U_ij onto the columns j > i, where U is the upper
Cholesky factor of H⁻¹, by its inverse R: see ``quantize.rounding.factor``.

Source: Frantar et al. 2022, arXiv:2210.17323, Algorithm 1.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from coldpress.quantize.rounding.factor import Factor, factor, invert_upper

_BLOCK = 128
_MIN_SCALE = 2.0**-24  # The smallest half: scales are stored so.
_SHRINKS = 24
_LEAST_SHRINK = 0.3


class Rounded(NamedTuple):
    """A layer on its grid: weight (o, i) is ``scales[g, o]·(codes[o, i] − zeros[g, o])``, g = ``g_idx[i]``.

    ``codes`` are uint8 (out, in), ``scales`` float32 (groups, out) that a half holds exactly, ``zeros``
    uint8 (groups, out) of at least 1; ``damp`` is what the factorisation needed, the asked or more.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor
    g_idx: Tensor
    damp: float

    def weights(self) -> Tensor:
        """The weights that the codes stand for, float32 (out, in)."""
        group = self.g_idx.long()
        return self.scales[group].T * (self.codes - self.zeros.float()[group].T)


class Prepared(NamedTuple):
    """The order in which columns are rounded, and the factor of H in that order."""

    order: Tensor
    factor: Factor


def quantize_matrix(
    W: Tensor,
    H: Tensor,
    bits: int,
    group_size: int = 128,
    act_order: bool = True,
    damp: float = 0.01,
    search: bool = True,
) -> Rounded:
    """Round ``W`` onto an integer grid per group of columns, with error feedback.

    Args:
        W: weights, (out, in), finite.
        H: second moments of the layer's input, E[x xᵀ], (in, in), symmetric, finite.
        group_size: columns, in the order of rounding, that share a scale; the last group may be shorter.
        act_order: round columns in the order of falling diag(H).
        damp: share of the mean of diag(H) to add to it; ten times more while H is not positive.
        search: search each group's scale; without, it spans min to max as in the paper.

    Raises:
        InputError: H is not finite, or not positive however it is damped.
    """
    return quantize_factored(W, prepare(H, act_order, damp), bits, group_size, search)


def prepare(H: Tensor, act_order: bool, damp: float) -> Prepared:
    """What rounding needs of H, which may be let go then; see ``quantize_matrix``."""
    order = torch.argsort(H.diagonal(), descending=True) if act_order else torch.arange(len(H))
    return Prepared(order, factor(H, damp, order))


def quantize_factored(
    W: Tensor, prepared: Prepared, bits: int, group_size: int, search: bool
) -> Rounded:
    """``quantize_matrix`` from there on."""
    order, its = prepared
    columns = W.T[order].float()  # (in, out): a column's weights lie together in memory
    codes, scales, zeros = _walk(columns, its.R, bits, group_size, _SHRINKS if search else 1)
    back = torch.argsort(order)
    return Rounded(codes[back].T.contiguous(), scales, zeros, (back // group_size).int(), its.damp)


def _walk(
    W: Tensor, R: Tensor, bits: int, group_size: int, shrinks: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Round the columns of (in, out) in order: codes (in, out), scales and zero points (groups, out)."""
    E = torch.empty_like(W)  # W − Q of the columns rounded
    codes = torch.empty(W.shape, dtype=torch.uint8)
    scales, zeros = [], []
    for first in range(0, len(W), group_size):
        last = min(first + group_size, len(W))
        group = _fed(W, E, R, first, last)
        scale, zero = _grid(group, R.diagonal()[first:last].square(), bits, shrinks)
        scales.append(scale)
        zeros.append(zero)
        for start in range(first, last, _BLOCK):
            end = min(start + _BLOCK, last)
            block = group[:_BLOCK] if start == first else _fed(W, E, R, start, end)
            U = invert_upper(R[start:end, start:end])
            codes[start:end] = _round_block(block, U, scale, zero, bits)
            E[start:end] = W[start:end] - scale * (codes[start:end] - zero)
    return codes, torch.stack(scales), torch.stack(zeros).to(torch.uint8)


def _fed(W: Tensor, E: Tensor, R: Tensor, start: int, end: int) -> Tensor:
    """Columns ``start`` to ``end`` with the errors of all columns before them moved onto them."""
    if start == 0:
        return W[:end].clone()
    moved = R[:start, start:end].T @ E[:start]
    return torch.addmm(W[start:end], invert_upper(R[start:end, start:end]).T, moved)


def _round_block(W: Tensor, U: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    """Algorithm 1's inner loop on a block (columns, out); ``W`` is consumed."""
    codes = torch.empty(W.shape, dtype=torch.uint8)
    for i in range(len(W)):
        code = (W[i] / scale).round_().add_(zero).clamp_(0, 2**bits - 1)
        codes[i] = code
        error = (W[i] - scale * (code - zero)) / U[i, i]
        W[i + 1 :].addr_(U[i, i + 1 :], error, alpha=-1)
    return codes


def _grid(W: Tensor, importance: Tensor, bits: int, shrinks: int) -> tuple[Tensor, Tensor]:
    """The scale and zero point, (out,) each, of a group (columns, out).

    The range from min to max, widened to hold 0, is shrunk in ``shrinks`` steps; the one with the least
    error, weighted per column, is kept. A zero point is at least 1: stored minus one, 0 would wrap.
    """
    top = 2**bits - 1
    low, high = W.amin(0).clamp_(max=0), W.amax(0).clamp_(min=0)
    best = torch.full_like(low, torch.inf)
    scale, zero = torch.ones_like(low), torch.ones_like(low)
    for shrink in torch.linspace(1, _LEAST_SHRINK, shrinks).tolist():
        step = ((high - low) * (shrink / top)).half().float().clamp_(min=_MIN_SCALE)
        point = (-shrink * low / step).round_().clamp_(1, top)
        code = (W / step).round_().add_(point).clamp_(0, top)
        loss = importance @ code.sub_(point).mul_(step).sub_(W).square_()
        better = loss < best
        best = torch.where(better, loss, best)
        scale, zero = torch.where(better, step, scale), torch.where(better, point, zero)
    return scale, zero
