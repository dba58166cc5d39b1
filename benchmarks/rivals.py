"""The files that llama.cpp's own programs make of a model: every preset, and every type alone."""

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.judge import EXACT, QUIET, THREADS
from benchmarks.peers import peers
from benchmarks.subjects import Subject
from coldpress import tools
from coldpress.errors import ToolError
from coldpress.quantize.types import TYPES

IMATRIX_COMMAND = f"llama-imatrix --process-output {' '.join(EXACT)} -c CONTEXT"
QUANTIZE_COMMAND = "llama-quantize [--pure] [--imatrix imatrix.gguf] BF16 OUT PRESET"
_NOT_ROUNDED = {"F32", "F16", "BF16", "COPY"}


@dataclass(frozen=True)
class File:
    """A GGUF to judge; ``family`` is one of preset, preset imatrix, pure imatrix, gptq, ours."""

    family: str
    name: str
    path: Path


def imatrix(subject: Subject, bf16: Path, folder: Path) -> Path:
    """llama-imatrix over the calibration text, the head's input included where there is a head."""
    path = folder / "imatrix.gguf"
    if not path.is_file():
        shutil.copyfile(subject.calibration, folder / "calibration.txt")
        program = str(peers() / "llama-imatrix")
        argv = [program, "-m", str(bf16.resolve()), "-f", "calibration.txt", *EXACT]
        options = ["-o", "imatrix.partial.gguf", "-c", str(subject.context), "--process-output"]
        # Inside the folder: the names of its files are written into every file made with it.
        tools.run([*argv, *options], timeout_s=3600, cwd=folder, env=QUIET)
        (folder / "imatrix.partial.gguf").rename(path)
    return path


def presets() -> list[str]:
    """Every mix that llama-quantize offers, by its first name."""
    said = tools.run(["sh", "-c", f"'{peers() / 'llama-quantize'}' --help || true"], timeout_s=60)
    rows = re.findall(r"^\s+\d+\s+or\s+(\w+)\s*:(.*)$", said, re.MULTILINE)
    return [name for name, about in rows if name not in _NOT_ROUNDED and "alias" not in about]


def files(bf16: Path, folder: Path) -> Iterator[File]:
    """Make them one after the other; a mix that llama-quantize refuses without imatrix is left out."""
    known = ["--imatrix", "imatrix.gguf"]
    numbers = {kind.name: str(kind.file_type) for kind in TYPES.values()}
    for family, options, kinds in (
        ("preset imatrix", known, {name: name for name in presets()}),
        ("pure imatrix", ["--pure", *known], numbers),
        ("preset", [], {name: name for name in presets()}),
    ):
        for name, kind in kinds.items():
            if path := _quantize(bf16, folder, f"{family} {name}", options, kind):
                yield File(family, name, path)


def _quantize(bf16: Path, folder: Path, name: str, options: list[str], kind: str) -> Path | None:
    """The file; None if llama-quantize refuses, its words kept in place of the file."""
    path = folder / f"{name.replace(' ', '-')}.gguf"
    refused = path.with_suffix(".refused")
    if refused.is_file():
        return None
    if not path.is_file():
        files = [str(bf16.resolve()), "partial.gguf"]
        argv = [str(peers() / "llama-quantize"), *options, *files, kind, str(THREADS)]
        try:
            tools.run(argv, timeout_s=3600, cwd=folder, env=QUIET)
        except ToolError as error:
            refused.write_text(f"{error}\n")
            return None
        (folder / "partial.gguf").rename(path)
    return path
