"""Two settings that training on a CPU needs."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_BLOCK, _KEPT = 1 << 30, (1 << 31) - 1


@contextmanager
def training() -> Iterator[None]:
    """Take denormal numbers for zero, and keep freed memory for the next step.

    Adam's moments of weights without a gradient decay into denormal numbers, and training becomes three times
    slower. Logits are as large as the allocator gives back at once: a fifth of a step went into clearing their
    pages again.
    """
    with suppress(AttributeError):  # Another C library has no such function.
        for name, value in ((_M_MMAP_THRESHOLD, _LARGEST_BLOCK), (_M_TRIM_THRESHOLD, _KEPT)):
            ctypes.CDLL(None).mallopt(name, value)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
