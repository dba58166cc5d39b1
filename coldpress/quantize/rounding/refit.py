"""Fit the scales of blocks to given codes: least squares under the curvature S, then onto their own grids.

Column-major like ``walk``: weights are (weights, rows), scales (sub-blocks, rows), ``d`` and ``dmin`` (1, rows).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from coldpress.quantize.rounding.grids import Grid, halves

_RIDGE = 1e-6


@dataclass(frozen=True)
class Normal:
    """The least-squares problem of a block's steps and offsets: ‖w − B x‖² under S, M x = t.

    B's columns hold the levels of a sub-block each, then −1 in a sub-block each where the type has mins:
    M = BᵀSB, (rows, unknowns, unknowns); t = BᵀSw, (rows, unknowns).
    """

    M: Tensor
    t: Tensor


def normal(SW: Tensor, S: Tensor, level: Tensor, grid: Grid) -> Normal:
    """The problem for given levels; ``SW`` is S @ W."""
    size, (n, rows) = grid.sub_block, level.shape
    count = n // size
    unknowns = 2 * count if grid.has_min else count
    M = torch.empty(unknowns, unknowns, rows, dtype=SW.dtype, device=SW.device)
    by_sub_block = S.view(count, size, n).sum(1)  # (sub-blocks, weights)
    for i in range(count):
        own = slice(i * size, (i + 1) * size)
        # S is symmetric: one half of M is computed, the other mirrored.
        told = (S[own.start :, own] @ level[own]).mul_(level[own.start :])
        M[i, i:count] = M[i:count, i] = told.view(-1, size, rows).sum(1)
        if grid.has_min:
            M[i, count:] = M[count:, i] = by_sub_block[:, own] @ -level[own]
    t = (level * SW).view(count, size, rows).sum(1)
    if grid.has_min:
        M[count:, count:] = by_sub_block.view(count, count, size).sum(2)[:, :, None]
        t = torch.cat([t, -SW.view(count, size, rows).sum(1)])
    return Normal(M.permute(2, 0, 1).contiguous(), t.T.contiguous())


def refit_d(
    its: Normal, scale: Tensor, mins: Tensor, d: Tensor, dmin: Tensor, grid: Grid
) -> tuple[Tensor, Tensor]:
    """The ``d`` and ``dmin`` that bring the weights nearest for given integer scales and mins, as halves.

    Where the codes do not determine one, it stays.
    """
    count = len(scale)
    a = scale.T[:, :, None]  # (rows, sub-blocks, 1)
    Ma = its.M[:, :, :count] @ a
    aa, at = (a * Ma[:, :count]).sum((1, 2)), (a[:, :, 0] * its.t[:, :count]).sum(1)
    if not grid.has_min:
        return halves(torch.where(aa > 0, at / aa, d[0]))[None], dmin
    b = mins.T[:, :, None]
    Mb = its.M[:, count:, count:] @ b
    ab, bb = (b * Ma[:, count:]).sum((1, 2)), (b * Mb).sum((1, 2))
    bt = (b[:, :, 0] * its.t[:, count:]).sum(1)
    determinant = aa * bb - ab * ab  # d·aa + dmin·ab = at, d·ab + dmin·bb = bt
    solvable = determinant > 1e-6 * aa * bb
    safe = torch.where(solvable, determinant, 1)
    fitted = torch.where(solvable, (at * bb - bt * ab) / safe, d[0])
    fitted_min = torch.where(solvable, (bt * aa - at * ab) / safe, dmin[0])
    return halves(fitted)[None], halves(fitted_min)[None]


def refit_sub_blocks(its: Normal, d: Tensor, dmin: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Integer scales and mins of the sub-blocks for given ``d`` and ``dmin``.

    Least squares, then the integers one by one with the error moved onto those not yet rounded: the same
    feedback as for weights, under the curvature of the scales.
    """
    M = its.M.clone()
    diagonal = M.diagonal(dim1=1, dim2=2)
    diagonal += _RIDGE * diagonal.mean(1, keepdim=True) + 1e-30
    factor, _ = torch.linalg.cholesky_ex(M)
    x = torch.cholesky_solve(its.t[:, :, None], factor)[:, :, 0].T.contiguous()  # (unknowns, rows)
    U = torch.linalg.cholesky_ex(torch.cholesky_inverse(factor))[0].permute(2, 1, 0).contiguous()
    count = M.shape[1] // 2 if grid.has_min else M.shape[1]
    rounded = torch.empty_like(x)
    for j in range(len(x)):
        unit, limits = (d[0], grid.scales) if j < count else (dmin[0], grid.mins)
        ratio = torch.where(unit == 0, 0, x[j] / unit)
        rounded[j] = ratio.round().clamp(*limits)
        error = (x[j] - unit * rounded[j]) / U[j, j]
        x[j + 1 :] -= error * U[j, j + 1 :]
    rounded = rounded.nan_to_num(0)
    return rounded[:count], rounded[count:] if grid.has_min else torch.zeros_like(rounded[:count])
