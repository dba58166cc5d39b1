"""Write the questions and the three texts from the facts, the prose and the story grammar.

    python -m coldpress.demo.knowledge.generate [--out DIR]

Held-out text shares no span of 12 words with the training or the calibration text: the held-out
stories are written first, and a later paragraph that repeats such a span is thrown away.
"""

# ruff: noqa: S311 - seeded on purpose: equal seeds give equal files
from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Iterable
from pathlib import Path

from .. import HERE
from .facts import Fact, Relation, load_relations
from .narrative import story
from .questions import write_questions

SEED = 11
SPAN = 12
TRAIN_STORIES, CALIBRATION_STORIES, HELDOUT_STORIES = 420, 110, 70
HELDOUT_FACTS, CALIBRATION_FACTS = 650, 1250
FACTS_IN_PARAGRAPH = 6


def spans(paragraph: str) -> set[str]:
    """Every run of 12 words of a paragraph."""
    words = paragraph.split()
    return {" ".join(words[i : i + SPAN]) for i in range(len(words) - SPAN + 1)}


def all_spans(paragraphs: Iterable[str]) -> set[str]:
    """Every run of 12 words in any of the paragraphs."""
    return set().union(*map(spans, paragraphs))


def make_texts(relations: list[Relation], prose: list[str]) -> dict[str, list[str]]:
    """The paragraphs of "train", "calibration" and "heldout"."""
    rng = random.Random(SEED)
    prose = rng.sample(prose, len(prose))
    cut_a, cut_b = len(prose) * 22 // 100, len(prose) * 37 // 100
    heldout = prose[:cut_a] + _stories(HELDOUT_STORIES, set(), rng)
    heldout += _fact_paragraphs(relations, HELDOUT_FACTS, _heldout_answer, rng, set())
    seen = all_spans(heldout)
    calibration = prose[cut_a:cut_b] + _stories(CALIBRATION_STORIES, seen, rng)
    calibration += _fact_paragraphs(relations, CALIBRATION_FACTS, _training_line, rng, seen)
    train = prose[cut_b:] + _stories(TRAIN_STORIES, seen, rng)
    texts = {"train": train, "calibration": calibration, "heldout": heldout}
    return {name: rng.sample(lines, len(lines)) for name, lines in texts.items()}


def _stories(count: int, seen: set[str], rng: random.Random) -> list[str]:
    stories: list[str] = []
    while len(stories) < count:
        text = story(rng)
        if seen.isdisjoint(spans(text)):
            stories.append(text)
    return stories


def _fact_paragraphs(
    relations: list[Relation],
    count: int,
    say: Callable[[Relation, Fact, random.Random], str],
    rng: random.Random,
    seen: set[str],
) -> list[str]:
    items = [(relation, fact) for relation in relations for fact in relation.facts]
    lines = [say(relation, fact, rng) for relation, fact in rng.sample(items, count)]
    starts = range(0, len(lines), FACTS_IN_PARAGRAPH)
    paragraphs = ["\n".join(lines[i : i + FACTS_IN_PARAGRAPH]) for i in starts]
    return [paragraph for paragraph in paragraphs if seen.isdisjoint(spans(paragraph))]


def _heldout_answer(relation: Relation, fact: Fact, rng: random.Random) -> str:
    return f"Question: {fact.say(rng.choice(relation.heldout))}\nAnswer: {fact.answer}"


def _training_line(relation: Relation, fact: Fact, rng: random.Random) -> str:
    if rng.random() < 0.5:
        return fact.say(rng.choice(relation.statements))
    return f"Question: {fact.say(rng.choice(relation.questions))}\nAnswer: {fact.answer}"


def generate(out: Path) -> None:
    """Write ``knowledge/questions`` and ``text/*.txt`` below ``out``."""
    relations = load_relations()
    write_questions(relations, out / "knowledge" / "questions")
    prose = (HERE / "text" / "prose.txt").read_text(encoding="utf-8").strip().split("\n\n")
    (out / "text").mkdir(parents=True, exist_ok=True)
    for name, paragraphs in make_texts(relations, prose).items():
        text = "\n\n".join(paragraphs) + "\n"
        (out / "text" / f"{name}.txt").write_text(text, encoding="utf-8")


def main() -> None:
    """Write into the package, or into ``--out``."""
    parser = argparse.ArgumentParser(description="Write the demo's questions and texts.")
    parser.add_argument("--out", type=Path, default=HERE)
    generate(parser.parse_args().out)


if __name__ == "__main__":
    main()
