"""What our own evaluator says of the files: KL, and the held-out questions answered right."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.subjects import Subject
from coldpress import artifact
from coldpress.evaluate import EvaluateOptions, evaluate, plan, result

_OPTIONS = EvaluateOptions(
    profile="fast", scoring=("continuation",), n_chunks=16, threads=2, speed=False
)

BF16 = "bf16"
Answers = Mapping[tuple[str, str, int], bool]


@dataclass(frozen=True)
class Answered:
    """KL in nats, the share of questions answered right, and which they were."""

    kl: float | None
    accuracy: float
    answers: Answers


def ask(subject: Subject, bf16: Path, folder: Path, files: Iterable[str]) -> dict[str, Answered]:
    """A file's name in ``folder`` → its answers, ``BF16`` → the base's; what is there is reused."""
    base = folder / "evaluate" / BF16
    found = {BF16: _ask(subject, bf16, base, None)}
    for name in files:
        out = folder / "evaluate" / Path(name).with_suffix("").as_posix().replace("/", "-")
        found[name] = _ask(subject, folder / name, out, base)
    return found


def _ask(subject: Subject, gguf: Path, out: Path, base: Path | None) -> Answered:
    given = {"questions": subject.questions, "text": subject.heldout, "base": base}
    inputs, options = plan(gguf, out, _OPTIONS, **given)
    if not artifact.is_current(out, "evaluate", inputs, options):
        evaluate(gguf, out, _OPTIONS, **given)
    read = result.read(out)
    samples = map(json.loads, (out / "samples.jsonl").read_text(encoding="utf-8").splitlines())
    right = {
        (each["scoring"], each["subject"], each["index"]): each["correct"]
        for each in samples
        if each["scoring"] == "continuation"
    }
    kl = read.kl.mean if read.kl else None
    return Answered(kl, read.questions["continuation"].accuracy, right)
