"""Refining: judged by the true KL, never over a budget, the same each time, resumed after a kill."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coldpress.errors import UsageError
from coldpress.quantize.allocate import Choice, Plan, Problem, allocate
from coldpress.quantize.judge import Judge, Ledger
from coldpress.quantize.refine import refine
from coldpress.quantize.types import TYPES
from tests.fake_network import FakeBank, FakeNetwork

KINDS = ("IQ2_XXS", "Q2_K", "IQ3_XXS", "Q3_K", "IQ3_S", "Q4_K")


def made(network: FakeNetwork, ledger: Path) -> tuple[Problem, Judge]:
    """A problem whose sensitivities are each tensor's alone, as measured ones are."""
    choices = {
        name: tuple(
            Choice(
                kind,
                TYPES[kind].block_bytes * (1 + i % 3),
                network.of_errors({name: network.error(name, TYPES[kind])}),
                seconds=TYPES[kind].block_bytes * (3.0 if kind.startswith("I") else 1.0),
            )
            for kind in KINDS
        )
        for i, name in enumerate(network.names)
    }
    judge = Judge(FakeBank(network), network, Ledger(ledger), "about")
    return Problem(choices, fixed_bytes=100), judge


def true_kl(network: FakeNetwork, plan: Plan) -> float:
    return network.of_errors({n: network.error(n, TYPES[c.type]) for n, c in plan.items()})


def middle(problem: Problem) -> int:
    return problem.file_bytes({name: some[2] for name, some in problem.choices.items()})


def test_a_better_plan_is_found_where_errors_interact(tmp_path: Path) -> None:
    network = FakeNetwork(n_tensors=20, interaction=0.5)
    problem, judge = made(network, tmp_path / "ledger")
    start = allocate(problem, middle(problem))
    found = refine(problem, judge, middle(problem), tries=25)
    assert found.first_kl_nats == pytest.approx(true_kl(network, start))
    assert found.kl_nats == pytest.approx(true_kl(network, found.plan))
    assert found.kl_nats < 0.97 * found.first_kl_nats
    assert 1 < found.n_judged <= 26
    assert all(choice in problem.choices[name] for name, choice in found.plan.items())


def test_where_errors_add_up_the_first_plan_stays(tmp_path: Path) -> None:
    network = FakeNetwork(n_tensors=5)
    problem, judge = made(network, tmp_path / "ledger")
    found = refine(problem, judge, middle(problem), tries=10)
    assert found.plan == allocate(problem, middle(problem))
    assert found.n_taken == 0


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.floats(0, 0.99), st.floats(0, 1), st.floats(0, 1), st.integers(1, 6))
def test_budgets_are_kept_and_no_plan_gets_worse(
    tmp_path: Path, interaction: float, space: float, speed: float, tries: int
) -> None:
    network = FakeNetwork(n_tensors=5, interaction=interaction)
    problem, judge = made(network, tmp_path / f"{interaction}")
    ends = [{n: some[i] for n, some in problem.choices.items()} for i in (0, -1)]
    least, most = map(problem.file_bytes, ends)
    budget = int(least + space * (most - least))
    quick = problem.seconds(allocate(problem, budget)) * (0.9 + speed)
    try:
        start = allocate(problem, budget, quick)
    except UsageError:
        return  # Nothing is as quick.
    found = refine(problem, judge, budget, quick, tries)
    assert problem.file_bytes(found.plan) <= budget
    assert problem.seconds(found.plan) <= quick * (1 + 1e-9)
    assert found.kl_nats <= found.first_kl_nats == pytest.approx(true_kl(network, start))


def test_a_killed_search_goes_on_and_measures_nothing_again(tmp_path: Path) -> None:
    network = FakeNetwork(n_tensors=20, interaction=0.5)
    problem, judge = made(network, tmp_path / "ledger")
    network.fail_after = 4
    with pytest.raises(KeyboardInterrupt):
        refine(problem, judge, middle(problem), tries=12)
    network.fail_after = None
    _, second = made(network, tmp_path / "ledger")
    found = refine(problem, second, middle(problem), tries=12)
    assert second.n_measured == found.n_judged - 4
    _, third = made(network, tmp_path / "ledger")
    assert refine(problem, third, middle(problem), tries=12) == found
    assert third.n_measured == 0
