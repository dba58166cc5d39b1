"""What software a layer holds, found in the layer itself: packages, libraries, model files.

The same reading makes a package's list of contents and checks it later, from the image alone.
"""

import hashlib
import json
import os
import re
import tarfile
from collections.abc import Iterable, Mapping
from email.parser import HeaderParser
from typing import Any

from coldpress import disk
from coldpress.cache import cache_dir
from coldpress.errors import InputError
from coldpress.package.blobs import Blob
from coldpress.package.lint import streams
from coldpress.package.runtime import SITE_PACKAGES
from coldpress.package.tarstream import BrokenTarError, Member, TarStream

# Changes whenever the same layer is described otherwise.
_FORMAT = 1
_STATUS = re.compile(r"var/lib/dpkg/(status|status\.d/(?!.*\.md5sums$)[^/]+)")
_METADATA = re.compile(r".*\.dist-info/METADATA")
_OS_RELEASE = re.compile(r"(etc|usr/lib)/os-release")
_LIBRARY = re.compile(rf"{SITE_PACKAGES}/.*\.so(\.[\d.]+)?")
_MODEL_FILE = re.compile(r".*\.gguf")
_INDEX = re.compile(r".*/model\.index\.json")
_MAX_TEXT_BYTES = 64 << 20
_MAX_UNPACKED_BYTES = 64 << 30
_PIECE = 1 << 20
_WHITEOUT, _OPAQUE = ".wh.", ".wh..wh..opq"

Found = dict[str, dict[str, Any]]
"""Path in the image → what it is: ``debian``, ``python``, ``os``, ``library``, ``model``, ``index``
or, of what lower layers have, ``removed``."""


def of_blob(blob: Blob) -> Found:
    """A finished layer's facts; read once and kept by its digest."""
    kept = cache_dir() / "contents" / f"{blob.layer.digest[7:]}-{_FORMAT}.json"
    if not kept.is_file():
        with blob.path.open("rb") as stream:
            found = read(streams.Unpacked(streams.Blob(stream), _MAX_UNPACKED_BYTES))
        kept.parent.mkdir(parents=True, exist_ok=True)
        partial = kept.with_suffix(f".{os.getpid()}.partial")
        with disk.room_for(kept):
            try:
                partial.write_text(json.dumps(found))
                partial.rename(kept)
            finally:
                partial.unlink(missing_ok=True)
    facts: Found = json.loads(kept.read_text())
    return facts


def read(unpacked: streams.Unpacked) -> Found:
    """Read an unpacked layer to its end.

    Raises:
        InputError: it is no tar archive, or a list in it is absurdly long.
    """
    found: Found = {}
    tar = TarStream(unpacked)
    try:
        for member in tar:
            name = member.name.removeprefix("./")
            last = name.rpartition("/")[2]
            if last == _OPAQUE:
                found[f"{name.rpartition('/')[0]}/"] = {"removed": True}
            elif last.startswith(_WHITEOUT):
                found[name.replace(f"{_WHITEOUT}{last[4:]}", last[4:])] = {"removed": True}
            elif fact := _fact(name, member, tar):
                found[name] = fact
        unpacked.drain()
    except (BrokenTarError, streams.BrokenLayerError, streams.BombError) as error:
        raise InputError(f"a layer cannot be read: {error}", "build or fetch it again") from error
    return found


def merged(layers: Iterable[Found]) -> Found:
    """The facts of layers, lowest first, as they are when all are unpacked."""
    found: Found = {}
    for layer in layers:
        for path, fact in layer.items():
            if "removed" in fact:
                gone = path.rstrip("/")
                found = {
                    name: it
                    for name, it in found.items()
                    if not (name == gone or name.startswith(f"{gone}/"))
                }
        found |= {path: fact for path, fact in layer.items() if "removed" not in fact}
    return found


def _fact(name: str, member: Member, tar: TarStream) -> dict[str, Any]:
    if member.kind == tarfile.SYMTYPE or not member.is_file:
        return {}
    if _LIBRARY.fullmatch(name):
        return {"library": _sha256(member, tar)}
    if _MODEL_FILE.fullmatch(name):
        return {"model": _sha256(member, tar)}
    if _INDEX.fullmatch(name):
        return {"index": _text(name, member, tar)}
    if _METADATA.fullmatch(name):
        return {"python": _distribution(_text(name, member, tar))}
    if _STATUS.fullmatch(name):
        return {"debian": [_package(it) for it in _paragraphs(_text(name, member, tar))]}
    if _OS_RELEASE.fullmatch(name):
        return {"os": _release(_text(name, member, tar))}
    return {}


def _sha256(member: Member, tar: TarStream) -> str:
    digest = hashlib.sha256()
    left = member.size_bytes
    while left:
        piece = tar.head(min(left, _PIECE))
        digest.update(piece)
        left -= len(piece)
    return digest.hexdigest()


def _text(name: str, member: Member, tar: TarStream) -> str:
    if member.size_bytes > _MAX_TEXT_BYTES:
        raise InputError(f"{name} has {member.size_bytes:,} bytes", "do not use this image")
    return tar.head(member.size_bytes).decode(errors="replace")


def _distribution(text: str) -> dict[str, str]:
    """Name, version and licence of a Python distribution, as its own metadata says."""
    headers = HeaderParser().parsestr(text)
    expression = headers.get("License-Expression", "").strip()
    said = headers.get("License", "").strip()
    # The field has held whole licence texts; a name is one line.
    named = said if said and "\n" not in said and said != "UNKNOWN" else ""
    classified = [
        line.rpartition(" :: ")[2]
        for line in headers.get_all("Classifier", [])
        if line.startswith("License :: ") and not line.endswith(":: OSI Approved")
    ]
    return {
        "name": re.sub(r"[-_.]+", "-", headers.get("Name", "")).lower(),
        "version": headers.get("Version", ""),
        "expression": expression,
        "license": "" if expression else (named or ", ".join(classified)),
    }


def _paragraphs(text: str) -> Iterable[Mapping[str, str]]:
    for paragraph in text.split("\n\n"):
        lines = (line.partition(": ") for line in paragraph.splitlines())
        fields = {key: value for key, colon, value in lines if colon}
        if "Package" in fields and "Version" in fields:
            yield fields


def _package(fields: Mapping[str, str]) -> dict[str, str]:
    return {
        "name": fields["Package"],
        "version": fields["Version"],
        "architecture": fields.get("Architecture", "all"),
    }


def _release(text: str) -> dict[str, str]:
    fields = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    return {key.lower(): fields.get(key, "").strip("\"'") for key in ("ID", "VERSION_ID")}
