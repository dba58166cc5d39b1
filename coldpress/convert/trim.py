"""A converted model with zeros for what was pruned → llama.cpp's ``deci`` architecture without them.

``deci`` computes what ``llama`` does, with widths by block, and blocks without attention. Rows of a converted
feed-forward are in the checkpoint's order, so what goes is its end.
"""

import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGUFValueType

from coldpress.errors import CorruptModelError, UnsupportedModelError
from coldpress.quantize.source import open_gguf
from coldpress.shapes import Shapes

_ARCHITECTURE, _FROM, _TO = "general.architecture", "llama", "deci"
_BLOCK = re.compile(r"blk\.(\d+)\.(.+)\.weight")
_ATTENTION = ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output")
_BY_BLOCK = ("feed_forward_length", "attention.head_count", "attention.head_count_kv")


def trim(gguf_path: Path, shapes: Shapes, out: Path) -> None:
    """Write ``out`` without what is zeros.

    Raises:
        UnsupportedModelError: not of the ``llama`` architecture.
        CorruptModelError: what should be zeros is not.
    """
    reader = open_gguf(gguf_path)
    if reader.fields[_ARCHITECTURE].contents() != _FROM:
        raise UnsupportedModelError(
            f"{gguf_path} is {reader.fields[_ARCHITECTURE].contents()}; only llama has blocks of "
            "different shapes",
            "prune it without --heterogeneous",
        )
    with closing(gguf.GGUFWriter(out, _TO)) as writer:
        _add_metadata(writer, reader, shapes)
        tensors = list(_tensors(reader, shapes))
        for tensor, data in tensors:
            dtype = np.dtype(np.float32)  # Of no effect: the type and size are given.
            shape, kind = _shape(tensor, data), tensor.tensor_type
            writer.add_tensor_info(tensor.name, shape, dtype, data.nbytes, kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for _, data in tensors:
            writer.write_tensor_data(data)


def _tensors(reader: Any, shapes: Shapes) -> Iterator[tuple[Any, Any]]:
    """What stays, with its data, (rows, bytes of a row) or a vector."""
    for tensor in reader.tensors:
        found = _BLOCK.fullmatch(tensor.name)
        if found is None:
            yield tensor, tensor.data
            continue
        block, part = int(found[1]), found[2]
        neurons = shapes.neurons[block]
        if part in _ATTENTION and not shapes.attention[block]:
            if part in ("attn_v", "attn_output"):
                _check_zeros(tensor, tensor.data)
        elif part in ("ffn_gate", "ffn_up"):
            _check_zeros(tensor, tensor.data[neurons:])
            yield tensor, np.ascontiguousarray(tensor.data[:neurons])
        elif part == "ffn_down":
            stop = tensor.data.shape[1] * neurons // int(tensor.shape[0])
            _check_zeros(tensor, tensor.data[:, stop:])
            yield tensor, np.ascontiguousarray(tensor.data[:, :stop])
        else:
            yield tensor, tensor.data


def _check_zeros(tensor: Any, data: Any) -> None:
    if np.any(data):
        raise CorruptModelError(
            f"{tensor.name} holds weights where config.json says that it was pruned",
            "prune the model again, or remove `coldpress` from its config.json",
        )


def _shape(tensor: Any, data: Any) -> list[int]:
    """The shape in the writer's order, of what is left of the data."""
    shape = [int(each) for each in reversed(tensor.shape)]
    if len(shape) == 1:
        return shape
    inputs = shape[1] * data.shape[1] // tensor.data.shape[1]
    return [data.shape[0], inputs]


def _add_metadata(writer: gguf.GGUFWriter, reader: Any, shapes: Shapes) -> None:
    """All keys under the new architecture's name, three of them with a number for each block."""
    known = {name: field.contents() for name, field in reader.fields.items()}
    heads = int(known[f"{_FROM}.attention.head_count"])
    kv_heads = int(known[f"{_FROM}.attention.head_count_kv"])
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == _ARCHITECTURE:
            continue
        key = name.removeprefix(f"{_FROM}.")
        if key != name and key in _BY_BLOCK:
            continue
        target = name if key == name else f"{_TO}.{key}"
        sub_type = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
        writer.add_key_value(target, field.contents(), field.types[0], sub_type)
    writer.add_feed_forward_length(list(shapes.neurons))
    writer.add_head_count([heads * each for each in shapes.attention])
    writer.add_head_count_kv([kv_heads * each for each in shapes.attention])
