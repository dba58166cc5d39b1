"""A local file as a source of pieces: through the page cache, or past it."""

import mmap
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from coldpress.errors import IntegrityError

_ALIGNMENT = 4096
_BUFFER_BYTES = 2 << 20


class FileSource:
    """``direct``: past the page cache where the file system can; many threads may read."""

    retries = 0

    def __init__(self, path: Path, *, direct: bool = False) -> None:
        self.path = path
        self._file = open(path, "rb", buffering=0, opener=_direct if direct else None)  # noqa: SIM115
        self._local = threading.local()

    def __str__(self) -> str:
        """Its path."""
        return str(self.path)

    def stream(self, start: int, end: int) -> Iterator[memoryview]:
        """Bytes ``[start, end)``; the pieces share a buffer, so look at one before taking the next.

        Raises:
            IntegrityError: the file ends before them.
        """
        buffer = self._buffer()
        while start < end:
            # Direct reads want aligned places and lengths: read a little more on both sides.
            low = start // _ALIGNMENT * _ALIGNMENT
            wanted = min(_BUFFER_BYTES, -(-(end - low) // _ALIGNMENT) * _ALIGNMENT)
            count = os.preadv(self._file.fileno(), [buffer[:wanted]], low)
            last = min(low + count, end)
            if last <= start:
                raise IntegrityError(f"{self} ends before byte {end}", "fetch or build it again")
            yield buffer[start - low : last - low]
            start = last

    def interrupt(self) -> None:
        """A read of a file ends by itself."""

    def close(self) -> None:
        """Close it, once nobody reads any more."""
        self._file.close()

    def _buffer(self) -> memoryview:
        kept: memoryview | None = getattr(self._local, "buffer", None)
        if kept is None:
            # Anonymous pages are aligned as direct reads want it.
            kept = self._local.buffer = memoryview(mmap.mmap(-1, _BUFFER_BYTES))
        return kept


def _direct(path: str, flags: int) -> int:
    try:
        return os.open(path, flags | os.O_DIRECT)
    except OSError:  # tmpfs and some overlays cannot
        return os.open(path, flags)
