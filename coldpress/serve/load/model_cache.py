"""Remote checkpoints kept on a local disk: ``FOLDER/ROOT_SHA256/`` holds the files of one model.

A model is fetched into memory and copied here when it serves already: writing a gigabyte to a disk takes
as much CPU as fetching and proving it, and nobody should wait for that. An entry is written into
``ROOT.partial`` under a lock and becomes visible whole, by a rename. The least recently used entries give
way to new ones; removing a file that a process has mapped does that process no harm.
"""

import contextlib
import fcntl
import os
import shutil
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from coldpress.errors import UsageError
from coldpress.serve.load.pieces import Contents

_PARTIAL, _LOCK, _TRASH = ".partial", ".lock", ".trash"
_DEFAULT_BYTES = 16 << 30
_SPARE_BYTES = 256 << 20
"""Room that is left for others on the disk."""
_COPY_BYTES = 4 << 20
_NICE = 19
_AFTER_S = 5.0
"""So long the first answers have the machine for themselves."""
_MEMORY_FILE_SYSTEMS = ("tmpfs", "ramfs", "overlay")


def folder() -> Path | None:
    """Where checkpoints are kept: ``$COLDPRESS_CACHE/checkpoints``, else a folder of ours in /tmp.

    None where /tmp is in memory: there a file would take as much memory again. An overlay may be
    either, so it counts as memory.
    """
    if chosen := os.environ.get("COLDPRESS_CACHE"):
        return Path(chosen) / "checkpoints"
    if _file_system(Path("/tmp")) in _MEMORY_FILE_SYSTEMS:  # noqa: S108  # checked in _private
        return None
    return Path(f"/tmp/coldpress-{os.getuid()}")  # noqa: S108


def limit_bytes() -> int:
    """The most that all entries may have together: ``$COLDPRESS_CACHE_BYTES``, else 16 GiB; 0: no cache."""
    text = os.environ.get("COLDPRESS_CACHE_BYTES", str(_DEFAULT_BYTES))
    if not text.isdecimal():
        raise UsageError(f"COLDPRESS_CACHE_BYTES is {text!r}", "give a number of bytes")
    return int(text)


def find(contents: Contents) -> tuple[Path, ...] | None:
    """The model's files, in the order of ``contents``; None if they are not here."""
    where = _where(contents)
    if where is None:
        return None
    try:
        _private(where)
    except OSError:
        return None
    return _hit(where, contents)


def keep_later(contents: Contents, files: Sequence[int]) -> None:
    """Copy a model in the background, in a while, from open files that hold it; they are closed then."""
    if (where := _where(contents)) is None:
        for file in files:
            os.close(file)
        return
    arguments = where, contents, files
    threading.Thread(target=_keep_later, args=arguments, name="keep", daemon=True).start()


def _keep_later(where: Path, contents: Contents, files: Sequence[int]) -> None:
    try:
        time.sleep(_AFTER_S)
        # Of this thread alone: answers go before.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        _keep(where, contents, files)
    except OSError:  # full, read-only, not ours: it is fetched again the next time
        return
    finally:
        for file in files:
            os.close(file)


def keep(contents: Contents, files: Sequence[int]) -> bool:
    """Copy a model from open files that hold it, unless somebody does or has done so.

    Raises:
        OSError: it cannot be kept.
    """
    where = _where(contents)
    return where is not None and _keep(where, contents, files)


def _keep(where: Path, contents: Contents, files: Sequence[int]) -> bool:
    _private(where)
    lock = _locked(where / f"{contents.root_sha256}{_LOCK}")
    if lock is None:
        return False
    try:
        if _hit(where, contents) is not None:
            return False
        _write(where, contents, files)
    finally:
        os.close(lock)
    return True


def _where(contents: Contents) -> Path | None:
    """The folder that may hold a model; None for one that cannot be named or is too large."""
    unfit = contents.root_sha256 is None or contents.size_bytes > limit_bytes()
    return None if unfit else folder()


def _write(where: Path, contents: Contents, files: Sequence[int]) -> None:
    entry = where / str(contents.root_sha256)
    partial = entry.with_name(f"{entry.name}{_PARTIAL}")
    for left in (entry, partial):  # damaged, or of somebody who was killed
        shutil.rmtree(left, ignore_errors=True)
    _make_room(where, contents.size_bytes, keep=entry.name)
    try:
        partial.mkdir()
        for file, source in zip(contents.files, files, strict=True):
            with (partial / file.name).open("xb") as sink:
                os.posix_fallocate(sink.fileno(), 0, file.size_bytes)  # a full disk is met at once
                _copy(source, sink.fileno(), file.size_bytes)
                os.fsync(sink.fileno())  # the rename must not reach the disk before the bytes do
        partial.rename(entry)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _copy(source: int, sink: int, size_bytes: int) -> None:
    offset = 0
    while offset < size_bytes:
        count = os.sendfile(sink, source, offset, min(_COPY_BYTES, size_bytes - offset))
        if count == 0:
            raise OSError("the source ended early")
        offset += count


def _hit(where: Path, contents: Contents) -> tuple[Path, ...] | None:
    entry = where / str(contents.root_sha256)
    paths = tuple(entry / file.name for file in contents.files)
    try:
        sizes = [path.stat().st_size for path in paths]
        os.utime(entry)  # used now
    except OSError:
        return None
    return paths if sizes == [file.size_bytes for file in contents.files] else None


def _make_room(where: Path, size_bytes: int, keep: str) -> None:
    """Remove entries, the least recently used first, until the new one fits limit and disk.

    Raises:
        OSError: it does not fit even so.
    """
    for trash in where.glob(f"*{_TRASH}"):
        shutil.rmtree(trash, ignore_errors=True)
    entries = [path for path in where.iterdir() if path.is_dir() and path.name[:64] != keep]
    sizes = {path: _size(path) for path in entries}
    for path in sorted(entries, key=_used):
        full = sum(sizes.values()) + size_bytes > limit_bytes()
        if not full and _free(where) >= size_bytes + _SPARE_BYTES:
            break
        if _remove(path):
            del sizes[path]
    if sum(sizes.values()) + size_bytes > limit_bytes():
        raise OSError("the cache is in use up to its limit")


def _remove(entry: Path) -> bool:
    """Remove an entry unless somebody is filling it; others see all of it or nothing."""
    lock = _locked(entry.with_name(f"{entry.name[:64]}{_LOCK}"))
    if lock is None:
        return False
    try:
        trash = entry.with_name(f"{entry.name}.{os.getpid()}{_TRASH}")
        entry.rename(trash)
        shutil.rmtree(trash, ignore_errors=True)
    except OSError:
        return not entry.exists()
    finally:
        os.close(lock)
    return True


def _locked(path: Path) -> int | None:
    """The descriptor that holds a lock; None if somebody else does."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _private(where: Path) -> None:
    """Make the folder; refuse one that another user could write to: /tmp is everybody's.

    Raises:
        PermissionError: it is not ours alone.
    """
    where.mkdir(parents=True, exist_ok=True, mode=0o700)
    status = where.lstat()
    if where.is_symlink() or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise PermissionError(f"{where} is not ours alone")


def _file_system(path: Path) -> str:
    """The type of the file system that holds a folder; ``tmpfs`` where it cannot be told."""
    try:
        mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return "tmpfs"
    holding = {mount[1]: mount[2] for mount in mounts if path.is_relative_to(mount[1])}
    return holding[max(holding, key=len)] if holding else "tmpfs"


def _free(where: Path) -> int:
    status = os.statvfs(where)
    return status.f_bavail * status.f_frsize


def _size(entry: Path) -> int:
    with contextlib.suppress(OSError):
        return sum(path.stat().st_size for path in entry.iterdir())
    return 0


def _used(entry: Path) -> float:
    with contextlib.suppress(OSError):
        return entry.stat().st_mtime
    return 0.0
