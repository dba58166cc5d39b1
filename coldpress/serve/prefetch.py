"""Local files brought into the page cache in order of execution, ahead of llama.cpp, which maps them.

How many reads are in flight decides how fast a file arrives; llama.cpp's mmap has one. The kernel is
told of every range in advance (it then reads without a thread of ours, and nothing is copied).
Threads that read exist only where the device's readahead is unknown, or to prove each chunk.
"""

import os
import threading
from collections.abc import Sequence
from pathlib import Path

from coldpress.serve.fetch import Fetch, Job
from coldpress.serve.file_source import FileSource
from coldpress.serve.pieces import Contents, File, unproven
from coldpress.serve.threads import usable_cpus
from coldpress.serve.trace import Trace

_RANGE_BYTES = 8 << 20
_PAGE_BYTES = 4096
_SAMPLES = 64


class Prefetch:
    """Reads files ahead from now on; with ``contents``, proves every chunk of them too."""

    def __init__(self, paths: Sequence[Path], contents: Contents | None = None) -> None:
        self._stopped = False
        self._files = [os.open(path, os.O_RDONLY) for path in paths]
        self._threads = [threading.Thread(target=self._advise, daemon=True)]
        self._threads[0].start()
        self.fetch: Fetch | None = None
        self._sources: list[FileSource] = []
        if contents is not None:
            cpus = usable_cpus()
            self.fetch = self._read(paths, contents.files, first=cpus, most=max(4, 2 * cpus))
        elif not all(map(_step, self._files)):
            files = [unproven(path.name, path.stat().st_size) for path in paths]
            self.fetch = self._read(paths, files, first=4, most=16)

    def _read(
        self, paths: Sequence[Path], files: Sequence[File], *, first: int, most: int
    ) -> Fetch:
        self._sources = [FileSource(path) for path in paths]
        jobs = [
            Job(piece, source, None)
            for source, file in zip(self._sources, files, strict=True)
            for piece in file.pieces
        ]
        return Fetch(jobs, first=first, most=most)

    def _advise(self) -> None:
        for file in self._files:
            step = _step(file)
            size = os.fstat(file).st_size
            for offset in range(0, size if step else 0, step or 1):
                if self._stopped:
                    return
                try:
                    os.posix_fadvise(file, offset, step, os.POSIX_FADV_WILLNEED)
                except OSError:  # llama.cpp reads the file without our help
                    return

    def wait(self) -> None:
        """Wait until every chunk is proven.

        Raises:
            IntegrityError: one differs.
        """
        if self.fetch is not None:
            self.fetch.wait()

    def note(self, trace: Trace) -> None:
        """Add the proof's span to a trace."""
        if self.fetch is not None:
            trace.put("verify", self.fetch.first_proven_s, self.fetch.proven_s)

    def close(self) -> None:
        """Stop reading ahead and close the files."""
        self._stopped = True
        if self.fetch is not None:
            self.fetch.close()
        for source in self._sources:
            source.close()
        for thread in self._threads:
            thread.join()
        for file in self._files:
            os.close(file)


def is_cached(paths: Sequence[Path]) -> bool:
    """Whether the page cache holds these files, by samples; False where the kernel cannot tell."""
    return all(_samples_cached(path) for path in paths)


def _samples_cached(path: Path) -> bool:
    with path.open("rb", buffering=0) as stream:
        size = os.fstat(stream.fileno()).st_size
        byte = bytearray(1)
        try:
            for number in range(_SAMPLES):
                # One that would have to wait for the disk raises BlockingIOError.
                os.preadv(stream.fileno(), [byte], number * size // _SAMPLES, os.RWF_NOWAIT)
        except OSError:
            return False
    return True


def _step(file: int) -> int:
    """How far ahead the kernel reads when it is told to, in bytes; 0: not at all, or unknown."""
    device = os.fstat(file).st_dev
    setting = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
    try:
        ahead = int(setting.read_text()) << 10
    except (OSError, ValueError):  # an overlay, or no sysfs
        return 0
    return min(ahead // _PAGE_BYTES * _PAGE_BYTES, _RANGE_BYTES)
