"""Choose a type per tensor: the least total KL within a budget of bytes, and of time if wanted.

A multiple-choice knapsack, solved exactly as an integer program. Everything here is plain data: where
the KL of a choice comes from, and what a second is, is decided elsewhere.
"""

import ctypes
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coldpress.errors import ColdpressError, UsageError
from coldpress.quantize.budget import format_size

# The solver's tolerances are absolute, near 1e-6; so each row and the objective are brought to this.
_SCALE = 1e6


@dataclass(frozen=True)
class Choice:
    """One type for one tensor: bytes in the file, KL that it adds, seconds it adds to a token."""

    type: str
    size_bytes: int
    kl_nats: float
    seconds: float = 0.0


Plan = dict[str, Choice]


@dataclass(frozen=True)
class Problem:
    """Tensor → its choices; the rest of the file and of a token's time is fixed."""

    choices: Mapping[str, tuple[Choice, ...]]
    fixed_bytes: int
    fixed_seconds: float = 0.0

    def file_bytes(self, plan: Mapping[str, Choice]) -> int:
        """Bytes of the whole file under a plan."""
        return self.fixed_bytes + sum(choice.size_bytes for choice in plan.values())

    def seconds(self, plan: Mapping[str, Choice]) -> float:
        """Seconds that a token takes under a plan."""
        return self.fixed_seconds + sum(choice.seconds for choice in plan.values())

    def kl_nats(self, plan: Mapping[str, Choice]) -> float:
        """KL of a plan if the tensors' shares added up."""
        return sum(choice.kl_nats for choice in plan.values())


def types(plan: Mapping[str, Choice]) -> dict[str, str]:
    """Tensor → type's name."""
    return {name: choice.type for name, choice in plan.items()}


def undominated(choices: Iterable[Choice]) -> tuple[Choice, ...]:
    """The choices that no other one beats in bytes, KL and seconds at once, smallest first."""
    kept: list[Choice] = []
    for choice in sorted(choices, key=lambda c: (c.size_bytes, c.kl_nats, c.seconds, c.type)):
        if not any(k.kl_nats <= choice.kl_nats and k.seconds <= choice.seconds for k in kept):
            kept.append(choice)
    return tuple(kept)


def allocate(problem: Problem, file_bytes: int, seconds_per_token: float | None = None) -> Plan:
    """The plan of the least total KL in a file of at most ``file_bytes``.

    Args:
        seconds_per_token: the most time that reading the weights for one token may take.

    Raises:
        UsageError: nothing is small or fast enough; the message says what can be met.
    """
    choices = {name: undominated(some) for name, some in problem.choices.items()}
    smallest = {name: some[0] for name, some in choices.items()}
    if (least := problem.file_bytes(smallest)) > file_bytes:
        raise UsageError(
            f"a budget of {format_size(file_bytes)} cannot be met: the smallest types of every"
            f" tensor make {format_size(least)}",
            f"--size {format_size(least)} or more",
        )
    if seconds_per_token is not None:
        _require_speed(problem, choices, file_bytes, seconds_per_token)
    kl = {name: [choice.kl_nats for choice in some] for name, some in choices.items()}
    return _solve(problem, choices, kl, file_bytes, seconds_per_token)


def _require_speed(
    problem: Problem, choices: Mapping[str, tuple[Choice, ...]], file_bytes: int, limit: float
) -> None:
    """Check that some plan is within both budgets."""
    costs = {name: [choice.seconds for choice in some] for name, some in choices.items()}
    fastest = problem.seconds(_solve(problem, choices, costs, file_bytes, None))
    if fastest > limit:
        raise UsageError(
            f"{1 / limit:.4g} tokens/s cannot be met: the fastest types within"
            f" {format_size(file_bytes)} give {1 / fastest:.4g}",
            f"--min-tok-s {0.999 / fastest:.3g}, or another size",
        )


def _solve(
    problem: Problem,
    choices: Mapping[str, tuple[Choice, ...]],
    costs: Mapping[str, list[float]],
    file_bytes: int,
    seconds: float | None,
) -> Plan:
    """Minimise the summed cost; exact in bytes though the solver counts in floats."""
    capacity = file_bytes
    while True:
        plan = _milp(problem, choices, costs, capacity, seconds)
        over = problem.file_bytes(plan) - file_bytes
        if over <= 0:
            return plan
        capacity -= over


def _milp(
    problem: Problem,
    choices: Mapping[str, tuple[Choice, ...]],
    costs: Mapping[str, list[float]],
    file_bytes: int,
    seconds: float | None,
) -> Plan:
    import numpy as np
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    names = sorted(choices)
    flat = [(row, choice) for row, name in enumerate(names) for choice in choices[name]]
    one_each = csr_array(
        (np.ones(len(flat)), ([row for row, _ in flat], range(len(flat)))),
        shape=(len(names), len(flat)),
    )
    limits = [LinearConstraint(one_each, 1, 1)]
    limits.append(_at_most([c.size_bytes for _, c in flat], file_bytes - problem.fixed_bytes))
    if seconds is not None:
        limits.append(_at_most([c.seconds for _, c in flat], seconds - problem.fixed_seconds))
    objective = np.array([cost for name in names for cost in costs[name]])
    largest = float(np.abs(objective).max())
    with _no_stdout():
        found = milp(
            objective * (_SCALE / largest) if largest > 0 else objective,
            integrality=np.ones(len(flat)),
            bounds=Bounds(0, 1),
            constraints=limits,
            options={"mip_rel_gap": 0.0},
        )
    if found.x is None:
        raise ColdpressError(f"the allocation found no plan: {found.message}", "report this")
    chosen = [entry for entry, x in zip(flat, found.x, strict=True) if x > 0.5]
    return {names[row]: choice for row, choice in chosen}


def _at_most(amounts: list[int] | list[float], limit: float) -> Any:
    """One row of the program: the chosen amounts sum to ``limit`` at most."""
    import numpy as np
    from scipy.optimize import LinearConstraint

    scale = _SCALE / limit if limit > 0 else 1.0
    return LinearConstraint(np.array([amounts], dtype=np.float64) * scale, -np.inf, limit * scale)


@contextmanager
def _no_stdout() -> Iterator[None]:
    """Nothing reaches the process's stdout: HiGHS has a printf left in, and ours is for results."""
    sys.stdout.flush()
    flush = ctypes.CDLL(None).fflush
    flush(None)
    kept = os.dup(1)
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    try:
        yield
    finally:
        flush(None)
        os.dup2(kept, 1)
        os.close(kept)
