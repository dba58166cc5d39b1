"""Which of a layer's inputs to take out, and what the others' weights then are.

A layer W x over inputs in groups (single neurons, or the columns of attention heads). Taking group g out and
letting all other weights answer optimally costs tr(W_g ((H⁻¹)_gg)⁻¹ W_gᵀ) of E‖ΔW x‖²; the cheapest group goes,
W and H⁻¹ are updated, and so on. What remains is the least-squares fit of the whole layer by the inputs that
stay.

Source: Hassibi & Stork 1993 (optimal brain surgeon); Kurtic et al. 2023, arXiv:2302.04089, section 3.1 (groups).
"""

from collections.abc import Callable

import torch
from torch import Tensor

_DAMP = 0.01


def keep_groups(
    W: Tensor,
    H: Tensor,
    size: int,
    count: int,
    advance: Callable[[float], object] = lambda _groups: None,
) -> tuple[Tensor, Tensor]:
    """Take all but ``count`` groups of inputs out.

    Args:
        W: weights, (out, in).
        H: second moments of the input, E[x xᵀ], (in, in), symmetric.
        size: inputs of a group; they are neighbours.
        advance: told of each group that is gone.

    Returns:
        The groups that stay, ascending, (count,), and W over their inputs, (out, count · size).
    """
    W, inverse = W.double(), _inverse(H)
    groups = W.shape[1] // size
    left = torch.ones(groups, dtype=torch.bool, device=W.device)
    for _ in range(groups - count):
        g = int(_costs(W, inverse, size).masked_fill(~left, torch.inf).argmin())
        columns = slice(g * size, (g + 1) * size)
        step = torch.linalg.solve(inverse[columns, columns], inverse[columns])
        W = W - W[:, columns] @ step
        inverse = inverse - inverse[:, columns] @ step
        left[g] = False
        advance(1)
    kept = left.nonzero()[:, 0]
    return kept, W.view(len(W), groups, size)[:, kept].flatten(1).float()


def _costs(W: Tensor, inverse: Tensor, size: int) -> Tensor:
    """What taking each group out costs, (groups,); no number for those that are gone."""
    if size == 1:
        single: Tensor = W.square().sum(0) / inverse.diagonal()
        return single
    groups = W.shape[1] // size
    own = inverse.view(groups, size, groups, size).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    parts = W.view(len(W), groups, size).permute(1, 2, 0)
    # Those that are gone are zero in both; any invertible matrix does for them.
    gone = own.diagonal(dim1=1, dim2=2).amax(1) <= 0
    eye = torch.eye(size, dtype=W.dtype, device=W.device)
    solved = torch.linalg.solve(torch.where(gone[:, None, None], eye, own), parts)
    costs: Tensor = (parts * solved).sum((1, 2))
    return costs


def _inverse(H: Tensor) -> Tensor:
    """H⁻¹ in float64, damped by a share of the mean diagonal as GPTQ does."""
    H = H.double()
    damped = H + _DAMP * H.diagonal().mean() * torch.eye(len(H), dtype=H.dtype, device=H.device)
    return torch.cholesky_inverse(torch.linalg.cholesky(damped))
