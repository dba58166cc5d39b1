"""Local files brought into the page cache in order of execution, ahead of llama.cpp, which maps them.

How many reads are in flight decides how fast a file arrives; llama.cpp's mmap has one. The kernel is
told of every range in advance (it then reads without a thread of ours, and nothing is copied).
Threads that read exist only where the device's readahead is unknown, or to prove each chunk.
"""

import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from coldpress.errors import IntegrityError
from coldpress.serve.load.fetch import Fetch, Job
from coldpress.serve.load.file_source import FileSource
from coldpress.serve.load.pieces import File, unproven
from coldpress.serve.threads import usable_cpus
from coldpress.serve.trace import Trace

_RANGE_BYTES = 8 << 20
_PAGE_BYTES = 4096
_SAMPLES = 64


class Prefetch:
    """Reads files ahead from now on.

    Args:
        prove: prove every chunk too, by the index beside the files.

    Raises:
        InputError: there is no index; IntegrityError: it is damaged.
    """

    def __init__(self, paths: Sequence[Path], *, prove: bool = False) -> None:
        self._stopped = False
        self._files = [os.open(path, os.O_RDONLY) for path in paths]
        self._sources: list[FileSource] = []
        self._proof: Fetch | None = None
        self.reading: Fetch | None = None
        self._thread = threading.Thread(target=self._advise, daemon=True)
        self._thread.start()
        try:
            if prove:
                self._proof = self._prove(paths)
            elif not all(map(_step, self._files)):
                files = [unproven(path.name, path.stat().st_size) for path in paths]
                self.reading = self._read(paths, files, first=4, most=16)
        except BaseException:
            self.close()
            raise

    def _prove(self, paths: Sequence[Path]) -> Fetch:
        # Imported while the kernel reads.
        from coldpress.serve.load.contents import of_folder

        cpus = usable_cpus()
        files = of_folder(paths[0]).files
        if len(files) != len(paths):
            raise IntegrityError(f"{paths[0]} is not all that its index lists", "fetch it again")
        return self._read(paths, files, first=cpus, most=max(4, 2 * cpus))

    def _read(
        self, paths: Sequence[Path], files: Sequence[File], *, first: int, most: int
    ) -> Fetch:
        self._sources = [FileSource(path) for path in paths]
        jobs = [
            Job(piece, source, None, head=piece.start == 0)
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

    def wait_heads(self) -> None:
        """Wait until the headers are proven, if they are to be; raises as ``wait``."""
        if self._proof is not None:
            self._proof.wait_heads()

    def wait(self) -> None:
        """Wait until every chunk is proven.

        Raises:
            IntegrityError: one differs.
        """
        if self._proof is not None:
            self._proof.wait()

    def note(self, trace: Trace) -> None:
        """Add the proof's span to a trace."""
        if self._proof is not None:
            trace.put("verify", self._proof.first_proven_s, self._proof.proven_s)

    def close(self) -> None:
        """Stop reading ahead and close the files."""
        self._stopped = True
        for fetch in (self._proof, self.reading):
            if fetch is not None:
                fetch.close()
        for source in self._sources:
            source.close()
        self._thread.join()
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


def latency_s(path: Path) -> float:
    """How long the device takes to answer a small read past the page cache: the best of two."""
    source = FileSource(path, direct=True)
    try:
        return min(_seconds(source, offset) for offset in (0, path.stat().st_size // 2))
    finally:
        source.close()


def _seconds(source: FileSource, offset: int) -> float:
    began = time.perf_counter()
    for _ in source.stream(offset, offset + 1):
        pass
    return time.perf_counter() - began


def _step(file: int) -> int:
    """How far ahead the kernel reads when it is told to, in bytes; 0: not at all, or unknown."""
    device = os.fstat(file).st_dev
    setting = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
    try:
        ahead = int(setting.read_text()) << 10
    except (OSError, ValueError):  # an overlay, or no sysfs
        return 0
    return min(ahead // _PAGE_BYTES * _PAGE_BYTES, _RANGE_BYTES)
