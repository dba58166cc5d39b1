"""Unpack archives that others made: regular files only, inside the folder only, within limits.

The standard library's extraction filters would do, but Python 3.11 has them only from 3.11.4 on, and
Debian 12 ships 3.11.2.
"""

import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from coldpress.errors import IntegrityError


def regular_files(
    archive: tarfile.TarFile,
    folder: Path,
    *,
    place: Callable[[str], str | None] = lambda name: name,
    max_bytes: int,
    max_files: int,
) -> None:
    """Write an archive's regular files below ``folder``; links, devices and modes are left out.

    Args:
        place: a member's name → its path below ``folder``, or None to leave it out.

    Raises:
        IntegrityError: a path leaves the folder, or there are more bytes or files than allowed.
    """
    n_bytes = n_files = 0
    for member in archive:
        inner = place(member.name) if member.isfile() else None
        if inner is None:
            continue
        path = PurePosixPath(inner)
        if path.is_absolute() or ".." in path.parts:
            raise IntegrityError(f"the archive holds {member.name}", "do not use this archive")
        n_bytes, n_files = n_bytes + member.size, n_files + 1
        if n_bytes > max_bytes or n_files > max_files:
            raise IntegrityError(
                f"the archive unpacks to more than {max_bytes:,} bytes or {max_files:,} files",
                "do not use this archive",
            )
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        source = archive.extractfile(member)
        if source is not None:
            with source, target.open("wb") as stream:
                shutil.copyfileobj(source, stream, 1 << 20)
