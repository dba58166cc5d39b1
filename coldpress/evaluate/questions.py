"""Multiple-choice questions in MMLU's CSV layout, read from a folder.

``test/<subject>_test.csv`` holds what is asked, ``dev/<subject>_dev.csv`` the examples. Both
layouts in use are read: headerless ``question,A,B,C,D,letter``, and with a header
``question,choice0,…,choice3,answer``, the answer as 0–3. Cells stay text: ten MMLU choices
are the word "None".
"""

import csv
import random
from dataclasses import dataclass
from pathlib import Path

from coldpress.errors import InputError

LETTERS = ("A", "B", "C", "D")
_HEADER = ["question", "choice0", "choice1", "choice2", "choice3", "answer"]


@dataclass(frozen=True)
class Question:
    """``index`` is the row in the subject's file, ``answer`` the right choice's place, 0–3."""

    index: int
    question: str
    choices: tuple[str, str, str, str]
    answer: int


@dataclass(frozen=True)
class Subject:
    """A subject's questions and its examples for few-shot prompts, both in file order."""

    name: str
    test: tuple[Question, ...]
    dev: tuple[Question, ...]

    @property
    def title(self) -> str:
        """The name as the prompt says it: "high school physics"."""
        return self.name.replace("_", " ")


def read(folder: Path) -> tuple[Subject, ...]:
    """Read every subject of a folder, sorted by name.

    Raises:
        InputError: no questions there, or a row that is not one, with file and line.
    """
    files = sorted((folder / "test").glob("*_test.csv"))
    if not files:
        raise InputError(f"{folder} has no questions", "put <subject>_test.csv files into test/")
    return tuple(_subject(folder, path.name.removesuffix("_test.csv")) for path in files)


def take(subject: Subject, per_subject: int | None, seed: int) -> Subject:
    """Keep ``per_subject`` questions, drawn with ``seed`` and the subject's name, in file order."""
    if per_subject is None or per_subject >= len(subject.test):
        return subject
    # A str seed is hashed by random itself: the same draw in every process.
    draw = random.Random(f"{seed}:{subject.name}").sample(range(len(subject.test)), per_subject)  # noqa: S311
    return Subject(subject.name, tuple(subject.test[i] for i in sorted(draw)), subject.dev)


def _subject(folder: Path, name: str) -> Subject:
    dev = folder / "dev" / f"{name}_dev.csv"
    test = _read_file(folder / "test" / f"{name}_test.csv")
    return Subject(name, test, _read_file(dev) if dev.is_file() else ())


def _read_file(path: Path) -> tuple[Question, ...]:
    questions: list[Question] = []
    with path.open(encoding="utf-8", newline="") as stream:
        rows = csv.reader(stream, strict=True)
        try:
            for row in rows:
                if row and row != _HEADER:
                    questions.append(_question(row, len(questions)))
        except (ValueError, csv.Error) as error:
            raise InputError(
                f"{path}, line {rows.line_num}: {error}",
                "each row is question, four choices, and the answer's letter",
            ) from error
    if not questions:
        raise InputError(f"{path} is empty", "remove it, or put questions into it")
    return tuple(questions)


def _question(row: list[str], index: int) -> Question:
    if len(row) != len(_HEADER):
        raise ValueError(f"{len(row)} columns instead of {len(_HEADER)}")
    text, a, b, c, d, answer = row
    answer = answer.strip()
    if answer in LETTERS:
        place = LETTERS.index(answer)
    elif answer in {"0", "1", "2", "3"}:
        place = int(answer)
    else:
        raise ValueError(f"the answer is {answer!r}, not a letter A–D or a number 0–3")
    return Question(index, text, (a, b, c, d), place)
