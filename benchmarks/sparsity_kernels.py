"""Weights set to zero: by magnitude, by Wanda, by SparseGPT; half of all, or two in every four.

Kernels of an ablation: what they save in a GGUF is nothing, so no stage uses them.

Source: Sun et al. 2023, arXiv:2306.11695, equation 1 (Wanda); Frantar & Alistarh 2023, arXiv:2301.00774,
Algorithm 1 (SparseGPT).
"""

import torch
from torch import Tensor

_BLOCK = 128
_DAMP = 0.01


def lowest(scores: Tensor, pattern: bool) -> Tensor:
    """Which half of each row has the lowest scores, (out, in); with ``pattern`` two of every four neighbours."""
    size = 4 if pattern else scores.shape[1]
    groups = scores.view(len(scores), -1, size)
    order = groups.argsort(dim=-1, stable=True)[..., : size // 2]
    return torch.zeros_like(groups, dtype=torch.bool).scatter(-1, order, True).view_as(scores)


def magnitude(W: Tensor, pattern: bool) -> Tensor:
    """The smallest weights of each row become zero."""
    return W.masked_fill(lowest(W.abs(), pattern), 0)


def wanda(W: Tensor, H: Tensor, pattern: bool) -> Tensor:
    """Those with the smallest |weight| times length of its input, √H_jj, do."""
    return W.masked_fill(lowest(W.abs() * H.diagonal().sqrt(), pattern), 0)


def sparsegpt(W: Tensor, H: Tensor, pattern: bool) -> Tensor:
    """Column by column; what a zero costs is made good by the columns after it.

    Args:
        W: weights, (out, in).
        H: E[x xᵀ], (in, in).
    """
    W, H = W.double().clone(), H.double()
    damped = H + _DAMP * H.diagonal().mean() * torch.eye(len(H), dtype=H.dtype)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    U = torch.linalg.cholesky(inverse, upper=True)
    step = 4 if pattern else _BLOCK
    for start in range(0, W.shape[1], step):
        stop = min(start + step, W.shape[1])
        costs = (W[:, start:stop] / U.diagonal()[start:stop]).square()
        gone = lowest(costs, pattern)
        for j in range(start, stop):
            error = torch.where(gone[:, j - start], W[:, j] / U[j, j], 0)
            W[:, j:] -= error[:, None] * U[j, j:]
            W[:, j].masked_fill_(gone[:, j - start], 0)
    return W.float()
