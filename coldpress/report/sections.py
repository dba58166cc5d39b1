"""The report's tables beside the main one: pairs of files, MMLU's categories, costs, starts, rates."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from coldpress import cost
from coldpress.cost import Cost, Rate
from coldpress.evaluate.result import Evaluation, SpeedPoint
from coldpress.platforms import Platform
from coldpress.report.categories import Share, shares
from coldpress.report.paired import ALPHA, Answers, Comparison, compare, holm


@dataclass(frozen=True)
class Pair:
    """``name`` against a smaller file, ``reference``; ``p_holm`` is adjusted for all the pairs."""

    name: str
    reference: str
    comparison: Comparison
    p_holm: float
    indistinguishable: bool


@dataclass(frozen=True)
class Categories:
    """A file's share of right answers in each of MMLU's categories and overall."""

    name: str
    scoring: str
    shares: dict[str, Share]


@dataclass(frozen=True)
class TaskLine:
    """One metric of an lm-eval task or group, as lm-eval names it, and each file's value and error."""

    task: str
    metric: str
    n: int | None
    values: tuple[float | None, ...]
    stderrs: tuple[float | None, ...]


@dataclass(frozen=True)
class Costs:
    """What a file costs on each platform; None where no instance is large enough."""

    name: str
    peak_rss_mib: float
    on: dict[Platform, Cost | None]


@dataclass(frozen=True)
class Start:
    """Seconds to load a file and to its first token, with and without it in the page cache."""

    name: str
    load_s: float
    ttft_s: float
    cold_load_s: float | None
    cold_ttft_s: float | None
    cold_cached_share: float


@dataclass(frozen=True)
class Point:
    """A file's rates at one point of the grid."""

    name: str
    rates: SpeedPoint


def pairs(names: Sequence[str], answers: Sequence[Answers], seed: int) -> tuple[Pair, ...]:
    """Every file against every one before it."""
    found = [
        (names[i], names[j], comparison)
        for i in range(len(names))
        for j in range(i)
        if (comparison := compare(answers[j], answers[i], seed)) is not None
    ]
    adjusted = holm([comparison.p for _, _, comparison in found])
    return tuple(Pair(*each, p, p >= ALPHA) for each, p in zip(found, adjusted, strict=True))


def categories(names: Sequence[str], answers: Sequence[Answers]) -> tuple[Categories, ...]:
    """Every file's shares by scoring, if the questions are MMLU's."""
    return tuple(
        Categories(name, scoring, found)
        for scoring in ("letter", "continuation")
        for name, of in zip(names, answers, strict=True)
        if (found := shares(of, scoring))
    )


def tasks(read: Sequence[Evaluation]) -> tuple[TaskLine, ...]:
    """Every metric of every lm-eval task that was asked."""
    known = {
        (task, metric): found.n
        for each in read
        for task, found in each.tasks.items()
        for metric in found.metrics
        if "_stderr," not in metric
    }
    return tuple(
        TaskLine(
            task=task,
            metric=metric.removesuffix(",none"),
            n=n,
            values=_values(read, task, metric),
            stderrs=_values(read, task, metric.replace(",", "_stderr,", 1)),
        )
        for (task, metric), n in sorted(known.items())
    )


def _values(read: Sequence[Evaluation], task: str, metric: str) -> tuple[float | None, ...]:
    return tuple(
        each.tasks[task].metrics.get(metric) if task in each.tasks else None for each in read
    )


def costs(names: Sequence[str], read: Sequence[Evaluation]) -> tuple[Costs, ...]:
    """Every file's costs, of those whose speed was measured."""
    return tuple(
        Costs(name, each.speed.peak_rss_mib, costs_of(each))
        for name, each in zip(names, read, strict=True)
        if each.speed is not None
    )


def costs_of(each: Evaluation) -> dict[Platform, Cost | None]:
    """A file's cost per platform, the cheapest over the thread counts that were measured."""
    platforms: tuple[Platform, ...] = get_args(Platform)
    speed = each.speed
    if speed is None:
        return dict.fromkeys(platforms)
    rates = [Rate(each.conditions.threads, speed.generate_tok_per_s)]
    shortest = min((point.context_tokens for point in speed.grid), default=0)
    rates += [
        Rate(point.threads, point.generate_tok_per_s)
        for point in speed.grid
        if point.context_tokens == shortest
    ]
    return {name: cost.cheapest(name, speed.peak_rss_mib, rates) for name in platforms}


def starts(names: Sequence[str], read: Sequence[Evaluation]) -> tuple[Start, ...]:
    """Every file's start, of those whose speed was measured."""
    return tuple(
        Start(
            name=name,
            load_s=each.speed.load_s,
            ttft_s=each.speed.ttft_s,
            cold_load_s=each.speed.cold_load_s,
            cold_ttft_s=each.speed.cold_ttft_s,
            cold_cached_share=each.speed.cold_cached_share,
        )
        for name, each in zip(names, read, strict=True)
        if each.speed is not None
    )


def grid(names: Sequence[str], read: Sequence[Evaluation]) -> tuple[Point, ...]:
    """Every point of every file's grid, where one was asked for."""
    return tuple(
        Point(name, point)
        for name, each in zip(names, read, strict=True)
        if each.speed is not None
        for point in each.speed.grid
    )
