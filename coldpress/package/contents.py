"""What software a layer holds, found in the layer itself: packages, libraries, model files.

The same reading makes a package's list of contents and checks it later, from the image alone.
"""

import hashlib
import json
import os
import re
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from email.parser import HeaderParser
from pathlib import Path, PurePosixPath
from typing import Any

from coldpress import disk
from coldpress.cache import cache_dir
from coldpress.errors import InputError
from coldpress.package.blobs import Blob
from coldpress.package.lint import streams
from coldpress.package.runtime import SITE_PACKAGES
from coldpress.package.tarstream import BrokenTarError, TarStream

# Changes whenever the same layer is described otherwise.
_FORMAT = 1
_STATUS = re.compile(r"var/lib/dpkg/(status|status\.d/(?!.*\.md5sums$)[^/]+)")
_METADATA = re.compile(r".*\.dist-info/METADATA")
_OS_RELEASE = re.compile(r"(etc|usr/lib)/os-release")
_LIBRARY = re.compile(rf"{SITE_PACKAGES}/.*\.so(\.[\d.]+)?")
_MODEL_FILE = re.compile(r".*\.gguf")
_INDEX = re.compile(r".*/model\.index\.json")
_MAX_TEXT_BYTES = 256 << 20
_MAX_FACTS = 100_000
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
        InputError: it is no tar archive, or what it lists is absurdly long.
    """
    found = _Reading()
    tar = TarStream(unpacked)
    try:
        for member in tar:
            name = member.name.removeprefix("./")
            folder, slash, last = name.rpartition("/")
            if last == _OPAQUE:
                found.add(f"{folder}/", {"removed": True})
            elif last.startswith(_WHITEOUT):
                found.add(folder + slash + last.removeprefix(_WHITEOUT), {"removed": True})
            elif member.is_file:
                found.look(name, member.size_bytes, tar.head)
        unpacked.drain()
    except (BrokenTarError, streams.BrokenLayerError, streams.BombError) as error:
        raise InputError(f"a layer cannot be read: {error}", "build or fetch it again") from error
    return found.facts


def of_zip(path: Path, root: str) -> Found:
    """The facts of a zip's files: of those below a folder where there is one, else of all.

    Raises:
        InputError: it is no zip archive, or what it lists is absurdly long.
    """
    found = _Reading()
    try:
        with zipfile.ZipFile(path) as archive:
            below = root if any(it.startswith(root) for it in archive.namelist()) else ""
            for info in archive.infolist():
                is_file = not info.is_dir() and not stat.S_ISLNK(info.external_attr >> 16)
                if is_file and info.filename.startswith(below):
                    with archive.open(info) as stream:
                        name = info.filename.removeprefix(below)
                        found.look(name, info.file_size, stream.read)
    except (zipfile.BadZipFile, zlib.error, RuntimeError, EOFError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}", "build or fetch it again") from error
    return found.facts


def merged(layers: Iterable[Found]) -> Found:
    """The facts of layers, lowest first, as they are when all are unpacked."""
    found: Found = {}
    for layer in layers:
        gone = {path.rstrip("/") for path, fact in layer.items() if "removed" in fact}
        found = {path: fact for path, fact in found.items() if not _is_gone(path, gone)}
        found |= {path: fact for path, fact in layer.items() if "removed" not in fact}
    return found


def _is_gone(path: str, gone: set[str]) -> bool:
    return bool(gone) and (
        path in gone or any(str(folder) in gone for folder in PurePosixPath(path).parents)
    )


class _Reading:
    """Facts being gathered, within limits."""

    def __init__(self) -> None:
        self.facts: Found = {}
        self._text_bytes = 0

    def add(self, path: str, fact: dict[str, Any]) -> None:
        if len(self.facts) >= _MAX_FACTS:
            raise InputError(f"it lists more than {_MAX_FACTS:,} things", "do not use it")
        self.facts[path] = fact

    def look(self, name: str, size: int, read: Callable[[int], bytes]) -> None:
        """Take a file in, if it says anything."""
        if _LIBRARY.fullmatch(name):
            self.add(name, {"library": _sha256(size, read)})
        elif _MODEL_FILE.fullmatch(name):
            self.add(name, {"model": _sha256(size, read)})
        elif _INDEX.fullmatch(name):
            self.add(name, {"index": self._text(name, size, read)})
        elif _METADATA.fullmatch(name):
            self.add(name, {"python": _distribution(self._text(name, size, read))})
        elif _STATUS.fullmatch(name):
            packages = map(_package, _paragraphs(self._text(name, size, read)))
            self.add(name, {"debian": list(packages)})
        elif _OS_RELEASE.fullmatch(name):
            self.add(name, {"os": _release(self._text(name, size, read))})

    def _text(self, name: str, size: int, read: Callable[[int], bytes]) -> str:
        self._text_bytes += size
        if self._text_bytes > _MAX_TEXT_BYTES:
            raise InputError(f"it lists {self._text_bytes:,} bytes, up to {name}", "do not use it")
        return read(size).decode(errors="replace")


def _sha256(size: int, read: Callable[[int], bytes]) -> str:
    digest = hashlib.sha256()
    while size and (piece := read(min(size, _PIECE))):
        digest.update(piece)
        size -= len(piece)
    return digest.hexdigest()


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
