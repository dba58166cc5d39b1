"""Fit the scales of blocks to given codes: least squares under the curvature S, then onto their own grids.

Column-major like ``walk``: weights are (weights, rows), scales (sub-blocks, rows), ``d`` and ``dmin`` (1, rows).
"""

import torch
from torch import Tensor

from coldpress.quantize.rounding.grids import Grid, halves

_RIDGE = 1e-6


def refit_d(
    W: Tensor, S: Tensor, A: Tensor, B: Tensor | None, d: Tensor, dmin: Tensor
) -> tuple[Tensor, Tensor]:
    """The ``d`` and ``dmin`` that bring ``d·A − dmin·B`` nearest to W, in half precision.

    Where the codes do not determine one, it stays; ``dmin`` is not below 0 unless it was.

    Args:
        A: scale · level of each weight. B: min of each weight, None for types without.
    """
    SA = S @ A
    aa, at = (SA * A).sum(0), (SA * W).sum(0)
    alone = torch.where(aa > 0, at / aa, d[0])
    if B is None:
        return halves(alone)[None], dmin
    SB = S @ B
    ab, bb, bt = (SA * B).sum(0), (SB * B).sum(0), (SB * W).sum(0)
    determinant = aa * bb - ab * ab  # d·aa − dmin·ab = at, d·ab − dmin·bb = bt
    solvable = determinant > 1e-6 * aa * bb
    safe = torch.where(solvable, determinant, 1)
    fitted = torch.where(solvable, (at * bb - bt * ab) / safe, d[0])
    fitted_min = torch.where(solvable, (at * ab - bt * aa) / safe, dmin[0])
    return halves(fitted)[None], halves(fitted_min)[None]


def refit_sub_blocks(
    W: Tensor, S: Tensor, level: Tensor, d: Tensor, dmin: Tensor, grid: Grid
) -> tuple[Tensor, Tensor]:
    """Integer scales and mins of the sub-blocks for given levels, ``d`` and ``dmin``.

    Least squares, then the integers one by one with the error moved onto those not yet rounded: the same
    feedback as for weights, under the curvature of the scales.
    """
    size, (_, rows) = grid.sub_block, W.shape
    count = len(W) // size
    M, target = _normal_equations(W, S, level, size, grid.has_min)
    ridge = _RIDGE * M.diagonal(dim1=1, dim2=2).mean(1) + 1e-30
    M = M + torch.diag_embed(ridge[:, None].expand(rows, M.shape[1]))
    factor, _ = torch.linalg.cholesky_ex(M)
    x = torch.cholesky_solve(target[:, :, None], factor)[:, :, 0]  # (rows, unknowns)
    U = torch.linalg.cholesky_ex(torch.cholesky_inverse(factor))[0].mT
    rounded = torch.empty_like(x)
    for j in range(x.shape[1]):
        unit, limits = (d[0], grid.scales) if j < count else (dmin[0], grid.mins)
        ratio = torch.where(unit == 0, 0, x[:, j] / unit)
        rounded[:, j] = ratio.round().clamp(*limits)
        error = (x[:, j] - unit * rounded[:, j]) / U[:, j, j]
        x[:, j + 1 :] -= error[:, None] * U[:, j, j + 1 :]
    rounded = rounded.nan_to_num(0).T
    return rounded[:count], rounded[count:] if grid.has_min else torch.zeros_like(rounded[:count])


def _normal_equations(
    W: Tensor, S: Tensor, level: Tensor, size: int, has_min: bool
) -> tuple[Tensor, Tensor]:
    """BᵀSB, (rows, unknowns, unknowns), and BᵀSw; B holds the levels, and −1 for the mins, by sub-block."""
    n, rows = W.shape
    count = n // size
    SW = S @ W

    def by_sub_block(values: Tensor) -> Tensor:
        return values.view(count, size, -1).sum(1)

    ST = torch.stack(
        [S[:, i * size : (i + 1) * size] @ level[i * size : (i + 1) * size] for i in range(count)]
    )  # (scales, weights, rows)
    aa = (ST * level).view(count, count, size, rows).sum(2)
    at = by_sub_block(level * SW)
    if not has_min:
        return aa.permute(2, 0, 1), at.T
    ab = -ST.view(count, count, size, rows).sum(2)
    bb = by_sub_block(by_sub_block(S).T.contiguous()).expand(rows, count, count)
    top = torch.cat([aa.permute(2, 0, 1), ab.permute(2, 0, 1)], 2)
    bottom = torch.cat([ab.permute(2, 1, 0), bb], 2)
    return torch.cat([top, bottom], 1), torch.cat([at, -by_sub_block(SW)]).T
