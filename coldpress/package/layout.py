"""Read a base image from an OCI layout: a folder or an archive."""

import json
import re
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coldpress import untar
from coldpress.artifact import sha256_file
from coldpress.errors import InputError, IntegrityError
from coldpress.package.base import Base, architecture
from coldpress.package.blobs import Blob
from coldpress.package.layer import Layer
from coldpress.package.lint.streams import Blob as StoredBlob
from coldpress.package.lint.streams import BombError, BrokenLayerError, Unpacked
from coldpress.package.oci import INDEX_TYPE, LAYER_TYPE, MANIFEST_TYPE
from coldpress.package.tarstream import BrokenTarError, Member, TarStream

_CONVERT = "skopeo copy --format oci --dest-compress-format gzip SOURCE oci:FOLDER:base"
_PYTHON = re.compile(r"(?:\./)?(usr/local/bin|usr/bin|opt/venv/bin)/python(3\.\d+)")
_LIBC = re.compile(r"(?:\./)?(?:usr/)?lib/[^/]*-linux-gnu/libc\.so\.6")
_GLIBC = re.compile(rb"stable release version (\d+\.\d+)")
# Docker's names for the same bytes, which registries still serve.
_DOCKER = "application/vnd.docker.distribution.manifest"
_MANIFEST_TYPES = (MANIFEST_TYPE, f"{_DOCKER}.v2+json")
_LAYER_TYPES = (LAYER_TYPE, "application/vnd.docker.image.rootfs.diff.tar.gzip")
_MAX_JSON_BYTES = 4 << 20
_MAX_BYTES = 64 << 30
_MAX_FILES = 10_000
_MAX_LIBC_BYTES = 64 << 20
_AGAIN = "fetch the base image again"


@dataclass
class _Content:
    """What a scan of the layers has found."""

    pythons: dict[str, str] = field(default_factory=dict)
    glibc: str = ""


def base(path: Path, work: Path) -> Base:
    """Read a base image and look for its Python and its C library.

    Args:
        path: an OCI layout folder, or a tar archive of one.
        work: where an archive is unpacked.

    Raises:
        InputError: not such an image, or without Python 3.
        IntegrityError: a blob does not have its digest, or a layer would write outside the image.
    """
    folder = path if path.is_dir() else _unpack(path, work / "layout")
    try:
        return _base(folder, path)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path} is no image that can be read: {error!r}", _CONVERT) from error


def _base(folder: Path, path: Path) -> Base:
    manifest = _manifest(folder)
    config = _load(_blob(folder, manifest["config"]["digest"]))
    if config.get("architecture") != architecture():
        raise InputError(
            f"{path} is for {config.get('architecture')}", f"give an image for {architecture()}"
        )
    diff_ids = config["rootfs"]["diff_ids"]
    content = _Content()
    layers = tuple(
        _layer(folder, described, diff_id, content)
        for described, diff_id in zip(manifest["layers"], diff_ids, strict=True)
    )
    if not content.pythons:
        raise InputError(f"{path} has no Python 3", "give an image that has one as --base")
    version, python = max(content.pythons.items(), key=lambda item: int(item[0].split(".")[1]))
    env = tuple(config.get("config", {}).get("Env") or ())
    return Base(layers, python, version, content.glibc, env)


def _unpack(archive: Path, folder: Path) -> Path:
    try:
        with tarfile.open(archive) as tar:
            untar.regular_files(tar, folder, max_bytes=_MAX_BYTES, max_files=_MAX_FILES)
    except (tarfile.TarError, OSError) as error:
        raise InputError(f"{archive} is not an OCI archive: {error}", _CONVERT) from error
    return folder


def _manifest(folder: Path) -> dict[str, Any]:
    """Follow the index to the one manifest for this machine."""
    found = _load(folder / "index.json")
    for _ in range(4):
        if found.get("mediaType", INDEX_TYPE) in _MANIFEST_TYPES:
            return found
        matching = [it for it in found.get("manifests", []) if _fits(it)]
        if len(matching) != 1:
            raise InputError(f"{folder} holds {len(matching)} images for this machine", _CONVERT)
        found = {"mediaType": MANIFEST_TYPE} | _load(_blob(folder, matching[0]["digest"]))
    raise InputError(f"{folder} nests its indexes too deeply", _CONVERT)


def _fits(described: dict[str, Any]) -> bool:
    named = described.get("platform", {}).get("architecture", architecture())
    return bool(named == architecture())


def _load(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise ValueError("too long")
        data = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not part of an OCI layout: {error}", _CONVERT) from error
    if not isinstance(data, dict):
        raise InputError(f"{path} is not part of an OCI layout", _CONVERT)
    return data


def _blob(folder: Path, digest: str) -> Path:
    """The file of a digest, checked against it."""
    if not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
        raise InputError(f"{folder} has the unusual digest {digest}", _CONVERT)
    path = folder / "blobs" / "sha256" / digest[7:]
    if not path.is_file():
        raise InputError(f"{path} is missing", _CONVERT)
    if sha256_file(path) != digest[7:]:
        raise IntegrityError(f"{path} does not have its digest", _AGAIN)
    return path


def _layer(folder: Path, described: dict[str, Any], diff_id: str, content: _Content) -> Blob:
    if described["mediaType"] not in _LAYER_TYPES:
        raise InputError(f"{folder} has a layer of type {described['mediaType']}", _CONVERT)
    path = _blob(folder, described["digest"])
    with path.open("rb") as stream:
        unpacked = Unpacked(StoredBlob(stream), _MAX_BYTES)
        try:
            size = _scan(unpacked, path, content)
        except (BrokenTarError, BrokenLayerError, BombError) as error:
            raise IntegrityError(f"{path} cannot be unpacked: {error}", _AGAIN) from error
    if unpacked.diff_id != diff_id:
        raise IntegrityError(f"{path} unpacks to other bytes than the config says", _AGAIN)
    return Blob(path, Layer(described["digest"], diff_id, described["size"], size))


def _scan(unpacked: Unpacked, path: Path, content: _Content) -> int:
    """The bytes of a layer's files; note Python and the C library on the way."""
    size = 0
    tar = TarStream(unpacked)
    for member in tar:
        _check_inside(member, path)
        if found := _PYTHON.fullmatch(member.name):
            content.pythons[found[2]] = f"/{found[1]}/python{found[2]}"
        if member.is_file:
            size += member.size_bytes
            if _LIBC.fullmatch(member.name):
                glibc = _GLIBC.search(tar.head(min(member.size_bytes, _MAX_LIBC_BYTES)))
                content.glibc = glibc[1].decode() if glibc else ""
    unpacked.drain()
    return size


def _check_inside(member: Member, path: Path) -> None:
    """Refuse what would be written, or linked to, outside the image's root."""
    names = [member.name, *([member.target] if member.kind == tarfile.LNKTYPE else [])]
    for name in names:
        if name.startswith("/") or ".." in name.split("/"):
            raise IntegrityError(
                f"{path} holds {name}, outside of the image", "do not use this base"
            )
