"""Pieces of files, read by as many threads as make it faster, proven on arrival, put in their place.

The sources are objects on a server or files; the sinks are files in memory or on disk, or nothing
where only the page cache is to be filled. A piece whose digest is wrong is read again.
"""

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Protocol

from coldpress.errors import ColdpressError, IntegrityError, RemoteError
from coldpress.serve.load.pieces import Piece
from coldpress.serve.trace import now_s

_READINGS = 3
"""So often is a piece read before its bytes are called wrong."""
_WINDOW_S = 0.15
_GROWTH = 1.05


class Source(Protocol):
    """Where bytes come from; ``str`` is its name in messages."""

    @property
    def retries(self) -> int:
        """Requests that were made again."""

    def stream(self, start: int, end: int) -> Iterator[bytes | memoryview]:
        """Bytes ``[start, end)`` in pieces."""

    def interrupt(self) -> None:
        """Let a ``stream`` under way fail."""

    def close(self) -> None:
        """Let go of it, once nobody reads any more."""


@dataclass(frozen=True)
class Job:
    """A piece of one file, where it comes from and goes to; ``sink`` None: nowhere."""

    piece: Piece
    source: Source
    sink: int | None
    head: bool = False
    """llama.cpp reads it before it maps the rest."""


class SinkError(Exception):
    """The bytes cannot be kept where they should be: its disk is full or broken."""


class Tuner:
    """How many requests to keep in flight: twice as many for as long as that brings 5 % more."""

    def __init__(self, first: int, most: int) -> None:
        self.allowed = min(first, most)
        self._most = most
        self._best_rate = 0.0
        self._growing = True
        self._bytes = 0
        self._since_s: float | None = None

    def note(self, count: int, now_s: float) -> None:
        """Bytes have arrived."""
        if self._since_s is None:  # these bytes came in a time that nobody took
            self._since_s = now_s
            return
        self._bytes += count
        if not self._growing or now_s - self._since_s < _WINDOW_S:
            return
        rate = self._bytes / (now_s - self._since_s)
        if rate > _GROWTH * self._best_rate:
            self._growing = self.allowed < self._most
            self.allowed = min(2 * self.allowed, self._most)
        else:
            self._growing = False
            self.allowed = max(1, self.allowed // 2)
        self._best_rate = max(rate, self._best_rate)
        self._bytes, self._since_s = 0, now_s


class Fetch:
    """Threads that do jobs in order.

    Args:
        first: threads to begin with; ``most``: at the end of the tuning.
    """

    def __init__(self, jobs: Sequence[Job], *, first: int, most: int) -> None:
        self._jobs = jobs
        self._next = 0
        self._left = len(jobs)
        self._heads = sum(job.head for job in jobs)
        self._failure: Exception | None = None
        self._changed = threading.Condition()
        self._stopped = False
        self._tuner = Tuner(first, most)
        self._threads: list[threading.Thread] = []
        self.rereads = 0
        self.most_in_flight = 0
        self.fetched_bytes = 0
        self.began_s = self.arrived_s = self.first_proven_s = self.proven_s = now_s()
        with self._changed:
            self._staff()

    @property
    def retries(self) -> int:
        """Requests and pieces that were tried again."""
        return self.rereads + sum(source.retries for source in self._sources())

    def wait_heads(self) -> None:
        """Wait until every file's header is there.

        Raises:
            ColdpressError, SinkError: as ``wait``.
        """
        self._wait(lambda: self._heads == 0)

    def wait_share(self, share: float) -> None:
        """Wait until this share of the pieces is there; raises as ``wait``."""
        self._wait(lambda: self._left <= (1 - share) * len(self._jobs))

    def wait(self) -> None:
        """Wait until every byte is there and proven.

        Raises:
            IntegrityError: bytes stay wrong however often they are read.
            RemoteError: the source fails.
            SinkError: they cannot be kept.
        """
        self._wait(lambda: self._left == 0)

    @property
    def complete(self) -> bool:
        """Whether every byte is there and proven."""
        return self._left == 0

    def close(self) -> None:
        """Stop, and wait for the threads."""
        with self._changed:
            self._stopped = True
        if self._left:
            for source in self._sources():
                source.interrupt()
        for thread in self._threads:
            thread.join()

    def _sources(self) -> set[Source]:
        return {job.source for job in self._jobs}

    def _wait(self, reached: Callable[[], bool]) -> None:
        with self._changed:
            while not reached() and self._failure is None:
                self._changed.wait()
        self.raise_failure()

    def raise_failure(self) -> None:
        """Raise what stopped the fetch, if anything did."""
        if self._failure is not None:
            raise self._failure

    def _staff(self) -> None:
        """Start threads up to what is allowed; under the lock."""
        wanted = min(self._tuner.allowed, self._left)
        while len(self._threads) < wanted:
            thread = threading.Thread(target=self._work, args=(len(self._threads),), daemon=True)
            self._threads.append(thread)
            thread.start()
        self.most_in_flight = len(self._threads)

    def _work(self, number: int) -> None:
        try:
            while (job := self._take(number)) is not None:
                self._do(job)
                self._done(job)
        except Exception as error:  # in a thread: it is raised again where the fetch is waited for
            with self._changed:
                if self._failure is None and not self._stopped:
                    self._failure = error if isinstance(error, _KNOWN) else _unknown(error)
                self._stopped = True
                self._changed.notify_all()

    def _take(self, number: int) -> Job | None:
        with self._changed:
            over = number >= self._tuner.allowed or self._next == len(self._jobs)
            if self._stopped or over:
                return None
            self._next += 1
            return self._jobs[self._next - 1]

    def _done(self, job: Job) -> None:
        with self._changed:
            self.proven_s = now_s()
            if self._left == len(self._jobs):
                self.first_proven_s = self.proven_s
            self._left -= 1
            self._heads -= job.head
            self._changed.notify_all()

    def _do(self, job: Job) -> None:
        piece = job.piece
        for _ in range(_READINGS):
            if self._read(job) in (piece.sha256, None):
                return
            with self._changed:
                self.rereads += 1
        where = f"{job.source}: bytes {piece.start}-{piece.end}"
        if job.head:
            raise IntegrityError(
                f"{where} are not the header that the index knows",
                "the index is another model's, or the file is damaged: upload both again",
            )
        raise IntegrityError(
            f"{where} are damaged, {_READINGS} times", "upload the checkpoint again"
        )

    def _read(self, job: Job) -> str | None:
        """Read a piece into its place; its digest, if somebody wants it."""
        digest = sha256() if job.piece.sha256 is not None else None
        position = job.piece.start
        for data in job.source.stream(position, job.piece.end):
            if digest is not None:
                digest.update(data)
            if job.sink is not None:
                _keep(job.sink, data, position)
            position += len(data)
            self._note(len(data))
        return digest.hexdigest() if digest is not None else None

    def _note(self, count: int) -> None:
        with self._changed:
            self.fetched_bytes += count
            self.arrived_s = now_s()
            allowed = self._tuner.allowed
            self._tuner.note(count, time.monotonic())
            if self._tuner.allowed > allowed and not self._stopped:
                self._staff()


_KNOWN = (ColdpressError, SinkError)


def _unknown(error: Exception) -> ColdpressError:
    if isinstance(error, OSError):
        return RemoteError(f"the model cannot be read: {error}", "try again")
    return ColdpressError(f"the loader stopped: {error!r}", "report this")


def _keep(sink: int, data: bytes | memoryview, position: int) -> None:
    view = memoryview(data)
    try:
        while view:
            count = os.pwrite(sink, view, position)
            view, position = view[count:], position + count
    except OSError as error:
        raise SinkError(os.strerror(error.errno or errno.EIO)) from error
