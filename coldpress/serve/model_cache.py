"""Remote checkpoints kept on a local disk: ``FOLDER/ROOT_SHA256/`` holds the files of one model.

An entry is filled in ``ROOT.partial`` under a lock and becomes visible whole, by a rename. Who is
killed leaves a partial folder behind; the next one resumes it, keeping the chunks whose digests are
right. The least recently used entries give way to new ones; removing a file that a process has
mapped does that process no harm.
"""

import contextlib
import fcntl
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from coldpress.errors import UsageError
from coldpress.serve.pieces import Contents

_PARTIAL, _LOCK, _TRASH = ".partial", ".lock", ".trash"
_DEFAULT_BYTES = 16 << 30
_SPARE_BYTES = 256 << 20
"""Room that is left for others on the disk."""
_WAIT_S = 120.0
_POLL_S = 0.05
_MEMORY_FILE_SYSTEMS = ("tmpfs", "ramfs", "overlay")


def folder() -> Path | None:
    """Where checkpoints are kept: ``$COLDPRESS_CACHE/checkpoints``, else a folder of ours in /tmp.

    None where ``COLDPRESS_CACHE`` is ``off`` or empty, or /tmp is in memory: there a file would take
    as much memory again. An overlay may be either, so it counts as memory.
    """
    chosen = os.environ.get("COLDPRESS_CACHE")
    if chosen in ("", "off"):
        return None
    if chosen:
        return Path(chosen) / "checkpoints"
    if _file_system(Path("/tmp")) in _MEMORY_FILE_SYSTEMS:  # noqa: S108  # checked in _private
        return None
    return Path(f"/tmp/coldpress-{os.getuid()}")  # noqa: S108


def limit_bytes() -> int:
    """The most that all entries may have together: ``$COLDPRESS_CACHE_BYTES``, else 16 GiB."""
    text = os.environ.get("COLDPRESS_CACHE_BYTES", str(_DEFAULT_BYTES))
    if not text.isdecimal():
        raise UsageError(f"COLDPRESS_CACHE_BYTES is {text!r}", "give a number of bytes")
    return int(text)


@dataclass(frozen=True)
class Hit:
    """The model is there; ``paths`` in the order of its files."""

    paths: tuple[Path, ...]


class Claim:
    """The right to fill an entry: its files are open in ``sinks``, and have all their bytes' room."""

    def __init__(self, where: Path, name: str, lock: int, sinks: list[int], fresh: bool) -> None:
        self._where, self._name, self._lock = where, name, lock
        self.sinks = sinks
        self.resumed = not fresh

    def publish(self) -> None:
        """Make the entry visible, once every byte is there and proven; then ``release``."""
        with contextlib.suppress(OSError):  # it remains a partial entry, to be resumed
            for sink in self.sinks:
                os.fsync(sink)  # a rename must not become visible before the bytes do
            partial = self._where / f"{self._name}{_PARTIAL}"
            partial.rename(self._where / self._name)
        self.release()

    def release(self) -> None:
        """Close the files and let others fill the entry."""
        for sink in self.sinks:
            os.close(sink)
        os.close(self._lock)


def claim(contents: Contents) -> Hit | Claim | None:
    """The entry of a model, or the right to fill it; None where it cannot be kept on a disk.

    Waits while another process fills it.
    """
    where = folder()
    name = contents.root_sha256
    if where is None or name is None or contents.size_bytes > limit_bytes():
        return None
    try:
        _private(where)
        if (hit := _hit(where, contents)) is not None:
            return hit
        lock = _locked(where / f"{name}{_LOCK}", _WAIT_S)
        if lock is None:
            return None
        try:
            # Whoever held the lock may have filled the entry.
            hit = _hit(where, contents)
            made = hit or _begin(where, contents, lock)
        except BaseException:
            os.close(lock)
            raise
        if hit is not None:
            os.close(lock)
        return made
    except OSError:  # read-only, full, or not ours
        return None


def _begin(where: Path, contents: Contents, lock: int) -> Claim:
    name = str(contents.root_sha256)
    shutil.rmtree(where / name, ignore_errors=True)  # an entry that is no hit is damaged
    partial = where / f"{name}{_PARTIAL}"
    fresh = not partial.exists()
    _make_room(where, contents.size_bytes, keep=name)
    partial.mkdir(exist_ok=True)
    sinks: list[int] = []
    try:
        for file in contents.files:
            sinks.append(os.open(partial / file.name, os.O_RDWR | os.O_CREAT, 0o600))
            os.ftruncate(sinks[-1], file.size_bytes)
            os.posix_fallocate(sinks[-1], 0, file.size_bytes)  # a full disk is met now, not later
    except OSError:
        for sink in sinks:
            os.close(sink)
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return Claim(where, name, lock, sinks, fresh)


def _hit(where: Path, contents: Contents) -> Hit | None:
    entry = where / str(contents.root_sha256)
    paths = tuple(entry / file.name for file in contents.files)
    try:
        sizes = [path.stat().st_size for path in paths]
        os.utime(entry)  # used now
    except OSError:
        return None
    return Hit(paths) if sizes == [file.size_bytes for file in contents.files] else None


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
    lock = _locked(entry.with_name(f"{entry.name[:64]}{_LOCK}"), 0)
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


def _locked(path: Path, wait_s: float) -> int | None:
    """The descriptor that holds a lock; None if another process keeps it for too long."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    until = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until:
                os.close(descriptor)
                return None
            time.sleep(_POLL_S)
        else:
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
