"""Choose the codes of a block whose scales are fixed: column feedback, then coordinate descent.

Everything is column-major, (weights, rows), so that a column of all rows is contiguous. The objective of a row
is ``e S eᵀ`` with e = w − q and S = (Uᵀ U)⁻¹, the curvature that is left when all later columns answer optimally.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from coldpress.quantize.rounding.grids import Grid

_COLUMNS = 32  # Updated one by one; the columns after them get one matrix product.


@dataclass(frozen=True)
class Walked:
    """Codes and decoded weights, (weights, rows), and the objective, (rows,)."""

    code: Tensor
    Q: Tensor
    loss: Tensor


def walk(W: Tensor, U: Tensor, step: Tensor, offset: Tensor, grid: Grid) -> Walked:
    """Round column by column, moving each column's error onto the columns after it.

    Args:
        W: weights, (weights, rows).
        U: upper Cholesky factor of the inverse curvature, (weights, weights).
        step, offset: of each sub-block, (sub-blocks, rows): q = step · level − offset.

    Source: Frantar et al. 2022, arXiv:2210.17323, Algorithm 1; without its act-order, which the sub-blocks
    forbid, and with the scales fixed beforehand.
    """
    X, code, Q, error = W.clone(), torch.empty_like(W), torch.empty_like(W), torch.empty_like(W)
    inverse = torch.where(step == 0, 0, 1 / step)
    for start in range(0, len(W), _COLUMNS):
        stop = start + _COLUMNS
        for j in range(start, stop):
            s, o, i = (part[j // grid.sub_block] for part in (step, offset, inverse))
            code[j] = grid.nearest((X[j] + o) * i)
            Q[j] = s * grid.level(code[j]) - o
            error[j] = (X[j] - Q[j]) / U[j, j]
            X[j + 1 : stop].addr_(U[j, j + 1 : stop], error[j], alpha=-1)
        X[stop:] -= U[start:stop, stop:].T @ error[start:stop]
    return Walked(code, Q, error.square().sum(0))


def descend(
    W: Tensor, S: Tensor, step: Tensor, offset: Tensor, grid: Grid, walked: Walked
) -> Walked:
    """Set each code to its best given all others, column after column; the objective never rises.

    Args:
        S: curvature, (weights, weights); the others as in ``walk``.

    Source: Nair and Suggala 2024, arXiv:2406.17542, Algorithm 1, cyclic.
    """
    code, Q = walked.code.clone(), walked.Q.clone()
    inverse = torch.where(step == 0, 0, 1 / step)
    G = S @ (W - Q)
    for start in range(0, len(W), _COLUMNS):
        stop = start + _COLUMNS
        before = Q[start:stop].clone()
        for j in range(start, stop):
            s, o, i = (part[j // grid.sub_block] for part in (step, offset, inverse))
            code[j] = grid.nearest((Q[j] + G[j] / S[j, j] + o) * i)
            new = s * grid.level(code[j]) - o
            G[start:stop].addr_(S[start:stop, j], new - Q[j], alpha=-1)
            Q[j] = new
        G[stop:] -= S[stop:, start:stop] @ (Q[start:stop] - before)
    E = W - Q
    return Walked(code, Q, (E * (S @ E)).sum(0))
