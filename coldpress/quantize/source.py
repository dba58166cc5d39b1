"""The GGUF to quantize: opened, checked, and its tensors as rows of float32."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType as GgmlId

from coldpress.errors import InputError

Floats = npt.NDArray[np.float32]

_UNQUANTIZED = {GgmlId.F32, GgmlId.F16, GgmlId.BF16}
_SPLIT_COUNT = "split.count"

_LORA = ("w0", "w1", "w2", "v0", "v1", "v2", "a0", "a1", "a2", "g1", "g2")
_TIME_MIX = (*_LORA, "first", "decay_w1", "decay_w2", "lerp_fused")  # RWKV's small matrices.

# Parts of the names of matrices that llama.cpp keeps as they are: small, or read in another way
# than as a matrix product. Source: tensor_allows_quantization in llama.cpp's src/llama-quant.cpp.
_KEPT = (
    "_norm.weight",
    "ffn_gate_inp.weight",
    "ffn_gate_tid2eid.weight",
    "altup",
    "laurel",
    "per_layer_model_proj",
    "position_embd.weight",
    "token_types.weight",
    "ssm_conv1d",
    "shortconv.conv.weight",
    "indexer.k_proj.weight",
    "indexer.q_proj.weight",
    "attn_rel_b.weight",
    *(f"time_mix_{part}.weight" for part in _TIME_MIX),
)


def gguf_path(source: Path) -> Path:
    """The GGUF file that ``source`` means: itself, or ``model.gguf`` in an artifact's folder.

    Raises:
        InputError: there is no such file.
    """
    path = source / "model.gguf" if source.is_dir() else source
    if not path.is_file():
        raise InputError(f"{path} does not exist", "give a GGUF file or an artifact that holds one")
    return path


def open_unquantized(path: Path) -> gguf.GGUFReader:
    """Open a GGUF whose tensors are all F32, F16 or BF16.

    Raises:
        InputError: not a GGUF, one of several parts, truncated, already quantized, or with a list
            of no entries in its metadata.
    """
    reader = open_gguf(path)
    if _SPLIT_COUNT in reader.fields and reader.fields[_SPLIT_COUNT].contents() > 1:
        raise InputError(f"{path} is one part of several", "merge them with gguf-split first")
    for name, field in reader.fields.items():
        if field.types[0] == gguf.GGUFValueType.ARRAY and not field.contents():
            raise InputError(f"{path} has an empty list {name}", "the gguf package cannot copy it")
    for tensor in reader.tensors:
        if tensor.tensor_type not in _UNQUANTIZED:
            raise InputError(
                f"{path} is already quantized: {tensor.name} is {tensor.tensor_type.name}",
                "quantize the bf16, f16 or f32 GGUF that it was made from",
            )
    return reader


def open_gguf(path: Path) -> gguf.GGUFReader:
    """Open any GGUF, memory-mapped.

    Raises:
        InputError: it is not a readable GGUF with tensors.
    """
    try:
        reader = gguf.GGUFReader(path)
    except (ValueError, KeyError, IndexError, OSError) as error:
        raise InputError(f"{path} is not a readable GGUF: {error}", "build it again") from error
    if not reader.tensors:
        raise InputError(f"{path} holds no tensors", "give a GGUF with weights")
    return reader


def is_quantizable(tensor: Any) -> bool:
    """Whether a tensor is a matrix that llama.cpp reads quantized: embedding, head, projection."""
    name = tensor.name
    return (
        any(length > 1 for length in tensor.shape[1:])  # One row is a vector to ggml.
        and name.endswith("weight")
        and not any(part in name for part in _KEPT)
    )


def row_length(tensor: Any) -> int:
    """The number of weights in a row: the layer's number of inputs."""
    return int(tensor.shape[0])


def rows(tensor: Any, start: int, stop: int) -> Floats:
    """Rows ``start`` to ``stop`` of a tensor of any type as float32, (rows, inputs).

    The rows of a stack of experts are counted through all of them.
    """
    data = tensor.data.reshape(-1, tensor.data.shape[-1])[start:stop]
    decoded: Floats = gguf.quants.dequantize(data, tensor.tensor_type).astype(
        np.float32, copy=False
    )
    return decoded
