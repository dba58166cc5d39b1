"""Build a package of ``tests.packages`` in a process of its own, which can be stopped where it hurts.

``python -m tests.package_process FOLDER OUT [STOP]``: at STOP it prints a line and waits to be killed.
"""

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from coldpress import artifact, cli
from coldpress.package import build, layer, provenance
from tests import packages


def stopping(patch: pytest.MonkeyPatch, owner: Any, name: str, when: Callable[..., bool]) -> None:
    """Stop in a function, after its first act where it writes."""
    real = getattr(owner, name)

    def stopped(*args: Any, **given: Any) -> Any:
        if not when(*args):
            return real(*args, **given)
        print("stopped", flush=True)
        while True:
            signal.pause()

    patch.setattr(owner, name, stopped)


def main(folder: Path, out: Path, stop: str) -> None:
    """Build, or stop."""
    patch = pytest.MonkeyPatch()
    packages.small_base(patch, folder)
    writes = 0

    def second(*_: object) -> bool:
        nonlocal writes
        writes += 1
        return writes == 2

    match stop:
        case "layer":  # while a layer is written into the cache
            stopping(patch, layer._Gzip, "finish", second)
        case "weights":  # in the middle of the image
            stopping(patch, build.Archive, "write_layer", second)
        case "documents":
            stopping(patch, provenance, "write", lambda *_: True)
        case "manifest":  # everything is written, nothing renamed
            stopping(patch, artifact, "_replace", lambda *_: True)
        case "rename":  # the old artifact is away, the new one not yet in its place
            stopping(patch, Path, "rename", lambda path, _: path.name == f"{out.name}.partial")
    sys.argv = ["coldpress", "package", str(folder / "checkpoint"), "-o", str(out)]
    sys.argv += ["--target", "lambda", "--json"]
    cli.main()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else "")
