"""The demo model's own training documents as text, for teaching a smaller one: drawn anew, not embedded."""

# ruff: noqa: S311 - seeded on purpose: equal seeds give equal files
from __future__ import annotations

import json
import random
from pathlib import Path

from coldpress.artifact import code_digest
from coldpress.cache import cache_dir

from . import TRAIN_TEXT
from .knowledge.documents import Knowledge, sample_document
from .knowledge.facts import load_relations

DOCUMENTS = 90_000  # some 3 million tokens
_SEED = 23


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
    paragraphs = TRAIN_TEXT.read_text(encoding="utf-8").strip().split("\n\n")
    knowledge, rng = Knowledge.build(load_relations(), paragraphs), random.Random(_SEED)
    with path.open("w", encoding="utf-8") as stream:
        for _ in range(count):
            text = "".join(part for part, _ in sample_document(knowledge, rng))
            stream.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
