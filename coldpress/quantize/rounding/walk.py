"""Choose the codes of a block whose scales are fixed: column feedback, and coordinate descent.

Everything is column-major, (weights, rows), so that a column of all rows is contiguous. A weight is
``step · level − offset``; steps and offsets are (sub-blocks, rows). The objective of a row is ``e S eᵀ`` with
e = w − q and S = (Uᵀ U)⁻¹, the curvature that is left when all later columns answer optimally.
"""

import torch
from torch import Tensor

from coldpress.quantize.rounding.grids import Grid

_COLUMNS = 32  # Updated one by one; the columns after them get one matrix product.


def walk(W: Tensor, U: Tensor, step: Tensor, offset: Tensor, grid: Grid) -> Tensor:
    """Levels, column by column, with each column's error moved onto the columns after it.

    Args:
        W: weights, (weights, rows).
        U: upper Cholesky factor of the inverse curvature, (weights, weights).

    Source: Frantar et al. 2022, arXiv:2210.17323, Algorithm 1; without its act-order, which the sub-blocks
    forbid, and with the scales fixed beforehand.
    """
    X, level, error = W.clone(), torch.empty_like(W), torch.empty(_COLUMNS, W.shape[1])
    error = error.to(W)
    inverse = torch.where(step == 0, 0, 1 / step)
    shift = (offset * inverse).unbind()
    steps, offsets, inverses = step.unbind(), offset.unbind(), inverse.unbind()
    diagonal = U.diagonal().tolist()
    for start in range(0, len(W), _COLUMNS):
        stop = start + _COLUMNS
        for i, (x, onwards) in enumerate(
            zip(X[start:stop], U[start:stop, start:stop], strict=True)
        ):
            s = (start + i) // grid.sub_block
            level[start + i] = chosen = grid.snap(torch.addcmul(shift[s], x, inverses[s]))
            miss = torch.addcmul(x + offsets[s], steps[s], chosen, value=-1)
            error[i] = miss.div_(diagonal[start + i])
            X[start + i + 1 : stop].addr_(onwards[i + 1 :], miss, alpha=-1)
        X[stop:].addmm_(U[start:stop, stop:].T, error, alpha=-1)
    return level


def descend(S: Tensor, step: Tensor, grid: Grid, level: Tensor, gradient: Tensor) -> Tensor:
    """Levels, each set to its best given all others, column after column; the objective never rises.

    Args:
        S: curvature, (weights, weights).
        level, gradient: where to start, and S (W − Q) there, both (weights, rows).

    Source: Nair and Suggala 2024, arXiv:2406.17542, Algorithm 1, cyclic.
    """
    G, level = gradient.clone(), level.clone()
    moved = torch.empty(_COLUMNS, level.shape[1]).to(level)
    inverse = torch.where(step == 0, 0, 1 / step)
    steps, inverses = step.unbind(), inverse.unbind()
    share = (1 / S.diagonal()).tolist()
    for start in range(0, len(level), _COLUMNS):
        stop = start + _COLUMNS
        for i, (mine, pull) in enumerate(zip(level[start:stop], G[start:stop], strict=True)):
            s = (start + i) // grid.sub_block
            best = grid.snap(torch.addcmul(mine, pull, inverses[s], value=share[start + i]))
            change = torch.sub(best, mine, out=moved[i]).mul_(steps[s])
            G[start + i + 1 : stop].addr_(S[start + i, start + i + 1 : stop], change, alpha=-1)
            mine.copy_(best)
        G[stop:].addmm_(S[stop:, start:stop], moved, alpha=-1)
    return level
