"""Allocation: every plan of a small problem, tried one by one, is the oracle."""

import ctypes
from itertools import product
from typing import Any

import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st

from coldpress.errors import UsageError
from coldpress.quantize.allocate import Choice, Plan, Problem, allocate, undominated

numbers = st.floats(1e-7, 10, allow_nan=False)
choice = st.builds(Choice, st.just("T"), st.integers(1, 10**9), numbers, numbers)


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    choices = {
        f"t{i}": tuple(draw(st.lists(choice, min_size=n, max_size=n))) for i, n in enumerate(sizes)
    }
    return Problem(choices, draw(st.integers(0, 10**6)), draw(st.floats(0, 1)))


def every_plan(problem: Problem) -> list[Plan]:
    names = list(problem.choices)
    return [dict(zip(names, some, strict=True)) for some in product(*problem.choices.values())]


@settings(max_examples=150, deadline=None)
@given(problems(), st.floats(0, 1), st.floats(0, 1))
def test_the_plan_is_the_best_of_all(problem: Problem, space: float, speed: float) -> None:
    plans = every_plan(problem)
    sizes, times = [[f(p) for p in plans] for f in (problem.file_bytes, problem.seconds)]
    budget = int(min(sizes) + space * (max(sizes) - min(sizes)))
    limit = min(times) + speed * (max(times) - min(times)) + 1e-9
    for seconds in (None, limit):
        fits = [
            p
            for p, size, time in zip(plans, sizes, times, strict=True)
            if size <= budget and (seconds is None or time <= seconds)
        ]
        if not fits:
            with pytest.raises(UsageError, match="tokens/s cannot be met"):
                allocate(problem, budget, seconds)
            continue
        found = allocate(problem, budget, seconds)
        assert problem.file_bytes(found) <= budget
        assert seconds is None or problem.seconds(found) <= seconds * (1 + 1e-9)
        best = min(map(problem.kl_nats, fits))
        assert problem.kl_nats(found) == pytest.approx(best, rel=1e-6)


@given(st.lists(choice, min_size=1, max_size=6))
def test_what_is_dominated_is_beaten_by_something_kept(choices: list[Choice]) -> None:
    kept = undominated(choices)
    for one in choices:
        assert any(
            k.size_bytes <= one.size_bytes and k.kl_nats <= one.kl_nats and k.seconds <= one.seconds
            for k in kept
        )
    assert [k.size_bytes for k in kept] == sorted(k.size_bytes for k in kept)


def many(n: int) -> Problem:
    """A problem of a large model's size: tensors of several sizes, eight types each."""
    shrink = (2.0625, 2.625, 3.0625, 3.4375, 4.25, 4.5, 5.5, 6.5625)
    return Problem(
        {
            f"t{i}": tuple(
                Choice(
                    f"{bits}", int(bits * 2**20 * (1 + i % 5)) // 32 * 32, (1 + i % 7) * 4**-bits
                )
                for bits in shrink
            )
            for i in range(n)
        },
        fixed_bytes=1_000_003,
    )


def test_a_large_model_is_planned_to_the_byte_and_the_same_each_time() -> None:
    problem = many(300)
    budget = problem.fixed_bytes + int(3.3 * 2**20 * 900)
    plan = allocate(problem, budget)
    assert 0 <= budget - problem.file_bytes(plan) < 2**19
    assert plan == allocate(Problem(dict(reversed(problem.choices.items())), 1_000_003), budget)


def test_the_smallest_file_is_met_exactly_and_one_byte_less_says_what_can() -> None:
    problem = many(20)
    least = problem.file_bytes({name: some[0] for name, some in problem.choices.items()})
    assert problem.file_bytes(allocate(problem, least)) == least
    with pytest.raises(UsageError) as caught:
        allocate(problem, least - 1)
    assert "cannot be met" in caught.value.message
    assert caught.value.hint.startswith("--size ")


def test_what_the_solver_prints_is_not_on_stdout(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """HiGHS prints a line when a rounded solution needs another run."""
    milp, libc = scipy.optimize.milp, ctypes.CDLL(None)

    def talkative(*args: Any, **options: Any) -> Any:
        libc.puts(b"HighsMipSolverData")
        return milp(*args, **options)

    monkeypatch.setattr(scipy.optimize, "milp", talkative)
    libc.puts(b"before")
    print(len(allocate(many(3), 10**9)))
    assert capfd.readouterr().out == "before\n3\n"
