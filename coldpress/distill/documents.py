"""Where text to learn from comes from: files, a folder of them, or a data set by its name."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from coldpress.errors import InputError, ToolError

_SUFFIXES = (".jsonl", ".txt")
_HINT = "give text files, JSON lines with a `text` each, a folder of either, or a data set's name"


def read(source: str | Path) -> Iterator[str]:
    """Every document: a ``.txt`` file each, a line's ``text`` of ``.jsonl``, a data set's rows.

    Args:
        source: a file, a folder, or ``NAME`` or ``NAME:CONFIGURATION`` of a data set whose ``train`` split has
            a ``text``; it is streamed, so that only what is used is fetched.

    Raises:
        InputError: nothing there, not text, or without a ``text``.
        ToolError: the data set cannot be reached, or its library is not installed.
    """
    path = Path(source)
    if path.is_file():
        return _file(path)
    if path.is_dir():
        files = sorted(each for each in path.rglob("*") if each.suffix in _SUFFIXES)
        if not files:
            raise InputError(f"{path} holds no .txt or .jsonl file", _HINT)
        return itertools.chain.from_iterable(map(_file, files))
    if isinstance(source, Path) or source.startswith((".", "/")) or path.suffix in _SUFFIXES:
        raise InputError(f"{source} does not exist", _HINT)
    return _data_set(source)


def _file(path: Path) -> Iterator[str]:
    try:
        if path.suffix != ".jsonl":
            yield path.read_text(encoding="utf-8")
            return
        with path.open(encoding="utf-8") as stream:
            for number, line in enumerate(stream, start=1):
                yield _text(json.loads(line), f"{path}, line {number}")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text", _HINT) from error
    except json.JSONDecodeError as error:
        raise InputError(f"{path}, line {number}, is not JSON: {error.msg}", _HINT) from error


def _data_set(name: str) -> Iterator[str]:
    try:
        import datasets
    except ImportError as error:
        raise ToolError("datasets is not installed", "pip install 'coldpress[evaluate]'") from error
    repository, _, configuration = name.partition(":")
    try:
        rows = datasets.load_dataset(
            repository, configuration or None, split="train", streaming=True
        )
        for row in rows:
            yield _text(row, name)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise ToolError(
            f"{name} is neither here nor a data set that can be fetched: {error}", _HINT
        ) from error


def _text(row: Any, where: str) -> str:
    found = row.get("text") if isinstance(row, dict) else None
    if not isinstance(found, str):
        raise InputError(f"{where} has no `text`", _HINT)
    return found
