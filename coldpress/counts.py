"""Numbers of tokens and parameters as people write them: 2M, 1.5B, 40k."""

import re
from decimal import Decimal

from coldpress.errors import UsageError

_UNITS = {"": 1, "K": 1_000, "M": 1_000_000, "B": 1_000_000_000, "T": 1_000_000_000_000}
_COUNT = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Z]?)", re.IGNORECASE)


def parse_count(text: str) -> int:
    """A whole number, rounded down.

    Raises:
        UsageError: not a number above zero.
    """
    match = _COUNT.fullmatch(text.strip())
    unit = _UNITS.get(match[2].upper()) if match else None
    count = int(Decimal(match[1]) * unit) if match and unit else 0
    if count <= 0:
        raise UsageError(f"{text!r} is not a count", "a number with k, M or B: 500k, 2M, 1.5B")
    return count
