"""Where the seconds of a cold start went: JSON lines on stderr, in seconds since process start."""

import json
import os
import sys
import time
from pathlib import Path

_STARTTIME = 19
"""Index of ``starttime`` among the fields of /proc/self/stat that follow the command's name."""


def process_start_s() -> float:
    """When this process began, on CLOCK_BOOTTIME, by /proc/self/stat; "now" where there is none."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        return int(fields[_STARTTIME]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return _now_s()


class Trace:
    """Marks of one cold start. Each is set once, the first time it is reached."""

    def __init__(self) -> None:
        self._start_s = process_start_s()
        self._marks: dict[str, float] = {}

    def mark(self, name: str) -> bool:
        """Note that ``name`` is reached; true the first time."""
        if name in self._marks:
            return False
        # The kernel counts a process's start in ticks of 10 ms: never show a negative time.
        self._marks[name] = round(max(0.0, _now_s() - self._start_s), 4)
        return True

    def emit(self, event: str, **facts: object) -> None:
        """Print one JSON line: the event, the marks as ``NAME_s``, the facts."""
        marks = {f"{name}_s": seconds for name, seconds in list(self._marks.items())}
        line = json.dumps({"event": event, **marks, **facts})
        # One write, so that lines of several threads never mix.
        sys.stderr.write(line + "\n")
        sys.stderr.flush()


def _now_s() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
