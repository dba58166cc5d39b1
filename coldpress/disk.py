"""A full disk, said as such."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from coldpress.errors import DiskFullError

_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def room_for(path: Path) -> Iterator[None]:
    """Around what writes ``path``.

    Raises:
        DiskFullError: the disk or the user's share of it is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise DiskFullError(
            f"no space left to write {path}", "free some space, or choose another folder"
        ) from error
