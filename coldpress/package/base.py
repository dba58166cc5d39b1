"""What an image stands on: a Linux with a Python, from Debian, an OCI layout or a registry."""

import platform
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from coldpress.errors import InputError
from coldpress.package.blobs import Blob

_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True)
class Base:
    """Layers, lowest first, and what is in them.

    ``python`` is the interpreter's path, ``python_version`` its minor version, ``glibc`` the C
    library's version, empty where it could not be told. ``reference`` is the registry's image by its
    digest, empty where the base is none.
    """

    layers: tuple[Blob, ...]
    python: str
    python_version: str
    glibc: str
    env: tuple[str, ...]
    reference: str = ""


def architecture() -> str:
    """This machine's architecture by OCI's name: the installed llama.cpp libraries are for it."""
    machine = platform.machine()
    if machine not in _MACHINES:
        raise InputError(f"no image can be built on {machine}", "build on x86-64 or 64-bit Arm")
    return _MACHINES[machine]


def python_version() -> str:
    """This Python's minor version, such as ``3.11``."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def pinned(name: str) -> str:
    """A base's name, of a registry's image with its digest: a tag may be another image tomorrow.

    Raises:
        UsageError: it names nothing.
        RemoteError: the registry does not give the image.
    """
    from coldpress.package.registry import opened, reference

    if name == "debian" or Path(name).exists():
        return name
    parsed = reference.parse(name)
    if parsed.digest:
        return str(parsed)
    with opened(name, architecture=architecture()) as image:
        return str(replace(parsed, digest=image.digest))


def resolve(name: str, work: Path) -> Base:
    """Get a base image.

    Args:
        name: ``debian``, a folder or archive in OCI layout, or a registry reference, pinned.
        work: a folder for the unpacked blobs; it must outlive the result's use.

    Raises:
        ToolError: mmdebstrap is missing or fails.
        InputError: the image cannot serve as a base.
        RemoteError: the registry does not give the image.
    """
    from coldpress.package import debian, layout, registry

    if name == "debian":
        return debian.base()
    if Path(name).exists():
        return layout.base(Path(name), work)
    pulled = registry.pull(name, work / "pulled", architecture=architecture())
    return replace(layout.base(pulled, work), reference=name)
