"""What was run, with which figures: an append-only store of JSON records and its index."""

from .diff import Difference, diff
from .index import Listing, find, listing
from .record import Record, of_evaluation, of_run
from .store import Stored, append, beside

__all__ = [
    "Difference",
    "Listing",
    "Record",
    "Stored",
    "append",
    "beside",
    "diff",
    "find",
    "listing",
    "of_evaluation",
    "of_run",
]
