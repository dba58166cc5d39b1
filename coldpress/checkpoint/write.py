"""Write a checkpoint's GGUF: weights copied and hashed by chunk, then the header before them."""

import bisect
import hashlib
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from coldpress.checkpoint import chunks
from coldpress.checkpoint.chunks import Chunk
from coldpress.checkpoint.fields import Draft
from coldpress.checkpoint.gguf_header import Tensor
from coldpress.checkpoint.source import Source
from coldpress.errors import IntegrityError


def write(source: Source, draft: Draft, out: Path) -> None:
    """Write the draft's tensors and its header to ``out``, every weight byte as in the source."""
    digests = weights(
        source, draft.tensors, out, draft.header_bytes(), draft.data_bytes, draft.chunk_bytes
    )
    with out.open("r+b") as writer:
        writer.write(draft.encode(digests))


def weights(
    source: Source,
    tensors: Sequence[Tensor],
    out: Path,
    data_offset: int,
    data_bytes: int,
    chunk_bytes: int,
) -> list[str]:
    """Write a new file's data section, padding included; the sha256 of each of its chunks."""
    pieces = list(chunks.split(data_bytes, chunk_bytes))
    with ExitStack() as opened:
        readers = [opened.enter_context(path.open("rb")).fileno() for path in source.paths]
        writer = opened.enter_context(out.open("xb"))
        copy = _Copy(source, readers, tensors, writer.fileno(), data_offset)
        return chunks.map_parallel(copy, pieces, data_bytes, f"copying and hashing {out.name}")


class _Copy:
    """Moves one chunk of the new data section; called from several threads."""

    def __init__(
        self,
        source: Source,
        readers: Sequence[int],
        tensors: Sequence[Tensor],
        writer: int,
        data_offset: int,
    ) -> None:
        self.source = source
        self.readers = readers
        self.tensors = tensors
        self.starts = [tensor.offset for tensor in tensors]
        self.writer = writer
        self.data_offset = data_offset

    def __call__(self, chunk: Chunk) -> str:
        buffer = bytearray(chunk.end - chunk.start)  # zeros where there is padding
        # Tensors without bytes share their offset with the next: start at the first of them.
        first = max(bisect.bisect_left(self.starts, chunk.start) - 1, 0)
        for tensor in self.tensors[first:]:
            if tensor.offset >= chunk.end:
                break
            start = max(tensor.offset, chunk.start)
            end = min(tensor.offset + tensor.size_bytes, chunk.end)
            if start < end:
                view = memoryview(buffer)[start - chunk.start : end - chunk.start]
                self._fill(view, tensor.name, start - tensor.offset)
        _write_all(self.writer, buffer, self.data_offset + chunk.start)
        return hashlib.sha256(buffer).hexdigest()

    def _fill(self, view: memoryview, name: str, skip: int) -> None:
        file, position = self.source.places[name]
        position += skip
        while view:
            count = os.preadv(self.readers[file], [view], position)
            if count == 0:
                raise IntegrityError("the source GGUF shrank while it was read", "try again")
            view, position = view[count:], position + count


def _write_all(descriptor: int, data: bytearray, position: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(descriptor, view, position)
        view, position = view[count:], position + count
