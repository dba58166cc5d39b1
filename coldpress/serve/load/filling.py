"""Files in memory that llama.cpp may map while they are being filled."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from coldpress.serve.load.fetch import Fetch, Job, SinkError, Source
from coldpress.serve.load.pieces import Contents
from coldpress.serve.trace import Trace


class Filling:
    """A fetch under way into files of its own; ``paths`` lead to them while it is open.

    Args:
        first: requests in flight to begin with; ``most``: at the end of the tuning.
        cached: copy the files into the local cache afterwards.
    """

    def __init__(
        self,
        contents: Contents,
        sources: Sequence[Source],
        *,
        first: int,
        most: int,
        cached: bool = False,
    ) -> None:
        self.contents = contents
        self._sources = sources
        self._cached = cached
        self._sinks = _in_memory(contents)
        jobs = [
            Job(piece, source, sink, head=piece.start == 0)
            for file, source, sink in zip(contents.files, sources, self._sinks, strict=True)
            for piece in file.pieces
        ]
        jobs.sort(key=lambda job: not job.head)  # headers first; the order stays beyond that
        self.fetch = Fetch(jobs, first=first, most=most)

    @property
    def paths(self) -> tuple[Path, ...]:
        """Names for the open files, whether or not they have others."""
        return tuple(Path(f"/proc/self/fd/{sink}") for sink in self._sinks)

    @property
    def proven(self) -> bool:
        """Whether every byte had a digest."""
        return self.contents.root_sha256 is not None

    def note(self, trace: Trace) -> None:
        """Add the fetch's spans to a trace."""
        trace.put("fetch", self.fetch.began_s, self.fetch.arrived_s)
        if self.proven:
            trace.put("verify", self.fetch.first_proven_s, self.fetch.proven_s)

    def close(self) -> None:
        """Stop what is left to fetch and close the files: what is mapped stays mapped."""
        self.fetch.close()
        for source in self._sources:
            source.close()
        if self._cached and self.fetch.complete:
            from coldpress.serve.load import model_cache

            model_cache.keep_later(self.contents, self._sinks)
            return
        for sink in self._sinks:
            os.close(sink)


def _in_memory(contents: Contents) -> list[int]:
    """An anonymous file for each of the model's files.

    Raises:
        SinkError: there is no room.
    """
    sinks: list[int] = []
    try:
        for file in contents.files:
            sinks.append(_anonymous(file.name))
            os.ftruncate(sinks[-1], file.size_bytes)
    except OSError as error:
        for sink in sinks:
            os.close(sink)
        raise SinkError(str(error)) from error
    return sinks


def _anonymous(name: str) -> int:
    try:
        return os.memfd_create(name)
    except OSError:  # some sandboxes have no memfd
        with tempfile.TemporaryFile() as file:
            return os.dup(file.fileno())
