"""The store: a folder with one JSON file per record, ``TIME-RUN_ID.json``, only ever added to.

A file appears whole, by a rename. Its hidden ``.partial`` is made exclusively, so of two writers with the
same name one takes the next microsecond; what ``kill -9`` leaves of it is never read.
"""

import json
import re
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from os import fsync
from pathlib import Path

from coldpress.errors import InputError
from coldpress.runs.record import FORMAT_VERSION, Record
from coldpress.validation import first_problem

FOLDER = ".store"
_HINT = "delete the file, or mend it"
_TIME = "%Y%m%dT%H%M%S.%fZ"
_ID = re.compile(r"(\d{8}T\d{6}\.\d{6}Z)-([0-9a-f]{16})")


@dataclass(frozen=True)
class Stored:
    """A record in the store: its file's name without ``.json``, and when it was written (UTC)."""

    id: str
    when: str
    record: Record


def beside(out: Path) -> Path:
    """Where a run that writes ``out`` is recorded unless another store is named."""
    return out.parent / FOLDER


def append(store: Path, record: Record, at: datetime | None = None) -> str:
    """Add a record and return its id.

    Args:
        at: when, UTC; now by default.
    """
    store.mkdir(parents=True, exist_ok=True)
    text = json.dumps(asdict(record), indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    moment = at or datetime.now(UTC)
    while not _write(store, name := f"{moment.strftime(_TIME)}-{record.run_id}", text):
        moment += timedelta(microseconds=1)
    return name


def read(path: Path) -> Stored:
    """Read one record.

    Raises:
        InputError: the file cannot be read or is no record of this version.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        record = TypeAdapter(Record).validate_json(path.read_bytes())
    except ValidationError as error:
        raise InputError(f"{path.name}: {first_problem(error)}", _HINT) from error
    except OSError as error:
        raise InputError(f"{path.name} cannot be read: {error.strerror}", _HINT) from error
    if record.format_version != FORMAT_VERSION:
        raise InputError(
            f"{path.name} has format {record.format_version}", "use the coldpress that wrote it"
        )
    return named(path.stem, record)


def named(id_: str, record: Record) -> Stored:
    """A record under the name that it has in the store.

    Raises:
        InputError: the name is of another record, or of none.
    """
    found = _ID.fullmatch(id_)
    try:
        time = datetime.strptime(found[1], _TIME) if found else None
    except ValueError:
        time = None
    if found is None or time is None or found[2] != record.run_id:
        raise InputError(f"{id_}.json is not named after its record", _HINT)
    return Stored(id_, f"{time:%Y-%m-%d %H:%M:%S}", record)


def _write(store: Path, name: str, text: str) -> bool:
    """Write a record's file; False where the name is taken."""
    partial, path = store / f".{name}.partial", store / f"{name}.json"
    try:
        stream = partial.open("x", encoding="utf-8")
    except FileExistsError:
        return False
    with stream:
        try:
            # Only who holds the partial may make the file, so this answer stays true.
            if path.exists():
                partial.unlink()
                return False
            stream.write(text)
            stream.flush()
            fsync(stream.fileno())
            partial.rename(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    return True
