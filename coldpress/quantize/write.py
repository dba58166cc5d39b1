"""A GGUF → a GGUF with other types: metadata and order kept, tensors encoded one at a time."""

from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGUFValueType

from coldpress.errors import IntegrityError
from coldpress.progress import task
from coldpress.quantize.encode import Bytes
from coldpress.quantize.layout import Metadata, Plan, predict_size, tensor_bytes
from coldpress.quantize.source import Floats
from coldpress.quantize.types import GgmlType

Encode = Callable[[Any, GgmlType], Bytes]

_ARCHITECTURE = "general.architecture"
_ALIGNMENT = "general.alignment"


def write(
    reader: gguf.GGUFReader,
    plan: Plan,
    metadata: Metadata,
    path: Path,
    encode: Encode,
    values: Mapping[str, Floats] | None = None,
) -> None:
    """Write ``reader``'s file to ``path`` with the plan's tensors re-encoded.

    Args:
        metadata: keys to set or add, numbers as uint32; all others are copied.
        encode: tensor and type → its bytes, (rows, bytes of a row).
        values: new contents of F32 tensors that the plan leaves as they are, by name.

    Raises:
        IntegrityError: the written size is not the predicted one.
    """
    with closing(gguf.GGUFWriter(path, reader.fields[_ARCHITECTURE].contents())) as writer:
        if _ALIGNMENT in reader.fields:
            writer.data_alignment = int(reader.alignment)
        _add_metadata(writer, reader, metadata)
        _add_infos(writer, reader, plan)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        with task("quantizing", sum(int(each.n_elements) for each in reader.tensors)) as advance:
            for tensor in reader.tensors:
                kind = plan.get(tensor.name)
                writer.write_tensor_data(
                    _kept(tensor, values or {}) if kind is None else encode(tensor, kind)
                )
                advance(int(tensor.n_elements))
    predicted, actual = predict_size(reader, plan, metadata), path.stat().st_size
    if predicted != actual:
        raise IntegrityError(
            f"{path} has {actual} bytes, not {predicted} as planned", "report this"
        )


def _kept(tensor: Any, values: Mapping[str, Floats]) -> Any:
    """A tensor's own data, or its new contents."""
    new = values.get(tensor.name)
    return tensor.data if new is None else new.astype(np.float32).reshape(tensor.data.shape)


def _add_infos(writer: gguf.GGUFWriter, reader: gguf.GGUFReader, plan: Plan) -> None:
    for tensor in reader.tensors:
        shape = [int(length) for length in reversed(tensor.shape)]
        kind = plan[tensor.name].ggml_id if tensor.name in plan else tensor.tensor_type
        size = tensor_bytes(tensor, plan)
        dtype = np.dtype(np.float32)  # Of no effect: the type and size are given.
        writer.add_tensor_info(tensor.name, shape, dtype, size, gguf.GGMLQuantizationType(kind))


def _add_metadata(writer: gguf.GGUFWriter, reader: gguf.GGUFReader, metadata: Metadata) -> None:
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == _ARCHITECTURE or name in metadata:
            continue
        sub_type = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), field.types[0], sub_type)
    for name, value in metadata.items():
        match value:
            case int():
                writer.add_uint32(name, value)
            case str():
                writer.add_key_value(name, value, GGUFValueType.STRING)
