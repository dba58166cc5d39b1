"""Files that llama.cpp may map while they are being filled: in memory, or in the local cache."""

import os
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

from coldpress.serve.fetch import Fetch, Job, SinkError, Source
from coldpress.serve.model_cache import Claim
from coldpress.serve.pieces import Contents
from coldpress.serve.trace import Trace


class Filling:
    """A fetch under way into files of its own; ``paths`` lead to them while it is open.

    Args:
        claim: an entry of the local cache to fill; None: files in memory.
        first: requests in flight to begin with; ``most``: at the end of the tuning.
    """

    def __init__(
        self,
        contents: Contents,
        sources: Sequence[Source],
        claim: Claim | None,
        *,
        first: int,
        most: int,
    ) -> None:
        self.contents = contents
        self._claim = claim
        self._sources = sources
        self._sinks = claim.sinks if claim else _in_memory(contents)
        jobs = [
            Job(piece, source, sink, head=piece.start == 0)
            for file, source, sink in zip(contents.files, sources, self._sinks, strict=True)
            for piece in file.pieces
        ]
        jobs.sort(key=lambda job: not job.head)  # headers first; the order stays beyond that
        resume = claim is not None and claim.resumed
        self.fetch = Fetch(jobs, first=first, most=most, resume=resume)

    @property
    def paths(self) -> tuple[Path, ...]:
        """Names for the open files, whether or not they have others."""
        return tuple(Path(f"/proc/self/fd/{sink}") for sink in self._sinks)

    @property
    def is_cached(self) -> bool:
        """Whether the files go into the local cache."""
        return self._claim is not None

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
        """Stop what is left to fetch, close the files: mappings stay. A whole entry is published."""
        self.fetch.close()
        for source in self._sources:
            source.close()
        if self._claim is None:
            for sink in self._sinks:
                os.close(sink)
        elif self.fetch.complete:
            # To wait for the disk would keep the first answer waiting.
            threading.Thread(target=self._claim.publish, name="publish", daemon=True).start()
        else:
            self._claim.release()


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
