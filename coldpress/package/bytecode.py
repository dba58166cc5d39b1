"""Bytecode for an image's Python files: without it a cold start compiles them on every start."""

import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from coldpress import tools
from coldpress.package.layer import Entry, File

_WORKER = Path(__file__).with_name("compile_worker.py")


def compiler() -> str:
    """What compiles: a patch release or another build may write other bytes for the same source."""
    return sys.version


def with_bytecode(entries: Iterable[Entry]) -> list[Entry]:
    """Add a pyc for every Python file; this Python's minor version must be the image's.

    Raises:
        ToolError: the compiling process failed.
    """
    entries = list(entries)
    sources = [e for e in entries if isinstance(e, File) and e.path.endswith(".py")]
    with tempfile.TemporaryDirectory() as work:
        for entry in sources:
            copy = Path(work) / entry.path
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(_content(entry))
        argv: list[str | Path] = [sys.executable, "-s", "-S", "-W", "ignore", _WORKER, work]
        tools.run(argv, timeout_s=300, env={"PYTHONHASHSEED": "0"})
        compiled = [
            File(path.relative_to(work).as_posix(), path.read_bytes())
            for path in sorted(Path(work).rglob("*.pyc"))
        ]
    return [*entries, *compiled]


def _content(entry: File) -> bytes:
    return entry.source if isinstance(entry.source, bytes) else entry.source.read_bytes()
