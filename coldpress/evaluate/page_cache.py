"""A file put out of the kernel's page cache, and how much of it stayed."""

import ctypes
import mmap
import os
from pathlib import Path


def drop(path: Path) -> float:
    """Ask the kernel to forget a file's pages; returns the share of them that are still cached.

    The kernel keeps pages that a process has mapped, and all of a file that lives in memory
    (tmpfs). Only this kernel's cache is meant: a hypervisor or a disk may have one of its own.
    """
    with path.open("rb") as stream:
        os.fsync(stream.fileno())  # only pages that are already on disk can be dropped
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return cached_share(path)


def cached_share(path: Path) -> float:
    """The share of a file's pages that are in the page cache, 0–1, by ``mincore``."""
    n_bytes = path.stat().st_size
    if n_bytes == 0:
        return 0.0
    n_pages = -(-n_bytes // mmap.PAGESIZE)
    resident = (ctypes.c_ubyte * n_pages)()
    # A private copy-on-write mapping: ctypes takes the address of writable memory only.
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY) as view:
        first = ctypes.c_ubyte.from_buffer(view)
        libc = ctypes.CDLL(None, use_errno=True)
        address, length = ctypes.c_void_p(ctypes.addressof(first)), ctypes.c_size_t(n_bytes)
        failed = libc.mincore(address, length, resident)
        del first  # or the mapping could not be closed
        if failed:
            raise OSError(ctypes.get_errno(), "mincore")
    return sum(each & 1 for each in resident) / n_pages
