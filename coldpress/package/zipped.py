"""A zip of an image's files, for platforms that take zips: the same bytes from the same inputs.

Entries are sorted, dated 1980 (zip knows nothing older) and compressed as the layers are: weights
are stored, everything else deflated. Symbolic links are entries of their own, as ``zip -y`` writes them.
"""

import shutil
import stat
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from coldpress.errors import InputError
from coldpress.package.blobs import Blob
from coldpress.package.layer import Entry, File, Folder, Symlink
from coldpress.progress import Tick

_DATE = (1980, 1, 1, 0, 0, 0)
_UNIX = 3
_DEFLATE_LEVEL = 6
_COPY_BYTES = 1 << 20
_WHITEOUT = ".wh."


def of_layers(blobs: Iterable[Blob]) -> list[Entry]:
    """The entries of layers, lowest first, as they are when all are unpacked.

    Raises:
        InputError: a layer deletes what a lower one has, or holds devices: no zip can.
    """
    found: dict[str, Entry] = {}
    for blob in blobs:
        for entry in _of_layer(blob.path):
            found[entry.path] = entry
    return list(found.values())


def _of_layer(path: Path) -> Iterator[Entry]:
    with tarfile.open(path, "r|gz") as tar:
        for member in tar:
            name = member.name.removeprefix("./").rstrip("/")
            if name.rpartition("/")[2].startswith(_WHITEOUT) or ".." in name.split("/"):
                raise InputError(f"{path} has {name}, which no zip can", "give another --base")
            if member.issym():
                yield Symlink(name, member.linkname)
            elif member.isreg() and (data := tar.extractfile(member)):
                yield File(name, data.read(), executable=bool(member.mode & 0o111))
            elif member.isdir():
                yield Folder(name, member.mode)
            else:
                raise InputError(f"{path} has {name}, no plain file", "give another --base")


def write(
    path: Path, entries: Iterable[Entry], stored: Iterable[Entry], tick: Tick = lambda _bytes: None
) -> int:
    """Write a zip and return the bytes that it unpacks to.

    Args:
        stored: files that are not compressed: weights.
    """
    unpacked = 0
    plain = {entry.path for entry in stored}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=_DEFLATE_LEVEL) as archive:
        for entry in sorted([*entries, *stored], key=lambda entry: entry.path):
            match entry:
                case File():
                    unpacked += entry.size_bytes
                    _add(archive, entry, plain, tick)
                case Symlink():
                    info = _info(entry.path, stat.S_IFLNK | 0o777)
                    archive.writestr(info, entry.target.encode())
                case Folder():
                    archive.writestr(_info(f"{entry.path}/", stat.S_IFDIR | entry.mode), b"")
    return unpacked


def _add(archive: zipfile.ZipFile, entry: File, plain: set[str], tick: Tick) -> None:
    info = _info(entry.path, stat.S_IFREG | (0o755 if entry.executable else 0o644))
    info.compress_type = zipfile.ZIP_STORED if entry.path in plain else zipfile.ZIP_DEFLATED
    if isinstance(entry.source, bytes):
        archive.writestr(info, entry.source, compresslevel=_DEFLATE_LEVEL)
        return
    info.file_size = entry.size_bytes
    with entry.source.open("rb") as data, archive.open(info, "w") as out:
        shutil.copyfileobj(data, out, _COPY_BYTES)
    tick(entry.size_bytes)


def _info(path: str, mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(path, _DATE)
    info.create_system = _UNIX
    info.external_attr = mode << 16
    return info
