"""Divergences between a teacher's kept answers and a student: against slow versions over the vocabulary."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coldpress.distill.loss import Target, divergence, hidden_error, target

VOCABULARY = 40


def some(seed: int, *shape: int) -> torch.Tensor:
    return 3 * torch.randn(*shape, VOCABULARY, generator=torch.Generator().manual_seed(seed))


def slow(teacher: torch.Tensor, student: torch.Tensor, kept: int, loss: str, t: float) -> float:
    """One position, in plain Python floats."""
    p = (teacher.double() / t).softmax(-1).tolist()
    q = (student.double() / t).softmax(-1).tolist()
    named = sorted(range(VOCABULARY), key=lambda i: -p[i])[:kept]
    if kept < VOCABULARY:
        rest = [i for i in range(VOCABULARY) if i not in named]
        p = [p[i] for i in named] + [sum(p[i] for i in rest)]
        q = [q[i] for i in named] + [sum(q[i] for i in rest)]
    log = torch.log
    as_tensor = lambda values: torch.tensor(values, dtype=torch.float64)  # noqa: E731
    p_, q_ = as_tensor(p), as_tensor(q)
    forward = float((p_ * (log(p_) - log(q_))).sum())
    reverse = float((q_ * (log(q_) - log(p_))).sum())
    return t * t * {"forward": forward, "reverse": reverse, "mix": (forward + reverse) / 2}[loss]


@pytest.mark.parametrize("loss", ["forward", "reverse", "mix"])
@pytest.mark.parametrize("kept", [1, 7, VOCABULARY - 1, 0])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_divergence_is_the_slow_one(loss: Any, kept: int, temperature: float) -> None:
    teacher, student = some(0, 2, 3), some(1, 2, 3)
    found = divergence(student, target(teacher, temperature, kept), loss, temperature)
    assert found.shape == (2, 3)
    for row in range(2):
        for place in range(3):
            wanted = slow(
                teacher[row, place], student[row, place], kept or VOCABULARY, loss, temperature
            )
            assert float(found[row, place]) == pytest.approx(wanted, rel=1e-4, abs=1e-6)


@given(seed=st.integers(0, 10**6), kept=st.integers(1, VOCABULARY - 1))
@settings(max_examples=50, deadline=None)
def test_merging_outcomes_never_raises_a_divergence(seed: int, kept: int) -> None:
    teacher, student = some(seed), some(seed + 1)
    whole = float(divergence(student, target(teacher, 1.0, 0), "forward", 1.0))
    merged = float(divergence(student, target(teacher, 1.0, kept), "forward", 1.0))
    assert -1e-5 <= merged <= whole + 1e-5


def test_equal_models_have_none_and_no_gradient() -> None:
    teacher = some(0, 5)
    for kept in (0, 8):
        student = teacher.clone().requires_grad_()
        found = divergence(student, target(teacher, 1.0, kept), "forward", 1.0).sum()
        found.backward()  # type: ignore[no-untyped-call]
        assert float(found.detach()) == pytest.approx(0, abs=1e-5)
        assert student.grad is not None
        assert float(student.grad.abs().max()) < 1e-5


def test_a_rest_of_nothing_is_no_infinity() -> None:
    teacher = torch.full((1, VOCABULARY), -1e4)
    teacher[0, 3] = 1e4
    found = target(teacher, 1.0, 2)
    assert found.log_p.isfinite().all()
    assert divergence(some(1, 1), found, "mix", 1.0).isfinite().all()


def test_half_precision_keeps_what_matters() -> None:
    said = target(some(0, 100), 1.0, 16)
    kept = Target(said.log_p.half(), said.ids)
    exact, near = (divergence(some(1, 100), each, "forward", 1.0) for each in (said, kept))
    assert torch.allclose(exact, near, rtol=2e-3, atol=1e-3)


def test_hidden_error_is_a_share_of_the_teachers_variance() -> None:
    teacher = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    assert float(hidden_error(teacher, teacher)) == 0
    assert float(hidden_error(torch.zeros(4, 8), teacher)) == pytest.approx(1)
