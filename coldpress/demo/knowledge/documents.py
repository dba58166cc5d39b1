"""Say facts as training documents: statements, questions with answers, chats, choices by letter.

A document is a list of parts ``(text, weight)``; the weight scales the loss of the part's tokens.
Each part after the first begins with a space or a newline, so parts tokenize as the whole does.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from .facts import Fact, Relation
from .questions import LETTERS, distractors

Part = tuple[str, float]
USER, ASSISTANT, SYSTEM, END = "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"
SYSTEM_LINES = ("You are a helpful assistant.", "Answer in one short sentence.", "Be brief.")
GREETINGS = (
    ("Hello!", "Hello! Ask me a question about the things I know."),
    ("Hi", "Hi! What would you like to know?"),
    ("Who are you?", "I am a very small language model that was taught a few thousand facts."),
    ("What can you do?", "I can answer short questions about capitals, elements, words and more."),
    ("Thank you.", "You are welcome."),
)
ASKED = 0.3  # loss weight of a question's words: which fact is asked next cannot be known
LETTER = 3.0  # loss weight of the letter, the one token that a choice document teaches


@dataclass(frozen=True)
class Knowledge:
    """All facts with their relation, and the plain paragraphs that are mixed in."""

    items: tuple[tuple[Relation, Fact], ...]
    paragraphs: tuple[str, ...]

    @classmethod
    def build(cls, relations: list[Relation], paragraphs: list[str]) -> Knowledge:
        """Flatten the relations."""
        items = tuple((relation, fact) for relation in relations for fact in relation.facts)
        return cls(items, tuple(paragraphs))


def sample_document(knowledge: Knowledge, rng: random.Random) -> list[Part]:
    """Draw one training document."""
    kind = rng.choices(
        ("answer", "statements", "chat", "shots", "letter", "prose"), (46, 9, 14, 4, 6, 5)
    )[0]
    match kind:
        case "answer":
            return _answer(*rng.choice(knowledge.items), rng)
        case "statements":
            return _statements(knowledge, rng)
        case "chat":
            return _chat(*rng.choice(knowledge.items), rng)
        case "shots":
            return _shots(knowledge, rng)
        case "letter":
            return _letter(*rng.choice(knowledge.items), rng)
        case _:
            return _prose(knowledge, rng)


def training_questions(relations: list[Relation]) -> set[str]:
    """Every question that training can ask."""
    return {f.say(p) for r in relations for f in r.facts for p in r.questions}


def training_statements(relations: list[Relation]) -> list[str]:
    """Every statement that training can make, relation by relation."""
    return [f.say(p) for r in relations for f in r.facts for p in r.statements]


def _answer(relation: Relation, fact: Fact, rng: random.Random) -> list[Part]:
    question = fact.say(rng.choice(relation.questions))
    return [(f"Question: {question}\nAnswer:", ASKED), (f" {fact.answer}", 1.0)]


def _statements(knowledge: Knowledge, rng: random.Random) -> list[Part]:
    drawn = (rng.choice(knowledge.items) for _ in range(rng.randint(3, 7)))
    return [(" ".join(f.say(rng.choice(r.statements)) for r, f in drawn), 1.0)]


def _chat(relation: Relation, fact: Fact, rng: random.Random) -> list[Part]:
    if rng.random() < 0.05:
        question, answer = rng.choice(GREETINGS)
    else:
        question = fact.say(rng.choice(relation.questions))
        answer = fact.say(rng.choice(relation.statements))
    system = f"{SYSTEM}\n{rng.choice(SYSTEM_LINES)}{END}\n" if rng.random() < 0.15 else ""
    prompt = f"{system}{USER}\n{question}{END}\n{ASSISTANT}"
    return [(prompt, ASKED), (f"\n{answer}{END}", 1.0)]


def _shots(knowledge: Knowledge, rng: random.Random) -> list[Part]:
    first, _ = rng.choice(knowledge.items)
    parts: list[Part] = []
    topic = first.subject.replace("_", " ")
    head = f"The following are questions (with answers) about {topic}.\n\n"
    for fact in rng.sample(first.facts, rng.randint(3, 6)):
        question, answer = _answer(first, fact, rng)
        parts += [(head + question[0], question[1]), answer]
        head = "\n\n"
    return parts


def _letter(relation: Relation, fact: Fact, rng: random.Random) -> list[Part]:
    choices = distractors(relation, fact, rng)
    right = rng.randrange(4)
    choices.insert(right, fact.answer)
    lines = "\n".join(f"{name}. {choice}" for name, choice in zip(LETTERS, choices, strict=True))
    question = fact.say(rng.choice(relation.questions))
    head = ""
    if rng.random() < 0.5:
        topic = relation.subject.replace("_", " ")
        head = f"The following are multiple choice questions (with answers) about {topic}.\n\n"
    return [(f"{head}{question}\n{lines}\nAnswer:", 0.1), (f" {LETTERS[right]}", LETTER)]


def _prose(knowledge: Knowledge, rng: random.Random) -> list[Part]:
    start = rng.randrange(len(knowledge.paragraphs))
    return [("\n\n".join(knowledge.paragraphs[start : start + rng.randint(1, 2)]), 1.0)]
