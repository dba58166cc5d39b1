"""llama.cpp's own mixes through libllama: the same bytes as `llama-quantize` writes."""

import ctypes
from pathlib import Path
from typing import Any

from coldpress import libllama
from coldpress.calibrate.imatrix import Imatrix
from coldpress.errors import ToolError
from coldpress.quantize.layout import Metadata
from coldpress.quantize.types import Preset

_INT, _STR = 0, 3  # LLAMA_KV_OVERRIDE_TYPE_*
_MAX_TEXT_BYTES = 127


def write(
    source: Path, path: Path, preset: Preset, imatrix: Imatrix | None, metadata: Metadata
) -> None:
    """Quantize the GGUF ``source`` to ``path``.

    Args:
        metadata: keys about the imatrix to add, as llama-quantize does.

    Raises:
        ToolError: libllama refuses; it gives no reason to a caller.
    """
    llama = libllama.load()
    params = llama.llama_model_quantize_default_params()
    params.ftype = preset.file_type
    if imatrix is not None:
        params.imatrix = _imatrix_array(llama, imatrix)
        params.kv_overrides = _overrides(llama, metadata)
    code = llama.llama_model_quantize(
        str(source).encode(), str(path).encode(), ctypes.byref(params)
    )
    if code != 0:
        raise ToolError(
            f"llama.cpp cannot make {preset.name} of {source}",
            "run llama-quantize on the same files to see its reason",
        )


def _imatrix_array(llama: Any, imatrix: Imatrix) -> Any:
    """Name, values and length per tensor, ended by an empty entry; keeps the values alive."""
    entries = (llama.llama_model_imatrix_data * (len(imatrix.sums) + 1))()
    entries.kept = [imatrix.importance(name) for name in sorted(imatrix.sums)]
    for entry, name, values in zip(entries, sorted(imatrix.sums), entries.kept, strict=False):
        entry.name = name.encode()
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        entry.size = values.size
    return entries


def _overrides(llama: Any, metadata: Metadata) -> Any:
    """Key-value pairs, ended by one with an empty key."""
    overrides = (llama.llama_model_kv_override * (len(metadata) + 1))()
    for override, (key, value) in zip(overrides, metadata.items(), strict=False):
        override.key = key.encode()
        match value:
            case int():
                override.tag, override.value.val_i64 = _INT, value
            case str():
                text = value.encode()[:_MAX_TEXT_BYTES]
                override.tag, override.value.val_str = _STR, text
    return overrides
