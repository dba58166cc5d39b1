"""Questions by their hub id: MMLU as ``cais/mmlu`` has it, written out as the CSV files that are read."""

import csv
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from coldpress import hub
from coldpress.cache import cache_dir
from coldpress.errors import InputError, ToolError
from coldpress.evaluate.questions import LETTERS

_SPLITS = ("dev", "test")
_ID = "give a folder in MMLU's layout, or a hub id such as cais/mmlu"


def resolve(questions: str | Path) -> Path:
    """The folder of questions: a path as it is, a hub id once it is fetched and written out.

    Raises:
        InputError: neither an existing path nor a hub id's form; no such dataset, or one of another form.
        ToolError: the hub cannot be reached and its cache lacks the dataset.
    """
    if Path(questions).exists():
        return Path(questions)
    if not hub.ID.fullmatch(str(questions)):
        raise InputError(f"{questions} does not exist", _ID)
    found = hub.snapshot(str(questions), "dataset", [f"all/{split}-*.parquet" for split in _SPLITS])
    # The snapshot's name is the commit.
    folder = cache_dir() / "questions" / f"{str(questions).replace('/', '--')}-{found.name[:12]}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            _write_out(str(questions), found, Path(scratch) / "questions")
            (Path(scratch) / "questions").rename(folder)
    return folder


def _write_out(name: str, snapshot: Path, out: Path) -> None:
    for split in _SPLITS:
        (out / split).mkdir(parents=True)
        for subject, rows in _rows(name, snapshot, split).items():
            with (out / split / f"{subject}_{split}.csv").open(
                "w", encoding="utf-8", newline=""
            ) as stream:
                csv.writer(stream).writerows(rows)


def _rows(name: str, snapshot: Path, split: str) -> dict[str, list[list[str]]]:
    """Subject → rows of question, choices and letter, in the dataset's order."""
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ToolError("pyarrow is not installed", "pip install 'coldpress[evaluate]'") from error
    found: dict[str, list[list[str]]] = defaultdict(list)
    for path in sorted((snapshot / "all").glob(f"{split}-*.parquet")):
        try:
            table: list[dict[str, Any]] = pq.read_table(path).to_pylist()
            for row in table:
                cells = [row["question"], *row["choices"], LETTERS[row["answer"]]]
                found[_file_name(row["subject"])].append(cells)
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            raise InputError(f"{name} is not in MMLU's form: {error!r}", _ID) from error
    if not found:
        raise InputError(f"{name} has no all/{split}-*.parquet", _ID)
    return found


def _file_name(subject: str) -> str:
    if not subject.replace("_", "").isalnum():
        raise ValueError(f"a subject named {subject!r}")
    return subject
