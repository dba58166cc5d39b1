"""How long a loader puts up with a server, and how it is told to stop."""

import threading
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Patience:
    """When to give up: on one read, on one range, on everything."""

    stall_s: float = 10.0
    """A read that brings nothing for so long is begun anew."""
    attempts: int = 6
    """Failures in a row, none of which brought a byte."""
    backoff_s: float = 0.1
    """Pause after the first failure; it doubles, and is shortened at random by up to half."""
    longest_pause_s: float = 5.0
    deadline_s: float = 900.0
    slowest_bytes_per_s: int = 64 << 10
    """An answer slower than this over ``stall_s`` counts as stalled."""


PATIENT = Patience()


class Stop:
    """Tells what waits for a server that its result is no longer wanted."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._callbacks: list[Callable[[], None]] = []
        self._is_set = False

    def on(self, callback: Callable[[], None]) -> None:
        """Call it when told to stop, or now if that has been."""
        with self._lock:
            self._callbacks.append(callback)
            late = self._is_set
        if late:
            callback()

    def set(self) -> None:
        """Stop everything."""
        with self._lock:
            self._is_set = True
            callbacks = list(self._callbacks)
        for callback in callbacks:
            callback()
