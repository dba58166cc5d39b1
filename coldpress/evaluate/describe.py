"""What to call an evaluated file: its type, how it was made, the machine it ran on."""

import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from coldpress import artifact
from coldpress.evaluate.session import Model
from coldpress.quantize.types import PRESET_PREFIX, TYPES

# base: not quantized by us; plain and imatrix: one ggml type for all; preset: llama.cpp's mix;
# compensated: a type or a mix with error feedback; budget: a searched mix of types; taught: one that was trained
# on lessons; student: another model than the base, pruned or distilled.
Method = Literal[
    "base", "plain", "imatrix", "preset", "compensated", "budget", "taught", "student", "file"
]


def describe(gguf: Path, model: Model, student: str | None = None) -> tuple[str, str, Method]:
    """Name, type and method of a file or an artifact.

    Args:
        student: what the model is called if it is not the one that others are compared with.
    """
    name, kind, method = _described(gguf, model)
    return (name, kind, method) if student is None else (f"{student} {name}", kind, "student")


def _described(gguf: Path, model: Model) -> tuple[str, str, Method]:
    """An artifact's manifest knows; of a bare file the name and ``general.file_type`` must do."""
    if not (gguf / artifact.MANIFEST).is_file():
        stem = gguf.parent.name if gguf.is_dir() else gguf.stem
        return stem, model.file_type(), "file"
    manifest = artifact.read(gguf)
    match manifest.stage:
        case "convert":
            kind = str(manifest.options.get("outtype", model.file_type()))
            return kind, kind, "base"
        case "quantize":
            return _quantized(manifest.options)
        case _:
            return gguf.name, model.file_type(), "file"


def _quantized(options: Mapping[str, Any]) -> tuple[str, str, Method]:
    if options["type"] is None:
        size = options["size"] or options["fit"] or f"{options['bpw']:g} bpw"
        if options.get("teach") is not None:
            return f"{size} taught", str(size), "taught"
        return f"{size} searched", str(size), "budget"
    kind, rounding = str(options["type"]), str(options["rounding"])
    name = kind.removeprefix(PRESET_PREFIX)
    if rounding == "compensated":
        return f"{name} compensated", name, "compensated"
    method: Method = "imatrix" if rounding == "imatrix" else "plain"
    if kind.startswith(PRESET_PREFIX) or name not in TYPES:
        method = "preset"
    return (f"{name} imatrix" if rounding == "imatrix" else name), name, method


def cpu_model() -> str:
    """The CPU's name as the kernel gives it."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.machine()
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found.group(1) if found else platform.machine()
