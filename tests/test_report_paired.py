"""Paired statistics against scipy, against slow loops and against what must always hold."""

import random
from fractions import Fraction
from itertools import product
from math import comb, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from coldpress.report import categories
from coldpress.report.paired import (
    Answers,
    Comparison,
    bootstrap,
    compare,
    holm,
    mcnemar,
    paired,
    wilson,
)
from coldpress.report.sections import pairs

_counts = st.integers(0, 60)
_answers = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=80)


def of(right: list[bool]) -> Answers:
    return {("continuation", "s", i): each for i, each in enumerate(right)}


@given(_counts, _counts)
def test_mcnemar_is_the_binomial_test(lost: int, gained: int) -> None:
    expected = binomtest(lost, lost + gained).pvalue if lost + gained else 1.0
    assert mcnemar(lost, gained) == pytest.approx(expected, rel=1e-9)
    assert mcnemar(lost, gained) == mcnemar(gained, lost)


def test_mcnemar_by_hand_and_of_all_of_mmlu() -> None:
    # 1 of 7 either way: 2 (1 + 7) / 128.
    assert mcnemar(1, 6) == float(Fraction(2 * (comb(7, 0) + comb(7, 1)), 2**7)) == 0.125
    assert mcnemar(0, 0) == mcnemar(5, 5) == 1
    assert mcnemar(3500, 3700) == pytest.approx(binomtest(3500, 7200).pvalue, rel=1e-9)


@pytest.mark.parametrize(("lost", "gained"), [(700, 400), (150, 150), (40, 900)])
def test_the_bootstrap_is_the_normal_interval_on_many_questions(lost: int, gained: int) -> None:
    n = 14_042
    share = (gained - lost) / n
    half = 1.96 * sqrt(((lost + gained) / n - share**2) / n)
    low, high = bootstrap(n, lost, gained)
    assert (low, high) == (
        pytest.approx(share - half, abs=0.03 * 2 * half),
        pytest.approx(share + half, abs=0.03 * 2 * half),
    )


def test_the_bootstrap_is_the_slow_one() -> None:
    """Questions drawn one by one, with replacement; the same interval within its own noise."""
    each = np.array([-1] * 36 + [1] * 12 + [0] * 352)
    drawn = np.random.default_rng(1).choice(each, size=(20_000, len(each))).mean(axis=1)
    expected = np.percentile(drawn, (2.5, 97.5))
    assert bootstrap(400, 36, 12) == pytest.approx(expected, abs=0.003)


@given(_answers)
def test_swapping_the_files_mirrors_everything(asked: list[tuple[bool, bool]]) -> None:
    first, second = of([a for a, _ in asked]), of([b for _, b in asked])
    one, two = compare(first, second), compare(second, first)
    assert one is not None and two is not None
    assert two == Comparison(
        one.n, one.gained, one.lost, -one.difference, -one.high, -one.low, one.p
    )
    assert one.low <= one.difference + 1e-12 and one.difference <= one.high + 1e-12
    assert one.difference == pytest.approx(sum(b - a for a, b in asked) / len(asked))


def test_only_questions_asked_of_both_count() -> None:
    base = of([True, True, False, False])
    other = {
        **of([True, False, True, True]),
        ("letter", "s", 0): False,
        ("continuation", "t", 0): True,
    }
    found = compare(base, other)
    assert found is not None and (found.n, found.lost, found.gained) == (4, 1, 2)
    assert compare(base, {}) is None
    assert compare(base, other, seed=1) == compare(base, other, seed=1)


def test_paired_difference_is_the_slow_loop() -> None:
    base = of([i % 4 != 0 for i in range(40)])
    other = {**of([i % 5 != 0 for i in range(40)]), ("letter", "s", 0): True}
    each = [int(i % 5 != 0) - int(i % 4 != 0) for i in range(40)]
    mean = sum(each) / 40
    spread = (sum((x - mean) ** 2 for x in each) / 39) ** 0.5
    assert paired(base, other) == pytest.approx((mean, 1.96 * spread / 40**0.5))
    assert paired(base, {}) == (None, None)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=12), st.floats(0.001, 0.5))
def test_holm_rejects_what_stepping_down_rejects(ps: list[float], alpha: float) -> None:
    rejected: set[int] = set()
    for rank, i in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        if (len(ps) - rank) * ps[i] >= alpha:
            break
        rejected.add(i)
    assert {i for i, p in enumerate(holm(ps)) if p < alpha} == rejected


@given(st.integers(0, 500), st.integers(1, 500))
def test_wilson_is_scipys(right: int, n: int) -> None:
    right = min(right, n)
    expected = binomtest(right, n).proportion_ci(0.95, method="wilson")
    # scipy's normal quantile has more digits than 1.96.
    assert wilson(right, n) == pytest.approx((expected.low, expected.high), abs=1e-4)


def test_every_pair_is_there_once_against_the_smaller_file() -> None:
    draw = random.Random(0)
    answers = [of([draw.random() < share for _ in range(400)]) for share in (0.5, 0.9, 0.9)]
    found = pairs(["a", "b", "c"], answers, seed=0)
    assert [(each.name, each.reference) for each in found] == [("b", "a"), ("c", "a"), ("c", "b")]
    assert [each.indistinguishable for each in found] == [False, False, True]
    assert [each.p_holm for each in found] == holm([each.comparison.p for each in found])


def test_the_categories_are_lm_evals() -> None:
    """Each subject's task names its category in a tag: the map that lm-eval's groups are made of."""
    from pathlib import Path

    import lm_eval
    import yaml

    folder = Path(lm_eval.__file__).parent / "tasks/mmlu/default"
    tags = {}
    for path in folder.glob("mmlu_*.yaml"):
        task = yaml.safe_load(path.read_text())
        tag = task["tag"].removeprefix("mmlu_").removesuffix("_tasks")
        tags[path.stem.removeprefix("mmlu_")] = tag
    ours = {
        subject: name.lower().replace(" ", "_")
        for name, subjects in categories.CATEGORIES.items()
        for subject in subjects
    }
    assert len(ours) == 57
    assert ours == tags


def test_a_category_is_its_questions() -> None:
    answers = {
        (scoring, subject, i): i < n
        for scoring, (subject, n) in product(
            ("continuation", "letter"), (("anatomy", 3), ("virology", 1), ("nutrition", 0))
        )
        for i in range(4)
    }
    found = categories.shares(answers, "letter")
    assert {name: (each.accuracy, each.n) for name, each in found.items()} == {
        "STEM": (0.75, 4),
        "other": (0.125, 8),
        "overall": (4 / 12, 12),
    }
    assert (found["other"].low, found["other"].high) == wilson(1, 8)
    assert categories.shares(answers, "telepathy") == {}
    assert categories.shares({**answers, ("letter", "capitals", 0): True}, "letter") == {}
