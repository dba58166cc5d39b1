"""Fill a state dict from safetensors files with parallel direct reads; for PyTorch users.

A file becomes one buffer, page-aligned, and tensors are views of it. Several threads read pieces of
8 MiB past the page cache, straight to where they belong, and hash what is there. For a GPU each
thread has a pinned piece of its own, so that reading, hashing and copying overlap.

    from coldpress.checkpoint.state_dict import load_state_dict
    model.load_state_dict(load_state_dict("folder"), assign=True)
"""

import hashlib
import mmap
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch

from coldpress.checkpoint import index, safetensors_folder, safetensors_header
from coldpress.checkpoint.chunked import ChunkedFile, differs
from coldpress.checkpoint.chunks import Chunk, split
from coldpress.errors import InputError, IntegrityError, UsageError
from coldpress.serve.load.prefetch import is_cached
from coldpress.serve.threads import usable_cpus

_BLOCK = 4096
_PIECE_BYTES = safetensors_folder.CHUNK_BYTES
_THREADS = (4, 16)
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
}
# Younger than the oldest PyTorch that we run on.
_DTYPES |= {
    name: getattr(torch, theirs)
    for name, theirs in (("F8_E8M0", "float8_e8m0fnu"), ("F4", "float4_e2m1fn_x2"))
    if hasattr(torch, theirs)
}


def load_state_dict(
    folder: str | Path,
    device: str | torch.device = "cpu",
    *,
    threads: int | None = None,
    verify: bool = True,
) -> dict[str, torch.Tensor]:
    """Read all tensors of a folder of safetensors files.

    Tensors of one file share its memory: it is freed when the last of them is.

    Args:
        folder: holds ``*.safetensors`` and, for ``verify``, the index that `coldpress index` writes.
        device: where the tensors go.
        threads: that read; by default two per CPU, from 4 to 16.
        verify: check every chunk against the index while it is read.

    Raises:
        InputError: there are no such files, or no index.
        IntegrityError: a file is missing, truncated or differs; it names the chunk.
        UsageError: ``threads`` is not positive.
    """
    if threads is not None and threads < 1:
        raise UsageError(f"threads is {threads}", "1 or more, or None")
    folder, target = Path(folder), torch.device(device)
    least, most = _THREADS
    count = threads or min(max(2 * usable_cpus(), least), most)
    readings = _readings(folder, target, verify=verify)
    with ExitStack() as opened, ThreadPoolExecutor(count) as pool:
        cached = is_cached([reading.path for reading in readings])
        jobs = []
        for reading in readings:
            reading.open(opened, direct=not cached)
            jobs += [pool.submit(reading.read, piece) for piece in reading.pieces]
        try:
            for job in jobs:
                job.result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return {name: tensor for reading in readings for name, tensor in reading.tensors()}


def _readings(folder: Path, device: torch.device, *, verify: bool) -> "list[_Reading]":
    """A reading per file, into host memory or through pinned memory to the device."""
    kind = _Direct if device.type == "cpu" else _Staged
    if not verify:
        return [kind(path, None, device) for path in safetensors_folder.files(folder)]
    side = folder / index.INDEX_NAME
    if not side.is_file():
        raise InputError(
            f"{side} does not exist", "run `coldpress index` on it, or pass verify=False"
        )
    listed = index.read(side)
    if listed.chunk_bytes != _PIECE_BYTES:
        raise InputError(f"{side} has chunks of {listed.chunk_bytes} bytes", "index it again")
    return [kind(file.path, file, device) for file in safetensors_folder.opened(folder, listed)]


class _Reading(ABC):
    """One file on its way into memory; ``read`` is called from several threads."""

    def __init__(self, path: Path, known: ChunkedFile | None, device: torch.device) -> None:
        self.path = path
        self.header = safetensors_header.read(path)
        self.pieces = list(split(self.header.data_bytes, _PIECE_BYTES))
        self._known = known
        self._device = device
        self._direct = -1
        self._plain = -1

    def open(self, opened: ExitStack, *, direct: bool) -> None:
        """Open the file, past the page cache where asked for and possible."""
        self._plain = os.open(self.path, os.O_RDONLY)
        opened.callback(os.close, self._plain)
        if direct:
            try:
                self._direct = os.open(self.path, os.O_RDONLY | os.O_DIRECT)
            except OSError:  # tmpfs and some network file systems have none
                return
            opened.callback(os.close, self._direct)

    @abstractmethod
    def read(self, piece: Chunk) -> None:
        """Read and check one piece of the data section."""

    @abstractmethod
    def bytes_from(self, start: int, count: int) -> torch.Tensor:
        """Bytes of the data section as a view, where the tensors are to be."""

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every tensor, as a view of what was read."""
        for tensor in self.header.tensors:
            if tensor.dtype not in _DTYPES:
                raise InputError(f"{self.path}: PyTorch has no {tensor.dtype}", "update PyTorch")
            dtype = _DTYPES[tensor.dtype]
            shape = list(tensor.shape)
            if tensor.dtype == "F4":
                shape[-1] //= 2  # PyTorch counts pairs
            data = self.bytes_from(tensor.start, tensor.end - tensor.start)
            if data.storage_offset() % dtype.itemsize:
                data = data.clone()
            yield tensor.name, data.view(dtype).reshape(shape)

    def _fill(self, view: memoryview, position: int) -> None:
        """Read a range of the file: whole blocks past the page cache, what is left through it."""
        while view:
            direct = self._direct >= 0 and position % _BLOCK == 0 and len(view) >= _BLOCK
            part = view[: len(view) // _BLOCK * _BLOCK] if direct else view
            try:
                count = os.preadv(self._direct if direct else self._plain, [part], position)
            except OSError:
                if not direct:
                    raise
                self._direct = -1  # it was opened, but cannot be read that way
                continue
            if count == 0:
                raise IntegrityError(f"{self.path} shrank while it was read", "fetch it again")
            view, position = view[count:], position + count

    def _check(self, piece: Chunk, data: memoryview) -> None:
        known = self._known
        if known and hashlib.sha256(data).hexdigest() != known.chunk_sha256[piece.number]:
            raise differs([(known, piece)])


class _Direct(_Reading):
    """Reads into one buffer that has the file's own layout, so that blocks lie on pages.

    Chunks do not start on blocks. Each read takes the blocks that begin in its chunk; a chunk is
    hashed when the read of the next one, which has its last bytes, is done too.
    """

    def __init__(self, path: Path, known: ChunkedFile | None, device: torch.device) -> None:
        super().__init__(path, known, device)
        size = self.header.data_offset + self.header.data_bytes
        self._size = size
        # Anonymous memory is page-aligned; huge pages save a fault per 4 KiB.
        private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self._buffer = mmap.mmap(-1, -(-size // _BLOCK) * _BLOCK, flags=private)
        self._buffer.madvise(mmap.MADV_HUGEPAGE)
        self._lock = threading.Lock()
        self._read: set[int] = set()
        self._hashed: set[int] = set()

    def read(self, piece: Chunk) -> None:
        """See ``_Reading``."""
        start, end = self._blocks(piece)
        self._fill(memoryview(self._buffer)[start:end], start)
        for ready in self._ready(piece):
            first = self.header.data_offset + ready.start
            with memoryview(self._buffer)[first : first + ready.end - ready.start] as view:
                self._check(ready, view)

    def _blocks(self, piece: Chunk) -> tuple[int, int]:
        """The blocks of the file that begin in a piece, and those of the header in the first."""
        start = (self.header.data_offset + piece.start) // _BLOCK * _BLOCK
        if piece.number == len(self.pieces) - 1:
            return start, self._size
        return start, (self.header.data_offset + piece.end) // _BLOCK * _BLOCK

    def _ready(self, piece: Chunk) -> list[Chunk]:
        """The chunks that are complete now and that nobody else hashes."""
        with self._lock:
            self._read.add(piece.number)
            around = self.pieces[max(piece.number - 1, 0) : piece.number + 1]
            ready = [
                chunk
                for chunk in around
                if chunk.number not in self._hashed
                and chunk.number in self._read
                and min(chunk.number + 1, len(self.pieces) - 1) in self._read
            ]
            self._hashed |= {chunk.number for chunk in ready}
            return ready

    def bytes_from(self, start: int, count: int) -> torch.Tensor:
        """See ``_Reading``."""
        if count == 0:
            return torch.empty(0, dtype=torch.uint8)
        at = self.header.data_offset + start
        return torch.frombuffer(self._buffer, dtype=torch.uint8)[at : at + count]


class _Staged(_Reading):
    """Reads each piece into a buffer of the thread's own, pinned for a GPU, and copies it over."""

    def __init__(self, path: Path, known: ChunkedFile | None, device: torch.device) -> None:
        super().__init__(path, known, device)
        self._target = torch.empty(self.header.data_bytes, dtype=torch.uint8, device=device)
        self._own = threading.local()

    def read(self, piece: Chunk) -> None:
        """See ``_Reading``."""
        stage, stream = self._stage()
        start = self.header.data_offset + piece.start
        before, count = start % _BLOCK, piece.end - piece.start
        left = self.header.data_offset + self.header.data_bytes - (start - before)
        blocks = -(-(before + count) // _BLOCK) * _BLOCK
        view = stage.numpy().data[: min(blocks, left)]
        self._fill(view, start - before)
        self._check(piece, view[before : before + count])
        with torch.cuda.stream(stream) if stream else nullcontext():
            copied = stage[before : before + count]
            self._target[piece.start : piece.end].copy_(copied, non_blocking=True)
        if stream:  # the buffer is read into again; other threads read and hash meanwhile
            stream.synchronize()

    def bytes_from(self, start: int, count: int) -> torch.Tensor:
        """See ``_Reading``."""
        return self._target[start : start + count]

    def _stage(self) -> tuple[torch.Tensor, Any]:
        if not hasattr(self._own, "stage"):
            on_gpu = self._device.type == "cuda"
            size = _PIECE_BYTES + 2 * _BLOCK
            raw = torch.empty(size, dtype=torch.uint8, pin_memory=on_gpu)
            skip = -raw.data_ptr() % _BLOCK
            self._own.stage = raw[skip : skip + size - _BLOCK]
            self._own.stream = (
                torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]  # torch says no type
                if on_gpu
                else None
            )
        return self._own.stage, self._own.stream
