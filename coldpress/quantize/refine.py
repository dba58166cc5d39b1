"""Improve a plan by the true KL of whole plans.

Sensitivities add up only on average: errors of two tensors also cancel or amplify each other, which
differs from type to type and cannot be told beforehand. So plans that are nearly as good by the sum are
tried: sensitivities are shaken by about their own uncertainty, allocated again, and what turns out better
is where the next are shaken from. Every proposal is within the budgets because an allocation is.
"""

import math
import random
from dataclasses import dataclass, replace

from coldpress.progress import task
from coldpress.quantize.allocate import Choice, Plan, Problem, allocate, types
from coldpress.quantize.judge import Judge

# The scatter of log KL around the sensitivities' law, measured on the demo model; see ``sensitivity``.
_SPREAD = 0.15
_WIDER = 1.5  # By this after a proposal that was judged before: few tensors change less easily.
# Less is luck with the few tokens that it is judged on.
_LEAST_GAIN = 2e-3


@dataclass(frozen=True)
class Refined:
    """The plan found, its true KL and that of the first plan; how many were judged and taken."""

    plan: Plan
    kl_nats: float
    first_kl_nats: float
    n_judged: int
    n_taken: int


def refine(
    problem: Problem,
    judge: Judge,
    file_bytes: int,
    seconds_per_token: float | None = None,
    tries: int = 40,
    seed: int = 0,
) -> Refined:
    """Allocate, then look for plans of a lower true KL nearby.

    Args:
        tries: how many plans are proposed; each that is new costs one pass over the judge's tokens.

    Raises:
        UsageError: no plan is within the budgets.
    """
    # The choice of plans to try, not a secret.
    rng = random.Random(seed)  # noqa: S311
    judge.rebase({})
    plan = allocate(problem, file_bytes, seconds_per_token)
    known = {_key(plan): judge.kl(types(plan))}
    first = best = known[_key(plan)]
    shaken, spread, n_taken = problem, _SPREAD, 0
    with task("refining", tries) as advance:
        for _ in range(tries):
            proposal = _shake(shaken, rng, spread)
            other = allocate(proposal, file_bytes, seconds_per_token)
            new = (key := _key(other)) not in known
            spread = max(_SPREAD, spread / _WIDER) if new else spread * _WIDER
            if new:
                known[key] = judge.kl(types(other))
            if known[key] < best * (1 - _LEAST_GAIN):
                shaken, plan, best = proposal, other, known[key]
                n_taken += 1
            advance(1)
    final = {name: _original(problem, name, choice) for name, choice in plan.items()}
    return Refined(final, best, first, len(known), n_taken)


def _shake(problem: Problem, rng: random.Random, spread: float) -> Problem:
    """The problem with each tensor's KL times a random factor, log-normal of this spread."""
    choices = {}
    for name in sorted(problem.choices):
        factor = math.exp(rng.gauss(0, spread))
        some = problem.choices[name]
        choices[name] = tuple(replace(each, kl_nats=each.kl_nats * factor) for each in some)
    return replace(problem, choices=choices)


def _key(plan: Plan) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(types(plan).items()))


def _original(problem: Problem, name: str, chosen: Choice) -> Choice:
    """The choice with its own sensitivity again."""
    return next(each for each in problem.choices[name] if each.type == chosen.type)
