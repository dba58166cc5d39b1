"""Whether a model folder is a GPTQ checkpoint, and how its layers are packed. Imports no torch."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coldpress.errors import CorruptModelError, UnsupportedModelError
from coldpress.gptq.options import BITS
from coldpress.progress import note

V1, V2 = "gptq", "gptq_v2"  # V1 stores a zero point minus one.
OLD_CONFIG = "quantize_config.json"  # AutoGPTQ's own, before transformers had a place for it.
_AGAIN = "fetch the model again"


@dataclass(frozen=True)
class Layout:
    """What the config says of the packed layers; ``mixed``: some have other bits, seen by their shapes."""

    bits: int
    group_size: int
    checkpoint_format: str
    mixed: bool


def find(folder: Path, config: Mapping[str, Any]) -> Layout | None:
    """How a model folder's layers are packed; None where they are not GPTQ's.

    Raises:
        UnsupportedModelError: AWQ, a layout of a single kernel, or bits that no reader agrees on.
        CorruptModelError: the quantization's config is not one.
    """
    given = config.get("quantization_config")
    if given is None and (folder / OLD_CONFIG).is_file():
        given = {"quant_method": "gptq", **_read_old(folder / OLD_CONFIG)}
    if given is None:
        return None
    if not isinstance(given, dict):
        raise CorruptModelError(f"{folder}: quantization_config is not an object", _AGAIN)
    if given.get("quant_method") == "awq":
        raise UnsupportedModelError(
            f"{folder} is an AWQ checkpoint, which is not read",
            "give the unquantized or a GPTQ model",
        )
    if given.get("quant_method") != "gptq":
        return None
    layout = str(given.get("checkpoint_format") or given.get("format") or V1).lower()
    if layout not in (V1, V2):
        raise UnsupportedModelError(
            f"{folder} has the GPTQ layout {layout}, which one kernel alone reads",
            f"save it as {V1} or {V2}",
        )
    bits, group_size = given.get("bits"), given.get("group_size", -1)
    if bits not in BITS or not isinstance(group_size, int):
        raise UnsupportedModelError(
            f"{folder} has GPTQ layers of {bits} bits in groups of {group_size}",
            f"bits are read that are one of {', '.join(map(str, BITS))}",
        )
    return Layout(bits, group_size, layout, bool(given.get("dynamic")))


@contextmanager
def plain(folder: Path, layout: Layout | None, scratch: Path, outtype: str) -> Iterator[Path]:
    """The folder itself, or of a GPTQ checkpoint a plain copy in ``scratch``, which is removed after.

    Raises:
        CorruptModelError: see ``read.dequantize``.
    """
    if layout is None:
        yield folder
        return
    from coldpress.gptq import read

    note(f"  unpacking {layout.bits}-bit GPTQ layers")
    scratch.mkdir()
    try:
        read.dequantize(folder, layout, scratch, outtype)
        yield scratch
    finally:
        shutil.rmtree(scratch)


def _read_old(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_bytes())
    except ValueError as error:
        raise CorruptModelError(f"{path} is not readable JSON: {error}", _AGAIN) from error
    return data if isinstance(data, dict) else {}
