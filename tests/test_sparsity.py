"""The ablation's kernels: patterns exact, errors in the order that their papers claim, against slow versions."""

import pytest
import torch

from benchmarks import sparsity_kernels as kernels
from tests.test_prune import correlated


def some(rows: int = 24, inputs: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(rows, inputs, generator=torch.Generator().manual_seed(0)), correlated(inputs)


def error(W: torch.Tensor, V: torch.Tensor, H: torch.Tensor) -> float:
    off = (W - V).double()
    return float(torch.einsum("oi,ij,oj->", off, H.double(), off))


@pytest.mark.parametrize("pattern", [False, True])
def test_half_of_the_weights_are_zero(pattern: bool) -> None:
    W, H = some()
    for V in (
        kernels.magnitude(W, pattern),
        kernels.wanda(W, H, pattern),
        kernels.sparsegpt(W, H, pattern),
    ):
        groups = (V == 0).view(len(W), -1, 4 if pattern else 64).sum(-1)
        assert (groups == groups.shape[-1] * 0 + (2 if pattern else 32)).all()


def test_wanda_is_its_slow_loop() -> None:
    W, H = some(5, 16)
    found = kernels.wanda(W, H, pattern=False)
    for row in range(5):
        scores = [abs(float(W[row, j])) * float(H[j, j]) ** 0.5 for j in range(16)]
        gone = sorted(range(16), key=lambda j: scores[j])[:8]
        for j in range(16):
            assert float(found[row, j]) == (0 if j in gone else float(W[row, j]))


@pytest.mark.parametrize("pattern", [False, True])
def test_errors_fall_from_method_to_method(pattern: bool) -> None:
    W, H = some(64, 128)
    errors = [
        error(W, V, H)
        for V in (
            kernels.magnitude(W, pattern),
            kernels.wanda(W, H, pattern),
            kernels.sparsegpt(W, H, pattern),
        )
    ]
    assert errors[2] < 0.9 * errors[1]
    assert errors[1] < errors[0]


def test_inputs_that_do_not_correlate_leave_nothing_to_make_good() -> None:
    W = torch.randn(8, 64, generator=torch.Generator().manual_seed(1))
    H = torch.diag(torch.rand(64, generator=torch.Generator().manual_seed(2)) + 0.1).double()
    damped = H + 0.01 * H.diagonal().mean() * torch.eye(64)
    assert torch.allclose(
        kernels.sparsegpt(W, H, pattern=True), kernels.wanda(W, damped, pattern=True), atol=1e-6
    )


def test_the_last_zero_is_made_good_by_nothing_and_the_first_by_all() -> None:
    """With one weight to drop of two, the other becomes its least-squares fit if it comes after."""
    W = torch.tensor([[0.1, 1.0]])
    H = torch.tensor([[1.0, 0.6], [0.6, 1.0]], dtype=torch.float64)
    found = kernels.sparsegpt(W, H, pattern=False)
    damped = H + 0.01 * torch.eye(2)
    assert float(found[0, 0]) == 0
    assert float(found[0, 1]) == pytest.approx(1.0 + 0.1 * float(damped[0, 1] / damped[1, 1]))
    back = kernels.sparsegpt(W.flip(1), H, pattern=False)
    assert back.tolist() == [[1.0, 0.0]]
