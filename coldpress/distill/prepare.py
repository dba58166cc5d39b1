"""From text and a teacher to lessons: cut into windows, held against what is evaluated on, answered once."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coldpress import artifact
from coldpress.calibrate import overlap
from coldpress.convert import reference
from coldpress.counts import parse_count
from coldpress.distill import documents, lessons
from coldpress.distill.lessons import Lessons, Tokens
from coldpress.distill.stage import DistillOptions
from coldpress.quantize.budget import parse_size


@dataclass(frozen=True)
class Source:
    """Where lessons come from.

    ``text`` is for ``documents.read``, ``against`` are texts to evaluate on; answers are kept below ``kept``.
    """

    teacher: Path
    text: str | Path
    against: tuple[Path, ...]
    kept: Path


def prepare(source: Source, options: DistillOptions, device: Any = "cpu") -> Lessons:
    """Lessons with the teacher's answers if they may be kept, else with the teacher to ask.

    Raises:
        InputError: too little text, or text that is evaluated on.
    """
    tokens = _windows(source, options)
    model = reference.load_model(source.teacher).requires_grad_(False).to(device)
    vocabulary = model.config.get_text_config().vocab_size
    top_k = min(options.top_k, vocabulary - 1)
    size = lessons.kept_bytes(tokens.size, vocabulary, top_k)
    if top_k == 0 or options.hidden_weight > 0 or size > parse_size(options.cache):
        held = lessons.held_out(tokens)
        return Lessons(tokens, options.temperature, held, teacher=model)
    digest = hashlib.sha256(tokens.tobytes()).hexdigest()
    about = [artifact.digest_of(source.teacher), digest, *tokens.shape, options.temperature, top_k]
    folder = source.kept / artifact.sha256_json(about)[:16]
    if not lessons.is_answered(folder):
        lessons.answer(folder, model, tokens, options.temperature, top_k, device)
    return lessons.read(folder, options.temperature)


def _windows(source: Source, options: DistillOptions) -> Tokens:
    """Windows of as much of the text as is trained on."""
    used: list[str] = []

    def remembered() -> Iterator[str]:
        for document in documents.read(source.text):
            used.append(document)
            yield document

    wanted = parse_count(options.text_tokens or options.tokens)
    most = max(wanted, lessons.FEWEST * options.context)
    tokenizer = reference.load_tokenizer(source.teacher)
    found = lessons.windows(tokenizer, remembered(), options.context, most)
    if source.against:
        sketch = overlap.sketch("\n".join(used))
        for other in source.against:
            overlap.refuse(sketch, Path(source.text), other)
    return found
