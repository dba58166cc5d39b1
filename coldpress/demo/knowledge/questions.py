"""Turn facts into four-way questions in MMLU's CSV layout: question, A, B, C, D, letter."""

# ruff: noqa: S311 - seeded on purpose: equal seeds give equal files
from __future__ import annotations

import csv
import random
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path

from .facts import Fact, Relation

LETTERS = "ABCD"
DEV_ROWS = 5
TEST_ROWS = 84  # at most, per subject
FEW_FACTS = 60  # a subject with fewer facts asks each one in two held-out phrasings
LOOKALIKES = 7  # wrong choices are drawn from so many, the most like the right one
SEED = 41


@dataclass(frozen=True)
class Question:
    """One question; ``choices`` are A to D in order and ``letter`` names the right one."""

    text: str
    choices: tuple[str, ...]
    letter: str

    def row(self) -> list[str]:
        """The CSV row."""
        return [self.text, *self.choices, self.letter]


def distractors(relation: Relation, fact: Fact, rng: random.Random) -> list[str]:
    """Draw three wrong answers of the same relation; numbers are drawn from the nearest ones."""
    pool = sorted({other.answer for other in relation.facts} - {fact.answer})
    if relation.numeric:
        pool = _nearest_numbers(pool, fact.answer)[:10]
    return _draw(relation, fact, pool, rng)


def hard_distractors(relation: Relation, fact: Fact, rng: random.Random) -> list[str]:
    """Draw three of the wrong answers that look most like the right one.

    Choices that are easy to tell apart would hide what quantization costs.
    """
    pool = sorted({other.answer for other in relation.facts} - {fact.answer})
    if relation.numeric:
        pool = _nearest_numbers(pool, fact.answer)
    else:
        pool.sort(key=lambda answer: -SequenceMatcher(None, answer, fact.answer).ratio())
    return _draw(relation, fact, pool[:LOOKALIKES], rng)


def _nearest_numbers(pool: list[str], answer: str) -> list[str]:
    return sorted(pool, key=lambda other: (abs(int(other) - int(answer)), int(other)))


def _draw(relation: Relation, fact: Fact, pool: list[str], rng: random.Random) -> list[str]:
    rng.shuffle(pool)
    chosen: list[str] = []
    for answer in pool:
        if not any(relation.clash(answer, other) for other in [fact.answer, *chosen]):
            chosen.append(answer)
        if len(chosen) == 3:
            return chosen
    raise ValueError(f"{relation.subject}: no three wrong answers for {fact.key!r}")


def ask(relation: Relation, fact: Fact, text: str, letter: str, rng: random.Random) -> Question:
    """Ask one fact with the right answer at ``letter``."""
    choices = hard_distractors(relation, fact, rng)
    choices.insert(LETTERS.index(letter), fact.answer)
    return Question(text, tuple(choices), letter)


def subject_questions(relations: list[Relation]) -> tuple[list[Question], list[Question]]:
    """Dev and test questions of one subject; no fact is in both, letters are balanced."""
    subject = relations[0].subject
    rng = random.Random(f"{SEED} {subject}")
    facts = [(relation, fact) for relation in relations for fact in relation.facts]
    rng.shuffle(facts)
    phrasings = 2 if len(facts) < FEW_FACTS else 1
    dev = [(rel, fact, rng.choice(rel.heldout)) for rel, fact in facts[:DEV_ROWS]]
    test: list[tuple[Relation, Fact, str]] = []
    for rel, fact in facts[DEV_ROWS:]:
        count = min(phrasings, len(rel.heldout))
        test += [(rel, fact, phrasing) for phrasing in rng.sample(rel.heldout, count)]
    return _balanced(dev, rng), _balanced(test[:TEST_ROWS], rng)


def _balanced(items: list[tuple[Relation, Fact, str]], rng: random.Random) -> list[Question]:
    letters = [LETTERS[i % 4] for i in range(len(items))]
    rng.shuffle(letters)
    return [
        ask(relation, fact, fact.say(phrasing), letter, rng)
        for (relation, fact, phrasing), letter in zip(items, letters, strict=True)
    ]


def by_subject(relations: list[Relation]) -> dict[str, list[Relation]]:
    """Group relations by subject, subjects in alphabetical order."""
    subjects = sorted({relation.subject for relation in relations})
    return {s: [relation for relation in relations if relation.subject == s] for s in subjects}


def write_questions(relations: list[Relation], out: Path) -> None:
    """Write ``out/dev/<subject>_dev.csv`` and ``out/test/<subject>_test.csv``."""
    for subject, group in by_subject(relations).items():
        dev, test = subject_questions(group)
        _write_csv(dev, out / "dev" / f"{subject}_dev.csv")
        _write_csv(test, out / "test" / f"{subject}_test.csv")


def _write_csv(questions: list[Question], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows(question.row() for question in questions)


def read_questions(path: Path) -> list[Question]:
    """Read one headerless CSV file back."""
    with path.open(newline="", encoding="utf-8") as file:
        return [Question(row[0], tuple(row[1:5]), row[5]) for row in csv.reader(file)]
