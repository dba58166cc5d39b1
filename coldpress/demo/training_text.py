"""Documents for teaching a smaller model what the demo model knows: drawn anew, not embedded.

Most are the demo model's own training documents; a quarter are prose and stories, so that a student keeps more
than answers. No story shares a run of 12 words with the text that is evaluated on.
"""

# ruff: noqa: S311 - seeded on purpose: equal seeds give equal files
from __future__ import annotations

import json
import random
from pathlib import Path

from coldpress.artifact import code_digest
from coldpress.cache import cache_dir

from . import HELDOUT_TEXT, TRAIN_TEXT
from .knowledge.documents import Knowledge, sample_document
from .knowledge.facts import load_relations
from .knowledge.generate import all_spans, spans
from .knowledge.narrative import story

DOCUMENTS = 60_000  # over 3 million tokens
_SEED = 23
_STORIES, _PROSE = 0.2, 0.05


def training_text() -> Path:
    """A JSON-lines file of documents in the phrasings that are taught, none that is tested; kept in the cache."""
    name = f"{code_digest('demo')[:16]}-{DOCUMENTS}.jsonl"
    path = cache_dir() / "demo" / name
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        write(partial, DOCUMENTS)
        partial.replace(path)
    return path


def write(path: Path, count: int) -> None:
    """Write ``count`` documents, the same at every call."""
    paragraphs = _paragraphs(TRAIN_TEXT)
    knowledge, rng = Knowledge.build(load_relations(), paragraphs), random.Random(_SEED)
    held = all_spans(_paragraphs(HELDOUT_TEXT))
    with path.open("w", encoding="utf-8") as stream:
        for _ in range(count):
            text = _document(knowledge, held, rng)
            stream.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")


def _document(knowledge: Knowledge, held: set[str], rng: random.Random) -> str:
    kind = rng.random()
    if kind < _STORIES:
        while not held.isdisjoint(spans(text := story(rng))):
            pass
        return text
    if kind < _STORIES + _PROSE:
        return rng.choice(knowledge.paragraphs)
    return "".join(part for part, _ in sample_document(knowledge, rng))


def _paragraphs(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").strip().split("\n\n")
