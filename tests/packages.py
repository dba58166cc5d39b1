"""Packages of a tiny model on a small base of our own: nothing is downloaded, a build takes a second."""

from pathlib import Path

import pytest

from coldpress.checkpoint import CheckpointOptions, checkpoint
from coldpress.package import layer, stage
from coldpress.package.base import Base
from coldpress.package.blobs import Blob
from coldpress.package.layer import File
from coldpress.package.runtime import SITE_PACKAGES
from tests import tiny_gguf

STATUS = b"""Package: libc6
Status: install ok installed
Version: 2.36-9+deb12u13
Architecture: amd64
Description: GNU C Library
 Version: not a field, but prose

Package: tzdata
Version: 2025b-0+deb12u2
Architecture: all

Package: broken
"""
METADATA = b"""Metadata-Version: 2.4
Name: Some_Thing
Version: 1.2
License-Expression: MIT AND 0BSD

Version: not a field, but prose
"""
BASE = [
    File("etc/os-release", b'ID=debian\nVERSION_ID="12"\n'),
    File("usr/bin/python3", b"", executable=True),
    File("var/lib/dpkg/status", STATUS),
]
RUNTIME = [
    File(f"{SITE_PACKAGES}/some_thing-1.2.dist-info/METADATA", METADATA),
    File(f"{SITE_PACKAGES}/some_thing/_native.so", b"\x7fELF and so on"),
]


def blob(folder: Path, name: str, entries: list[layer.Entry]) -> Blob:
    """A finished layer."""
    path = folder / f"{name}.tar.gz"
    with path.open("wb") as stream:
        return Blob(path, layer.write(entries, stream, "deflate"))


def small_base(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let packages stand on ``BASE`` and ``RUNTIME``, with a cache of their own."""
    monkeypatch.setenv("COLDPRESS_CACHE", str(folder / "cache"))
    found = Base(
        layers=(blob(folder, "base", list(BASE)),),
        env=(),
        python="/usr/bin/python3",
        python_version="3.11",
        glibc="2.36",
    )
    monkeypatch.setattr(stage, "resolve", lambda _name, _work: found)
    monkeypatch.setattr(stage.runtime, "entries", lambda _base, **_: list(RUNTIME))


def tiny_checkpoint(folder: Path) -> Path:
    """A checkpoint of a tiny model, of two shards and the metadata."""
    tiny_gguf.write(folder / "tiny.gguf")
    checkpoint(folder / "tiny.gguf", folder / "checkpoint", CheckpointOptions(shards=3))
    return folder / "checkpoint"
