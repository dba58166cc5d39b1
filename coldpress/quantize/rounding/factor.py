"""The curvature of a rounding problem, factored once per layer input."""

from dataclasses import dataclass

import torch
from torch import Tensor

from coldpress.errors import InputError

DAMP = 0.01
_MOST_DAMP = 10.0


@dataclass(frozen=True)
class Factor:
    """H with its damping, and U upper triangular with H⁻¹ = Uᵀ U, both (inputs, inputs) float32.

    ``damp`` is what was added to the diagonal, in units of its mean: more than asked where H was singular
    beyond it, which is recorded with the tensor.
    """

    H: Tensor
    U: Tensor
    damp: float


def factor(H: Tensor, damp: float = DAMP) -> Factor:
    """Damp and factor second moments; a dead input only has the damping to hold it.

    Args:
        H: E[x xᵀ], symmetric, (inputs, inputs).

    Raises:
        InputError: H is not finite, or no damping makes it positive definite.

    Source: Frantar et al. 2022, arXiv:2210.17323, section 3.3, steps 2 and 3.
    """
    if not torch.isfinite(H).all():
        raise InputError("second moments are not finite", "calibrate again")
    exact = H.double()
    mean = float(exact.diagonal().mean())
    unit = mean if mean > 0 else 1.0  # Inputs that never fire: every column counts the same.
    while damp <= _MOST_DAMP:
        damped = exact + damp * unit * torch.eye(len(H), dtype=exact.dtype, device=H.device)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            inverse = torch.cholesky_inverse(lower)
            upper, failed = torch.linalg.cholesky_ex(inverse, upper=True)
            if not failed:
                return Factor(damped.float(), upper.float(), damp)
        damp *= 10
    raise InputError("second moments are not positive definite", "calibrate on more text")


def inverse_factor(S: Tensor) -> Tensor:
    """U upper triangular with S⁻¹ = Uᵀ U, for a positive definite S."""
    exact = torch.cholesky_inverse(torch.linalg.cholesky(S.double()))
    upper: Tensor = torch.linalg.cholesky(exact, upper=True)
    return upper.float()
