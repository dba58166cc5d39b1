"""Evaluations side by side: a row per file, sorted by size, with what is best for its size."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from coldpress.errors import InputError, UsageError
from coldpress.evaluate import result
from coldpress.evaluate.result import Evaluation
from coldpress.evaluate.stage import Scoring
from coldpress.report import sections
from coldpress.report.paired import ALPHA, Answers, Comparison, compare, holm, scored

_SAMPLES = "samples.jsonl"


@dataclass(frozen=True)
class Row:
    """One file's figures; None where it was not measured. Shares are 0–1, KL is in nats.

    ``accuracy`` is by the report's ``scoring``, ``other_accuracy`` by the other one. ``delta`` is its
    difference from the base's over the same questions, ``delta_low`` to ``delta_high`` the 95 %
    bootstrap interval; ``lost`` and ``gained`` are the questions that only the base or only the file
    answers right. ``p_holm`` is of McNemar's test, adjusted for the number of files; from 0.05 on the
    file is ``indistinguishable`` from the base. ``first_token_s`` is cold where that was measured;
    ``usd_per_million_tokens`` is estimated, on Lambda x86.
    ``best_accuracy`` and ``best_kl``: no smaller or equal file is better. ``recommended``: see
    ``recommend``.
    """

    name: str
    type: str
    method: str
    size_bytes: int
    bits_per_weight: float
    scoring: Scoring
    accuracy: float | None
    accuracy_stderr: float | None
    delta: float | None
    delta_low: float | None
    delta_high: float | None
    lost: int | None
    gained: int | None
    p_holm: float | None
    other_accuracy: float | None
    perplexity: float | None
    bits_per_byte: float | None
    kl_mean: float | None
    kl_p99: float | None
    same_top1: float | None
    prompt_tok_per_s: float | None
    generate_tok_per_s: float | None
    peak_rss_mib: float | None
    load_s: float | None
    first_token_s: float | None
    usd_per_million_tokens: float | None
    is_base: bool
    indistinguishable: bool = False
    best_accuracy: bool = False
    best_kl: bool = False
    recommended: bool = False


@dataclass(frozen=True)
class Compared:
    """Files side by side, the smallest first: where they were evaluated, their rows, who answered what."""

    scoring: Scoring
    folders: tuple[Path, ...]
    rows: tuple[Row, ...]
    evaluations: tuple[Evaluation, ...]
    answers: tuple[Answers, ...]


def rows(evaluations: Sequence[Path], max_loss_points: float = 1.0) -> list[Row]:
    """Read evaluation artifacts and put them side by side, the smallest file first."""
    return list(side_by_side(evaluations, max_loss_points).rows)


def side_by_side(
    evaluations: Sequence[Path], max_loss_points: float = 1.0, seed: int = 0
) -> Compared:
    """Read evaluation artifacts and put them side by side, the smallest file first.

    Args:
        evaluations: the artifacts' folders.
        max_loss_points: points of accuracy that the recommended file may lose to the base.
        seed: draws the bootstrap's samples.

    Raises:
        UsageError: none are given, or they were not taken under the same conditions.
    """
    read = load(evaluations)
    base = base_of(read)
    scoring = scoring_of(read)
    answers = [_answers(folder) for folder in evaluations]
    asked = [scored(each, scoring) for each in answers]
    versus = [None if base is None else compare(asked[base], each, seed) for each in asked]
    found = [
        _row(name, each, scoring, against, is_base=i == base)
        for i, (name, each, against) in enumerate(
            zip(names(evaluations, read), read, versus, strict=True)
        )
    ]
    order = sorted(range(len(found)), key=lambda i: (found[i].size_bytes, found[i].name))
    ordered = mark_best(mark_indistinguishable([found[i] for i in order]))
    return Compared(
        scoring=scoring,
        folders=tuple(evaluations[i] for i in order),
        rows=tuple(recommend(ordered, max_loss_points)),
        evaluations=tuple(read[i] for i in order),
        answers=tuple(answers[i] for i in order),
    )


def load(evaluations: Sequence[Path]) -> list[Evaluation]:
    """Read evaluations that may be compared.

    Raises:
        UsageError: none are given; or other questions, text or profile, naming two that differ.
    """
    if not evaluations:
        raise UsageError("no evaluations are given", "name the folders that evaluate wrote")
    read = [result.read(folder) for folder in evaluations]
    first = read[0]
    for folder, other in zip(evaluations, read, strict=True):
        pairs = {
            "questions": (first.conditions.questions_digest, other.conditions.questions_digest),
            "text": (first.conditions.text_digest, other.conditions.text_digest),
            "profile": (first.profile, other.profile),
            "tasks": (set(first.tasks), set(other.tasks)),
            "tokenizer": (
                first.conditions.vocabulary_digest,
                other.conditions.vocabulary_digest,
            ),
        }
        differing = [what for what, (a, b) in pairs.items() if a != b]
        if differing:
            raise UsageError(
                f"{evaluations[0]} and {folder} differ in {', '.join(differing)}",
                "evaluate both with the same options, questions and text",
            )
    return read


def base_of(read: Sequence[Evaluation]) -> int | None:
    """Which evaluation is the base: the one that was compared with none, the largest of several."""
    candidates = [i for i, each in enumerate(read) if each.kl is None and each.method == "base"]
    candidates = candidates or [i for i, each in enumerate(read) if each.kl is None]
    return max(candidates, key=lambda i: read[i].size_bytes, default=None)


def scoring_of(read: Sequence[Evaluation]) -> Scoring:
    """By which scoring files are compared: the one by which the base answers more; letters in a tie.

    A small model answers letters by chance, and a large one is known by its published letters.
    """
    base = base_of(read)
    asked = read[0 if base is None else base].questions
    scorings: tuple[Scoring, ...] = ("letter", "continuation")
    return max(scorings, key=lambda scoring: asked[scoring].accuracy if scoring in asked else -1.0)


def pareto(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Which points no other beats: at most as large in both coordinates and smaller in one."""
    front = [False] * len(points)
    best = float("inf")
    last: tuple[float, float] | None = None
    for point, i in sorted((point, i) for i, point in enumerate(points)):
        if point[1] < best or point == last:
            front[i] = True
            best, last = point[1], point
    return front


def mark_best(ordered: Sequence[Row]) -> list[Row]:
    """Mark the rows on the Pareto fronts of size and accuracy, and of size and KL."""
    marked = list(ordered)
    lost = {i: -row.accuracy for i, row in enumerate(ordered) if row.accuracy is not None}
    apart = {i: row.kl_mean for i, row in enumerate(ordered) if row.kl_mean is not None}
    for i in _front(ordered, lost):
        marked[i] = replace(marked[i], best_accuracy=True)
    for i in _front(ordered, apart):
        marked[i] = replace(marked[i], best_kl=True)
    return marked


def _front(ordered: Sequence[Row], loss: Mapping[int, float]) -> list[int]:
    points = [(float(ordered[i].size_bytes), value) for i, value in loss.items()]
    return [i for i, best in zip(loss, pareto(points), strict=True) if best]


def mark_indistinguishable(rows: Sequence[Row]) -> list[Row]:
    """Adjust the files' p for their number, and mark those whose answers may be the base's."""
    marked = list(rows)
    tested = [i for i, row in enumerate(rows) if row.p_holm is not None and not row.is_base]
    for i, p in zip(tested, holm([rows[i].p_holm or 0.0 for i in tested]), strict=True):
        marked[i] = replace(rows[i], p_holm=p, indistinguishable=p >= ALPHA)
    return marked


def recommend(ordered: Sequence[Row], max_loss_points: float) -> list[Row]:
    """Mark the smallest file indistinguishable from the base.

    If there is none, the smallest that loses at most ``max_loss_points`` of the base's accuracy.
    """
    files = [i for i, row in enumerate(ordered) if not row.is_base and row.delta is not None]
    same = [i for i in files if ordered[i].indistinguishable]
    near = [i for i in files if 100 * (ordered[i].delta or 0.0) >= -max_loss_points]
    chosen = next(iter(same or near), None)
    return [replace(row, recommended=i == chosen) for i, row in enumerate(ordered)]


def _row(
    name: str, each: Evaluation, scoring: Scoring, versus: Comparison | None, *, is_base: bool
) -> Row:
    asked = each.questions.get(scoring)
    other = each.questions.get("continuation" if scoring == "letter" else "letter")
    cost = sections.costs_of(each)["lambda-x86"]
    return Row(
        name=name,
        type=each.type,
        method=each.method,
        size_bytes=each.size_bytes,
        bits_per_weight=each.bits_per_weight,
        scoring=scoring,
        accuracy=asked.accuracy if asked else None,
        accuracy_stderr=asked.stderr if asked else None,
        delta=versus.difference if versus else None,
        delta_low=versus.low if versus else None,
        delta_high=versus.high if versus else None,
        lost=versus.lost if versus else None,
        gained=versus.gained if versus else None,
        p_holm=versus.p if versus and not is_base else None,
        other_accuracy=other.accuracy if other else None,
        perplexity=each.perplexity.value if each.perplexity else None,
        bits_per_byte=each.perplexity.bits_per_byte if each.perplexity else None,
        kl_mean=each.kl.mean if each.kl else None,
        kl_p99=each.kl.p99 if each.kl else None,
        same_top1=each.kl.same_top1 if each.kl else None,
        prompt_tok_per_s=each.speed.prompt_tok_per_s if each.speed else None,
        generate_tok_per_s=each.speed.generate_tok_per_s if each.speed else None,
        peak_rss_mib=each.speed.peak_rss_mib if each.speed else None,
        load_s=each.speed.load_s if each.speed else None,
        first_token_s=_first_token_s(each),
        usd_per_million_tokens=cost.usd_per_million_tokens if cost else None,
        is_base=is_base,
    )


def _first_token_s(each: Evaluation) -> float | None:
    if each.speed is None:
        return None
    cold = each.speed.cold_ttft_s
    return each.speed.ttft_s if cold is None else cold


def _answers(folder: Path) -> Answers:
    path = folder / _SAMPLES
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        samples = [json.loads(line) for line in lines]
        return {
            (each["scoring"], each["subject"], each["index"]): each["correct"] for each in samples
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} cannot be read: {error}", "evaluate the model again") from error


def names(evaluations: Sequence[Path], read: Sequence[Evaluation]) -> list[str]:
    """Each evaluation's name, with its folder's where two have the same."""
    count = Counter(each.name for each in read)
    return [
        each.name if count[each.name] == 1 else f"{each.name} ({folder.name})"
        for folder, each in zip(evaluations, read, strict=True)
    ]
