"""Write a checkpoint's GGUF: weights copied and hashed by chunk, then the header before them."""

import bisect
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from coldpress.checkpoint import chunks, fields, layout
from coldpress.checkpoint.chunks import Chunk
from coldpress.checkpoint.gguf_header import Header, Tensor, pad
from coldpress.errors import IntegrityError


def write(source: Path, header: Header, out: Path, alignment: int, chunk_bytes: int) -> None:
    """Write ``source``'s tensors to ``out`` in execution order, every weight byte as it was."""
    tensors = layout.place(layout.execution_order(header.tensors), alignment)
    last = tensors[-1]
    data_bytes = pad(last.offset + last.size_bytes, alignment)
    pieces = list(chunks.split(data_bytes, chunk_bytes))
    unknown = ["0" * 64] * len(pieces)
    header_bytes = len(fields.encode(header.fields, tensors, alignment, chunk_bytes, unknown))
    with source.open("rb") as reader, out.open("xb") as writer:
        copy = _Copy(reader.fileno(), writer.fileno(), header, tensors, header_bytes)
        digests = chunks.map_parallel(copy, pieces, data_bytes, "copying and hashing")
        writer.write(fields.encode(header.fields, tensors, alignment, chunk_bytes, digests))


class _Copy:
    """Moves one chunk of the new data section; called from several threads."""

    def __init__(
        self, reader: int, writer: int, source: Header, tensors: Sequence[Tensor], data_offset: int
    ) -> None:
        self.reader = reader
        self.writer = writer
        self.tensors = tensors
        self.starts = [tensor.offset for tensor in tensors]
        self.positions = {t.name: source.data_offset + t.offset for t in source.tensors}
        self.data_offset = data_offset

    def __call__(self, chunk: Chunk) -> str:
        buffer = bytearray(chunk.end - chunk.start)  # zeros where there is padding
        first = max(bisect.bisect_right(self.starts, chunk.start) - 1, 0)
        for tensor in self.tensors[first:]:
            if tensor.offset >= chunk.end:
                break
            start = max(tensor.offset, chunk.start)
            end = min(tensor.offset + tensor.size_bytes, chunk.end)
            if start < end:
                view = memoryview(buffer)[start - chunk.start : end - chunk.start]
                self._fill(view, self.positions[tensor.name] + start - tensor.offset)
        _write_all(self.writer, buffer, self.data_offset + chunk.start)
        return hashlib.sha256(buffer).hexdigest()

    def _fill(self, view: memoryview, position: int) -> None:
        while view:
            count = os.preadv(self.reader, [view], position)
            if count == 0:
                raise IntegrityError("the source GGUF shrank while it was read", "try again")
            view, position = view[count:], position + count


def _write_all(descriptor: int, data: bytearray, position: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(descriptor, view, position)
        view, position = view[count:], position + count
