"""The curvature of a rounding problem, factored once per layer input.

The papers invert: H⁻¹ = Uᵀ U with U upper triangular. Here H itself is factored, H = R Rᵀ with R upper
triangular, so that U = R⁻¹ and the diagonal blocks of U are the inverses of R's. Of U nothing else is needed:
with E = W − Q of the columns before a block b, feedback makes the block W_b + E R_:b U_bb.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from coldpress.errors import InputError

DAMP = 0.01
_MOST_DAMP = 10.0
# Inputs up to which a float64 copy is small; float32 needs no more damping in practice.
_MOST_EXACT = 4096
_ROWS = 256


@dataclass(frozen=True)
class Factor:
    """R of H + δI = R Rᵀ, upper triangular, (inputs, inputs) float32.

    ``damp`` is δ in units of the mean of diag(H): more than asked where H was singular beyond it, which is
    recorded with the tensor.
    """

    R: Tensor
    damp: float

    def curvature(self, own: slice) -> Tensor:
        """H + δI of some columns alone."""
        panel = self.R[own, own.start :]
        return panel @ panel.T


def factor(H: Tensor, damp: float = DAMP, order: Tensor | None = None) -> Factor:
    """Damp and factor second moments; a dead input only has the damping to hold it.

    Args:
        H: E[x xᵀ], symmetric, (inputs, inputs); it may be memory-mapped and is read once.
        damp: share of the mean of diag(H) to add to it; ten times more while H is not positive.
        order: of R's rows and columns; as they are by default.

    Raises:
        InputError: H is not finite, or no damping makes it positive definite.

    Source: Frantar et al. 2022, arXiv:2210.17323, section 3.3, steps 2 and 3.
    """
    if not torch.isfinite(H.sum()):
        raise InputError("second moments are not finite", "calibrate again")
    mean = float(H.diagonal().double().mean())
    unit = mean if mean > 0 else 1.0  # Inputs that never fire: every column counts the same.
    turned = torch.arange(len(H)).flip(0) if order is None else order.flip(0)
    while damp <= _MOST_DAMP:
        if (R := _upper(H, turned, damp * unit)) is not None:
            return Factor(R, damp)
        damp *= 10
    raise InputError("second moments are not positive definite", "calibrate on more text")


def _upper(H: Tensor, turned: Tensor, added: float) -> Tensor | None:
    """R, or None if H + added is not positive: LAPACK's factor is lower, so H is turned about, and R back."""
    dtype = torch.float64 if len(H) <= _MOST_EXACT else torch.float32
    # Column-major as LAPACK wants it and filled piece by piece: one matrix, factored in place.
    A = torch.empty(H.shape, dtype=dtype, device=H.device).mT
    for start in range(0, len(H), _ROWS):
        A[:, start : start + _ROWS] = H[turned[start : start + _ROWS]][:, turned].T
    A.diagonal().add_(added)
    failed = torch.zeros((), dtype=torch.int32, device=H.device)
    torch.linalg.cholesky_ex(A, out=(A, failed))
    if failed:
        return None
    lower = A.mT.float()  # Its transpose, row-major; the same memory if it is float32.
    _reverse(lower.view(-1))
    return lower.mT


def _reverse(flat: Tensor) -> None:
    """Turn a vector about in place."""
    half, step = len(flat) // 2, 1 << 18
    for start in range(0, half, step):
        stop = min(start + step, half)
        head, tail = flat[start:stop], flat[len(flat) - stop : len(flat) - start]
        turned = head.flip(0)
        head.copy_(tail.flip(0))
        tail.copy_(turned)


def invert_upper(R: Tensor) -> Tensor:
    """U = R⁻¹ of a diagonal block of R, float32."""
    eye = torch.eye(len(R), dtype=torch.float64, device=R.device)
    U: Tensor = torch.linalg.solve_triangular(R.double(), eye, upper=True)
    return U.float()


def inverse_factor(S: Tensor) -> Tensor:
    """U upper triangular with S⁻¹ = Uᵀ U, for a positive definite S of one block."""
    exact = torch.cholesky_inverse(torch.linalg.cholesky(S.double()))
    upper: Tensor = torch.linalg.cholesky(exact, upper=True)
    return upper.float()
