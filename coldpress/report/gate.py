"""The gate: a file's measured figures held against limits, so that a CI job fails when one is broken.

A limit holds against the figure itself. The interval of a paired difference is printed and not counted:
a few hundred questions leave it wider than any drop worth a limit, and a gate that asked for its far end
would fail for want of questions, not for want of quality.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from coldpress import artifact
from coldpress.errors import GateError, InputError, UsageError
from coldpress.evaluate import result
from coldpress.report.compare import Row, rows
from coldpress.validation import first_problem

_REPORT = "report.json"
# Limit → (what it is called, what to do where its figure is missing).
_LIMITS = {
    "max_size": ("bytes", "evaluate the file again"),
    "max_kl": ("KL, nats per token", "evaluate it with --base, on a text"),
    "max_mmlu_drop": (
        "drop from the base, points",
        "report on it with its base, both evaluated with --questions",
    ),
    "max_perplexity_ratio": (
        "perplexity over the base's",
        "report on it with its base, both evaluated on a text",
    ),
    "min_tok_s": ("generated tokens/s", "evaluate it with its speed"),
}


@dataclass(frozen=True)
class Limits:
    """What a file must keep; None is not asked.

    Args:
        max_kl: mean KL divergence from the base, nats per token.
        max_mmlu_drop: points of accuracy below the base's, over the same questions.
        max_size: bytes of the file, ``1.9GB`` or ``700MiB``.
        min_tok_s: generated tokens per second.
        max_perplexity_ratio: perplexity divided by the base's.
    """

    max_kl: float | None = None
    max_mmlu_drop: float | None = None
    max_size: str | None = None
    min_tok_s: float | None = None
    max_perplexity_ratio: float | None = None

    def __post_init__(self) -> None:
        given = {each.name: getattr(self, each.name) for each in fields(self)}
        if all(value is None for value in given.values()):
            raise UsageError("no limit is given", "add one, such as --max-kl 0.05")
        for name, value in given.items():
            if isinstance(value, (int, float)) and not (math.isfinite(value) and value >= 0):
                raise UsageError(f"--{name.replace('_', '-')} is {value}", "a number, 0 or more")
        self.bounds()

    def bounds(self) -> dict[str, float]:
        """Limit → its number, of those that are given."""
        from coldpress.quantize.budget import parse_size

        given = {
            "max_size": None if self.max_size is None else float(parse_size(self.max_size)),
            "max_kl": self.max_kl,
            "max_mmlu_drop": self.max_mmlu_drop,
            "max_perplexity_ratio": self.max_perplexity_ratio,
            "min_tok_s": self.min_tok_s,
        }
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True)
class Check:
    """One limit and one file; ``interval_95`` is the figure's 95 % interval, if known."""

    name: str
    limit: str
    bound: float
    measured: float
    interval_95: tuple[float, float] | None
    ok: bool


@dataclass(frozen=True)
class Gated:
    """Every check that was made."""

    path: str
    holds: bool
    checks: tuple[Check, ...]


def check(path: Path, limits: Limits, only: Sequence[str] = ()) -> Gated:
    """Hold files' figures against limits.

    Args:
        path: an artifact of report or of evaluate, or a run's folder.
        only: names of rows to check; by default what the run ships, else what the report recommends.

    Raises:
        InputError: no report or evaluation there; a figure that a limit is for was not measured.
        UsageError: a name is of no row.
    """
    table = _read(path)
    wanted = [_named(table, name) for name in only] or [_chosen(path, table)]
    base = next((row for row in table if row.is_base), None)
    checks = tuple(
        _check(row, base, limit, bound)
        for row in wanted
        for limit, bound in limits.bounds().items()
    )
    return Gated(str(path), all(each.ok for each in checks), checks)


def enforce(gated: Gated) -> None:
    """Raise when a limit is broken.

    Raises:
        GateError: naming what is broken.
    """
    broken = [f"{each.name}: {_LIMITS[each.limit][0]}" for each in gated.checks if not each.ok]
    if broken:
        raise GateError(
            f"{len(broken)} of {len(gated.checks)} limits broken: {'; '.join(broken)}",
            "ship another file, or raise the limit",
        )


def lines(gated: Gated) -> list[str]:
    """One line per check: file, figure, limit, what was measured, ok or broken."""
    cells = [_cells(each) for each in gated.checks]
    widths = [max(len(row[i]) for row in cells) for i in range(5)]
    return [
        "  "
        + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]


def _cells(each: Check) -> tuple[str, str, str, str, str]:
    sign = "≥" if each.limit.startswith("min") else "≤"
    form = ",.0f" if each.limit == "max_size" else ".4g"
    interval = "" if each.interval_95 is None else " [{:.2g}, {:.2g}]".format(*each.interval_95)
    return (
        each.name,
        _LIMITS[each.limit][0],
        f"{sign} {each.bound:{form}}",
        f"{each.measured:{form}}{interval}",
        "ok" if each.ok else "broken",
    )


def _check(row: Row, base: Row | None, limit: str, bound: float) -> Check:
    measured = _measured(row, base, limit)
    what, hint = _LIMITS[limit]
    if measured is None:
        raise InputError(f"{row.name} has no figure for {what}", hint)
    if not math.isfinite(measured):
        raise InputError(f"{row.name}'s {what} is {measured}", "evaluate the file again")
    near, to = round(measured, 9), round(bound, 9)  # 100 × 0.007 is above 0.7 by a rounding
    return Check(
        name=row.name,
        limit=limit,
        bound=bound,
        measured=measured,
        interval_95=_interval(row) if limit == "max_mmlu_drop" else None,
        ok=near >= to if limit.startswith("min") else near <= to,
    )


def _interval(row: Row) -> tuple[float, float] | None:
    """Of the drop in points: a loss counts up."""
    if row.delta_low is None or row.delta_high is None:
        return None
    return 0.0 - 100 * row.delta_high, 0.0 - 100 * row.delta_low


def _measured(row: Row, base: Row | None, limit: str) -> float | None:
    match limit:
        case "max_size":
            return row.size_bytes
        case "max_kl":
            return row.kl_mean
        case "max_mmlu_drop":
            return None if row.delta is None else 0.0 - 100 * row.delta
        case "max_perplexity_ratio":
            if base is None or not base.perplexity or row.perplexity is None:
                return None
            return row.perplexity / base.perplexity
        case _:
            return row.generate_tok_per_s


def _read(path: Path) -> list[Row]:
    within = path / "report"
    if not (path / artifact.MANIFEST).is_file() and (within / artifact.MANIFEST).is_file():
        return _report(within)
    if not path.exists():
        raise InputError(f"{path} does not exist", "check the path")
    match artifact.verify(path).stage:
        case "report":
            return _report(path)
        case "evaluate":
            # Alone it is compared with nothing, whatever it was measured against.
            (row,) = rows([path])
            return [replace(row, delta=None, delta_low=None, delta_high=None, is_base=False)]
        case other:
            raise InputError(
                f"{path} is an artifact of {other}", "give one of report or evaluate, or a run"
            )


def _report(folder: Path) -> list[Row]:
    from pydantic import TypeAdapter, ValidationError

    artifact.verify(folder)
    path = folder / _REPORT
    try:
        return TypeAdapter(list[Row]).validate_python(json.loads(path.read_bytes())["rows"])
    except ValidationError as error:
        raise InputError(
            f"{path} is not a report: {first_problem(error)}", "write the report again"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not a report: {error}", "write the report again") from error


def _chosen(path: Path, table: Sequence[Row]) -> Row:
    """What a run ships, else what the report recommends, else the only row."""
    if len(table) == 1:
        return table[0]
    recommended = next((row for row in table if row.recommended), None)
    chosen = _shipped(path, table) or recommended
    if chosen is None:
        known = ", ".join(row.name for row in table)
        raise InputError(f"{path} recommends no file", f"name one with --only: {known}")
    return chosen


def _shipped(run: Path, table: Sequence[Row]) -> Row | None:
    """The row of the file that a run's checkpoint was made from; None without a checkpoint."""
    if not (run / "checkpoint" / artifact.MANIFEST).is_file():
        return None
    digest = artifact.read(run / "checkpoint").inputs.get("gguf")
    for manifest in sorted(run.glob(f"evaluate/*/{artifact.MANIFEST}")):
        if artifact.read(manifest.parent).inputs.get("gguf") == digest:
            name = result.read(manifest.parent).name
            return _named(table, name, f"{name} ({manifest.parent.name})")
    raise InputError(
        f"{run} holds no evaluation of the file that its checkpoint is made from",
        "evaluate it, or name a row with --only",
    )


def _named(table: Sequence[Row], *names: str) -> Row:
    found = next((row for row in table if row.name in names), None)
    if found is None:
        known = ", ".join(row.name for row in table)
        raise UsageError(f"no row {names[0]!r}", f"one of: {known}")
    return found
