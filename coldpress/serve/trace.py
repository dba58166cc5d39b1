"""Where the seconds of a cold start went: JSON lines on stderr, in seconds since process start."""

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_STARTTIME = 19
"""Index of ``starttime`` among the fields of /proc/self/stat that follow the command's name."""


def process_start_s() -> float:
    """When this process began, on ``now_s``'s clock, by /proc/self/stat; "now" where there is none."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        return int(fields[_STARTTIME]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return now_s()


def now_s() -> float:
    """CLOCK_BOOTTIME, the kernel's clock for process starts."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Trace:
    """Marks and spans of one cold start. Each is set once, the first time it is reached."""

    def __init__(self) -> None:
        self._start_s = process_start_s()
        self._marks: dict[str, float] = {}
        self._spans: dict[str, tuple[float, float]] = {}

    def mark(self, name: str) -> bool:
        """Note that ``name`` is reached; true the first time."""
        if name in self._marks:
            return False
        self._marks[name] = self._since_start(now_s())
        return True

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Note when ``name`` begins and ends; its end is a mark too."""
        began_s = now_s()
        try:
            yield
        finally:
            self.put(name, began_s, now_s())

    def put(self, name: str, began_s: float, ended_s: float) -> None:
        """Note a span that somebody else has timed, on ``now_s``'s clock."""
        if name not in self._spans:
            self._spans[name] = self._since_start(began_s), self._since_start(ended_s)
            self._marks.setdefault(name, self._spans[name][1])

    def between(self, name: str, first: str, last: str) -> None:
        """Note a span from one mark to another."""
        self._spans[name] = self._marks[first], self._marks[last]

    @property
    def timeline(self) -> dict[str, tuple[float, float]]:
        """What has happened from when to when; what runs at the same time overlaps."""
        return dict(self._spans)

    def emit(self, event: str, **facts: object) -> None:
        """Print one JSON line: the event, the marks as ``NAME_s``, the facts."""
        marks = {f"{name}_s": seconds for name, seconds in list(self._marks.items())}
        line = json.dumps({"event": event, **marks, **facts})
        # One write, so that lines of several threads never mix.
        sys.stderr.write(line + "\n")
        sys.stderr.flush()

    def _since_start(self, seconds: float) -> float:
        # The kernel counts a process's start in ticks of 10 ms: never show a negative time.
        return round(max(0.0, seconds - self._start_s), 4)
