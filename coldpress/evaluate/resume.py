"""Answers already given, kept beside an evaluation while it runs: a killed one goes on from them.

``OUT.answers-KEY.jsonl`` holds a line per subject; KEY is of everything that the answers depend on. The file
goes when the evaluation is written. A line that was cut by the kill is asked again.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from coldpress import artifact
from coldpress.evaluate.mmlu import Sample


class Answers:
    """What is known of each (scoring, subject)."""

    def __init__(self, out: Path, depends_on: Mapping[str, object]) -> None:
        """Open the answers of an evaluation to be written to ``out``."""
        key = artifact.sha256_json(dict(depends_on))[:16]
        self.path = out.with_name(f"{out.name}.answers-{key}.jsonl")
        self._known: dict[tuple[str, str], list[Sample]] = {}
        if self.path.is_file():
            whole = self.path.read_bytes()
            whole = whole[: whole.rfind(b"\n") + 1]
            os.truncate(self.path, len(whole))
            for line in whole.splitlines():
                each = json.loads(line)
                self._known[each["scoring"], each["subject"]] = [
                    Sample(**{**given, "log_likelihoods": tuple(given["log_likelihoods"])})
                    for given in each["samples"]
                ]

    def get(self, scoring: str, subject: str) -> list[Sample] | None:
        """A subject's samples; None if it was not asked yet."""
        return self._known.get((scoring, subject))

    def put(self, scoring: str, subject: str, samples: list[Sample]) -> None:
        """Keep a subject's samples, on the disk when this returns."""
        self._known[scoring, subject] = samples
        record = {"scoring": scoring, "subject": subject, "samples": [asdict(s) for s in samples]}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(record, ensure_ascii=False) + "\n")
            stream.flush()
            os.fsync(stream.fileno())

    def forget(self) -> None:
        """The evaluation is written: its answers are in it."""
        self.path.unlink(missing_ok=True)
