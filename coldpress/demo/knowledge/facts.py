"""Load the knowledge set: relations from ``relations.toml``, facts from ``facts/*.csv``.

A *fact* is one key with its one answer; a *relation* is a set of facts said in the same words.
"""

from __future__ import annotations

import csv
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .computed import computed_pairs

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Fact:
    """``key`` asks, ``answer`` answers; ``extra`` fills {x} where a relation needs a third word."""

    key: str
    answer: str
    extra: str = ""

    def say(self, phrasing: str) -> str:
        """Fill a phrasing and give the sentence its capital letter."""
        text = phrasing.format(k=self.key, a=self.answer, x=self.extra)
        return text[0].upper() + text[1:]


@dataclass(frozen=True)
class Relation:
    """Facts that share their phrasings; ``heldout`` phrasings are never trained on."""

    subject: str
    facts: tuple[Fact, ...]
    questions: tuple[str, ...]
    statements: tuple[str, ...]
    heldout: tuple[str, ...]
    avoid: tuple[frozenset[str], ...]
    numeric: bool

    def clash(self, first: str, second: str) -> bool:
        """Whether two answers are too near in meaning to be choices of one question."""
        return first == second or any(first in group and second in group for group in self.avoid)


def load_relations() -> list[Relation]:
    """Every relation in file order."""
    with (HERE / "relations.toml").open("rb") as file:
        return [_relation(spec) for spec in tomllib.load(file)["relation"]]


def _relation(spec: dict[str, Any]) -> Relation:
    facts = _facts(spec)
    return Relation(
        subject=spec["subject"],
        facts=facts,
        questions=tuple(spec["questions"]),
        statements=tuple(spec["statements"]),
        heldout=tuple(spec["heldout"]),
        avoid=tuple(frozenset(group) for group in spec.get("avoid", [])),
        numeric=all(fact.answer.isdigit() for fact in facts),
    )


def _facts(spec: dict[str, Any]) -> tuple[Fact, ...]:
    if "computed" in spec:
        return tuple(Fact(key, answer) for key, answer in computed_pairs(spec["computed"]))
    with (HERE / "facts" / spec["table"]).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    facts = [
        Fact(row[spec["key"]], row[spec["answer"]], row.get(spec.get("extra", ""), ""))
        for row in rows
    ]
    return tuple(fact for fact in facts if fact.answer != "-")  # "-": not asked
