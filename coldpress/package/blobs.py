"""Finished layers on disk: those of a given base image, and those kept between runs."""

import fcntl
import json
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from coldpress import disk
from coldpress.artifact import sha256_json
from coldpress.cache import cache_dir
from coldpress.package import layer
from coldpress.package.layer import Entry, File, Folder, Layer, Symlink

# Changes whenever the bytes written for equal entries change.
_FORMAT = 1
_WORK = "building-"


@dataclass(frozen=True)
class Blob:
    """A layer and the file that holds it."""

    path: Path
    layer: Layer


def key_of(entries: Iterable[Entry], *salt: str) -> str:
    """Identify a layer by what goes into it, before it is built."""
    parts: list[list[object]] = []
    for entry in entries:
        match entry:
            case File():
                parts.append([entry.path, "file", entry.sha256, entry.executable])
            case Folder():
                parts.append([entry.path, "folder", entry.mode])
            case Symlink():
                parts.append([entry.path, "symlink", entry.target])
    return sha256_json([_FORMAT, zlib.ZLIB_RUNTIME_VERSION, *salt, sorted(parts, key=str)])[:32]


def cached(key: str, build: Callable[[], Iterable[Entry]]) -> Blob:
    """The layer with this key: from the cache, or built now and kept.

    A finished layer has its JSON file, which is written last; both appear by rename.
    """
    folder = cache_dir() / "layers"
    blob, note = folder / f"{key}.tar.gz", folder / f"{key}.json"
    if not (note.is_file() and blob.is_file()):
        with _workplace(folder) as work:
            fresh = work / "layer"
            with fresh.open("wb") as stream:
                written = layer.write(build(), stream, "deflate")
            fresh.rename(blob)
            draft = work / "note"
            draft.write_text(json.dumps(asdict(written)))
            draft.rename(note)
    return Blob(blob, Layer(**json.loads(note.read_text())))


@contextmanager
def _workplace(folder: Path) -> Iterator[Path]:
    """A folder to build in, beside the layers; those of builds that were killed are removed.

    Who builds in one holds its lock, which the kernel takes back from the dead.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with disk.room_for(folder), ExitStack() as stack:
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for left in folder.glob(f"{_WORK}*"):
                _remove_if_dead(left)
            work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=_WORK, dir=folder)))
            fcntl.flock(stack.enter_context((work / "lock").open("w")), fcntl.LOCK_EX)
        yield work


def _remove_if_dead(work: Path) -> None:
    with (work / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        shutil.rmtree(work, ignore_errors=True)
