"""``index.sqlite``: the records' texts in one file, so that a listing opens one and not thousands.

The JSON files are the truth. The index names each with its size and time of change; where it is missing,
damaged or of other files than are there, it is made again from them and put in place by a rename.
"""

import os
import sqlite3
import tempfile
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from coldpress import artifact
from coldpress.errors import InputError, UsageError
from coldpress.runs import store as files
from coldpress.runs.record import Record
from coldpress.runs.store import Stored

INDEX = "index.sqlite"
_NAMED = 3
_SCHEMA = """
create table records(
    name text primary key, size_bytes integer, changed_ns integer,
    command text, model text, run_id text, record text, damage text
);
create table whole(sha256 text);
"""
_COLUMNS = "name, size_bytes, changed_ns, command, model, run_id, record, damage"

# File name → (bytes, time of change in ns).
_Stamps = dict[str, tuple[int, int]]
_Row = tuple[str, int, int, str | None, str | None, str | None, str | None, str | None]


@dataclass(frozen=True)
class Listing:
    """A store's records, the oldest first, and for each file that is none, what is wrong with it."""

    records: tuple[Stored, ...]
    damaged: tuple[str, ...]


def listing(store: Path) -> Listing:
    """Read a store through its index.

    Raises:
        InputError: there is no such folder.
    """
    if not store.is_dir():
        raise InputError(
            f"{store} is no run store", "name one with --store, or run something first"
        )
    stamps = _stamps(store)
    rows = _indexed(store / INDEX, stamps)
    if rows is None:
        rows = [_row(store / name, *stamp) for name, stamp in sorted(stamps.items())]
        _write(store, rows)
    return Listing(
        records=tuple(_stored(row) for row in rows if row[6] is not None),
        damaged=tuple(row[7] for row in rows if row[7] is not None),
    )


def find(listed: Listing, prefix: str) -> Stored:
    """The record whose id, or whose run id, starts with ``prefix``.

    Of the same work recorded several times, a prefix of its run id means the newest.

    Raises:
        UsageError: none does, or several.
    """
    by_run = [each for each in listed.records if each.record.run_id.startswith(prefix)]
    by_id = [each for each in listed.records if each.id.startswith(prefix)]
    if not by_id and len({each.record.run_id for each in by_run}) == 1:
        return by_run[-1]
    found = {each.id: each for each in [*by_id, *by_run]}
    if prefix and len(found) == 1:
        return next(iter(found.values()))
    if not prefix or not found:
        raise UsageError(f"no run {prefix!r}", "coldpress runs ls names them")
    some = ", ".join(list(found)[-_NAMED:])
    raise UsageError(f"{len(found)} runs start with {prefix}", f"give more of one, such as {some}")


def _stamps(store: Path) -> _Stamps:
    with os.scandir(store) as entries:
        found = [each for each in entries if Path(each.name).suffix == ".json"]
        return {each.name: ((at := each.stat()).st_size, at.st_mtime_ns) for each in found}


def _indexed(path: Path, stamps: _Stamps) -> list[_Row] | None:
    """The index's rows, if they are whole and of exactly these files."""
    if not path.is_file():
        return None
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as index:
            rows: list[_Row] = index.execute(
                f"select {_COLUMNS} from records order by name"  # noqa: S608  # a constant
            ).fetchall()
            whole = index.execute("select sha256 from whole").fetchall()
    except sqlite3.Error:
        return None
    current = {row[0]: (row[1], row[2]) for row in rows} == stamps
    return rows if current and whole == [(_digest(rows),)] else None


def _row(path: Path, size_bytes: int, changed_ns: int) -> _Row:
    try:
        record = files.read(path).record
    except InputError as error:
        return (path.name, size_bytes, changed_ns, None, None, None, None, error.message)
    text = path.read_text(encoding="utf-8")
    about = (record.command, record.name, record.run_id)
    return (path.name, size_bytes, changed_ns, *about, text, None)


def _stored(row: _Row) -> Stored:
    from pydantic import TypeAdapter

    return files.named(
        row[0].removesuffix(".json"), TypeAdapter(Record).validate_json(row[6] or "")
    )


def _write(store: Path, rows: Sequence[_Row]) -> None:
    """Put a new index in place; where the store cannot be written to, readers do without."""
    try:
        handle, name = tempfile.mkstemp(dir=store, prefix=".index.", suffix=".partial")
    except OSError:
        return
    os.close(handle)
    partial = Path(name)
    partial.chmod(0o644)
    try:
        with closing(sqlite3.connect(partial)) as index:
            index.executescript(_SCHEMA)
            index.executemany(
                f"insert into records({_COLUMNS}) values (?, ?, ?, ?, ?, ?, ?, ?)",  # noqa: S608
                rows,
            )
            index.execute("insert into whole values (?)", (_digest(rows),))
            index.commit()
        partial.replace(store / INDEX)
    except (OSError, sqlite3.Error):
        partial.unlink(missing_ok=True)


def _digest(rows: Sequence[_Row]) -> str:
    return artifact.sha256_json([list(row) for row in rows])
