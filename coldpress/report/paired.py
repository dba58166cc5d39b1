"""Two files, the same questions: is one better, and by how much?

Most questions are answered alike by both, so what counts is where they differ: the questions only
one answers right. Two separate error bars know nothing of that and hide a loss of a point.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

# (scoring, subject, index) → answered right.
Answers = Mapping[tuple[str, str, int], bool]

ALPHA = 0.05
_NORMAL_95 = 1.96
_PERCENTILES = (2.5, 97.5)
_RESAMPLES = 10_000


@dataclass(frozen=True)
class Comparison:
    """A file against a reference over ``n`` questions; shares are 0–1.

    ``lost``: only the reference was right; ``gained``: only the file. ``low`` to ``high`` is the
    95 % bootstrap interval of ``difference``; ``p`` is of McNemar's exact test.
    """

    n: int
    lost: int
    gained: int
    difference: float
    low: float
    high: float
    p: float


def compare(reference: Answers, answers: Answers, seed: int = 0) -> Comparison | None:
    """Compare two files' answers to the questions that both were asked; None without any."""
    pairs = [(reference[key], right) for key, right in answers.items() if key in reference]
    if not pairs:
        return None
    n = len(pairs)
    lost = sum(before and not after for before, after in pairs)
    gained = sum(after and not before for before, after in pairs)
    low, high = bootstrap(n, lost, gained, seed=seed)
    return Comparison(n, lost, gained, (gained - lost) / n, low, high, mcnemar(lost, gained))


def scored(answers: Answers, scoring: str) -> Answers:
    """The answers of one scoring."""
    return {key: right for key, right in answers.items() if key[0] == scoring}


def mcnemar(lost: int, gained: int) -> float:
    """The exact two-sided p of McNemar's test: a fair coin for each question that differs.

    Source: McNemar 1947, Psychometrika 12; exact form, the binomial test of ``lost`` in both.
    """
    n = lost + gained
    term, tail = 1, 0  # comb(n, k) and their sum, as whole numbers
    for k in range(min(lost, gained) + 1):
        tail += term
        term = term * (n - k) // (k + 1)
    return min(1.0, 2 * tail / (1 << n))


def bootstrap(
    n: int, lost: int, gained: int, *, seed: int = 0, resamples: int = _RESAMPLES
) -> tuple[float, float]:
    """The 95 % percentile interval of the mean difference over resampled questions.

    A question counts −1, 0 or 1, so drawing n of them with replacement is drawing how many of each
    kind: a multinomial. Both orders of the two files are drawn and averaged, so that swapping them
    mirrors the interval exactly.

    Source: Efron 1979, Annals of Statistics 7; percentile interval.
    """
    import numpy as np

    def percentiles(lost: int, gained: int) -> tuple[float, float]:
        shares = np.array([lost, gained, n - lost - gained]) / n
        drawn = np.random.default_rng(seed).multinomial(n, shares, size=resamples)
        low, high = np.percentile((drawn[:, 1] - drawn[:, 0]) / n, _PERCENTILES)
        return float(low), float(high)

    (low, high), (low_swapped, high_swapped) = percentiles(lost, gained), percentiles(gained, lost)
    return (low - high_swapped) / 2, (high - low_swapped) / 2


def holm(ps: Sequence[float]) -> list[float]:
    """Each p adjusted for there being several: all that stay below α are wrong with at most α.

    Source: Holm 1979, Scandinavian Journal of Statistics 6.
    """
    adjusted = [0.0] * len(ps)
    largest = 0.0
    for rank, i in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[i]))
        adjusted[i] = largest
    return adjusted


def wilson(right: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share of ``n``; unlike ± one that is never outside 0–1.

    Source: Wilson 1927, Journal of the American Statistical Association 22.
    """
    z2 = _NORMAL_95**2
    share = right / n
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _NORMAL_95 * sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return max(0.0, middle - half), min(1.0, middle + half)


def paired(base: Answers, answers: Answers) -> tuple[float | None, float | None]:
    """Accuracy minus the base's over the same questions, and half its 95 % normal interval."""
    differences = [right - base[key] for key, right in answers.items() if key in base]
    n = len(differences)
    if n < 2:
        return None, None
    mean = sum(differences) / n
    variance = sum((each - mean) ** 2 for each in differences) / (n - 1)
    return mean, _NORMAL_95 * sqrt(variance / n)
