"""How long a loader puts up with a server."""

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
