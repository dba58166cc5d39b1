"""Predict size, memory, cold start, speed and cost of a model on each platform, and what would fit."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from coldpress.errors import TooLargeError, UsageError

if TYPE_CHECKING:
    from coldpress.platforms import Target


@dataclass(frozen=True)
class PlanOptions:
    """What is asked: where, how large, how often.

    ``memory`` is that of an instance, such as ``3008MB``; by default what the platform usually gives,
    or more where the model needs it. ``traffic`` is requests per month, each of ``request_tokens``.
    ``storage`` is where the weights are on a cold start; by default what the target has.
    """

    bits: tuple[str, ...] = ()
    targets: tuple[str, ...] = ("lambda", "cloudrun")
    memory: str | None = None
    context: int | None = None
    traffic: int | None = None
    request_tokens: int = 500
    storage: str | None = None
    measure: bool = False

    def __post_init__(self) -> None:
        from coldpress.plan.rates import Storage
        from coldpress.platforms import Target

        _one_of("target", self.targets, get_args(Target))
        _one_of("storage", () if self.storage is None else (self.storage,), get_args(Storage))
        for name in ("context", "traffic", "request_tokens"):
            number = getattr(self, name)
            if number is not None and number <= 0:
                raise UsageError(f"{name} is {number}", "give a positive number")


@dataclass(frozen=True)
class Figure:
    """A prediction: ``error_pct`` 0 is exact, else the true value is expected within so much of it."""

    value: float
    error_pct: float
    basis: str


@dataclass(frozen=True)
class Row:
    """One file on one platform. Where it does not fit, ``problem`` says why and ``instead`` what would.

    ``needed_mib`` is what an instance must have, ``resident_mib`` what will be found in use.
    """

    variant: str
    target: str
    size_bytes: Figure
    needed_mib: int
    resident_mib: Figure
    problem: str | None = None
    instead: str | None = None
    memory_mib: int | None = None
    vcpu: float | None = None
    cold_start_s: Figure | None = None
    tok_per_s: Figure | None = None
    usd_per_request: Figure | None = None
    usd_per_month: Figure | None = None


@dataclass(frozen=True)
class Planned:
    """Rows by file and target; the dates are those of the tables that they rest on."""

    rows: tuple[Row, ...]
    context: int
    prices_of: str
    rates_of: str


def plan(model: Path, options: PlanOptions) -> Planned:
    """Plan a model: a GGUF, an artifact or checkpoint with one, or a Hugging Face folder.

    Raises:
        InputError: there is no model.
        UsageError: an option cannot work with it.
    """
    from coldpress.plan import estimate, rates, source
    from coldpress.platforms import table

    shape, variants = source.variants(model, options.bits)
    types = {kind for variant in variants for kind in variant.read_bytes}
    speeds = rates.measured(types) if options.measure else rates.default()
    rows = [
        estimate.row(each, shape, _target(name), options, speeds)
        for each in variants
        for name in options.targets
    ]
    fitting = [row for row in rows if row.problem is None]
    return Planned(
        rows=tuple(row if row.problem is None else _advised(row, fitting) for row in rows),
        context=min(options.context or _default_context(), shape.context),
        prices_of=str(table().date),
        rates_of=f"{speeds.date}, {speeds.machine}",
    )


def enforce(planned: Planned) -> None:
    """Refuse a model that fits nowhere.

    Raises:
        TooLargeError: no row fits.
    """
    if all(row.problem for row in planned.rows):
        least = min(planned.rows, key=lambda row: row.needed_mib)
        raise TooLargeError(
            f"nothing that was asked for fits: {least.variant} on {least.target}: {least.problem}",
            "fewer --bits, a shorter --context, more --memory, or another --target",
        )


def _advised(row: Row, fitting: Sequence[Row]) -> Row:
    """Say what would fit: the largest file on the same platform, or the same file elsewhere."""
    here = [each for each in fitting if each.target == row.target]
    there = [each.target for each in fitting if each.variant == row.variant]
    found = []
    if here:
        found.append(f"{max(here, key=lambda each: each.size_bytes.value).variant} on {row.target}")
    if there:
        found.append(" or ".join(f"--target {name}" for name in there))
    nothing = "fewer --bits, a shorter --context, or more --memory"
    return replace(row, instead=" or ".join(found) or nothing)


def _target(name: str) -> "Target":
    return name  # type: ignore[return-value]  # checked by the options


def _default_context() -> int:
    from coldpress.serve.options import DEFAULT_CONTEXT

    return DEFAULT_CONTEXT


def _one_of(what: str, names: Sequence[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            raise UsageError(f"no {what} {name!r}", f"one of: {', '.join(known)}")
