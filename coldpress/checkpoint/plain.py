"""The way back: any checkpoint, sharded or not, as one plain GGUF without our metadata."""

from pathlib import Path

from coldpress import artifact
from coldpress.checkpoint import gguf_header, index, layout, source, write
from coldpress.checkpoint.stage import Checkpointed

_CHUNK_BYTES = 8 << 20
"""Of one copy at a time; a plain file has no chunks."""


def plain(gguf: Path, out: Path) -> Checkpointed:
    """Write ``model.gguf`` with GGUF's usual alignment and the model's own metadata alone.

    Tensors keep their bytes and their order.

    Args:
        gguf: a GGUF, a first shard, or a folder with either.
        out: the artifact's folder.

    Raises:
        InputError: not a whole GGUF.
    """
    model = source.read(gguf)
    alignment = gguf_header.DEFAULT_ALIGNMENT
    tensors = layout.place(model.tensors, alignment)
    header = gguf_header.encode(model.fields, tensors, alignment)
    with artifact.create(
        out, "checkpoint", inputs={"gguf": gguf}, options={"plain": True}
    ) as draft:
        written = draft.folder / index.GGUF_NAME
        size = gguf_header.data_bytes(tensors, alignment)
        write.weights(model, tensors, written, len(header), size, _CHUNK_BYTES)
        with written.open("r+b") as writer:
            writer.write(header)
    return Checkpointed(
        path=out,
        size_bytes=len(header) + size,
        header_bytes=len(header),
        n_files=1,
        n_tensors=len(tensors),
        n_chunks=0,
        root_sha256=None,
    )
