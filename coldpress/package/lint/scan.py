"""Go through an image's layers once, from below, and gather what the rules ask about.

Nothing is unpacked: names and modes are kept, of each file's content the first 64 KiB are looked at.
"""

import tarfile
from dataclasses import dataclass, field

from coldpress.errors import InputError
from coldpress.package.lint import content
from coldpress.package.lint.image import Image, LayerRef
from coldpress.package.lint.rootfs import EscapeError, Kind, Node, Rootfs
from coldpress.package.lint.streams import (
    GZIP,
    ZSTD,
    Blob,
    BombError,
    BrokenLayerError,
    Unpacked,
)
from coldpress.package.stores import Store
from coldpress.package.tarstream import BrokenTarError, Member, TarStream
from coldpress.progress import Tick

MAX_ENTRIES = 500_000
MAX_UNPACKED_BYTES = 64 << 30
MAX_EXAMPLES = 10
_DEVICES = (tarfile.CHRTYPE, tarfile.BLKTYPE)
_SETUID = 0o6000


@dataclass
class Noted:
    """How often something was found, and the first places."""

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, where: str) -> None:
        """Count one more."""
        self.count += 1
        if len(self.examples) < MAX_EXAMPLES:
            self.examples.append(where)


@dataclass
class Scanned:
    """What the layers hold; ``noted`` is keyed by the rule that reports it."""

    rootfs: Rootfs = field(default_factory=Rootfs)
    noted: dict[str, Noted] = field(default_factory=dict)
    file_bytes: int = 0
    tar_bytes: int = 0

    def note(self, rule: str, where: str) -> None:
        """Count one more finding of a rule."""
        self.noted.setdefault(rule, Noted()).add(where)


def scan(store: Store, image: Image, tick: Tick) -> Scanned:
    """Read every layer.

    Raises:
        InputError: a layer is missing.
    """
    scanned = Scanned()
    for number, ref in enumerate(image.layers):
        if store.size_bytes(ref.place) is None:
            raise InputError(
                f"{store.name}: layer {number + 1}, {ref.place}, is missing",
                "build or fetch the image again",
            )
        with store.open(ref.place) as stream:
            blob = Blob(stream)
            _Layer(scanned, ref, number).read(blob)
        tick(blob.size_bytes)
    return scanned


class _Layer:
    """One layer on its way into the tree."""

    def __init__(self, scanned: Scanned, ref: LayerRef, number: int) -> None:
        self._scanned = scanned
        self._rootfs = scanned.rootfs
        self._ref = ref
        self._number = number
        self._label = f"layer {number + 1}"

    def read(self, blob: Blob) -> None:
        """Take the layer in, and hold its digests against those that are stated."""
        unpacked = self._take(blob)
        blob.drain()
        stated = self._ref
        if stated.digest and blob.digest != stated.digest:
            self._scanned.note("digest-mismatch", f"{self._label} has other bytes than its digest")
        elif stated.size_bytes not in (None, blob.size_bytes):
            self._scanned.note("digest-mismatch", f"{self._label} has {blob.size_bytes} bytes")
        if unpacked and stated.diff_id and unpacked.diff_id != stated.diff_id:
            self._scanned.note("diff-id-mismatch", f"{self._label} unpacks to other bytes")

    def _take(self, blob: Blob) -> Unpacked | None:
        """The unpacked stream at its end, or nothing where it could not be read to there."""
        scanned, media_type = self._scanned, self._ref.media_type
        if blob.start[:4] == ZSTD or media_type.endswith("zstd"):
            scanned.note("zstd-layer", f"{self._label}; its files were not looked at")
            return None
        if media_type.endswith("gzip") and blob.start[:2] != GZIP:
            scanned.note("broken-layer", f"{self._label} is gzip by its type, its bytes are not")
            return None
        unpacked = Unpacked(blob, MAX_UNPACKED_BYTES - scanned.tar_bytes)
        try:
            tar = TarStream(unpacked)
            for member in tar:
                self._enter(tar, member)
            unpacked.drain()
        except (BrokenTarError, BrokenLayerError) as error:
            scanned.note("broken-layer", f"{self._label}: {error}")
            return None
        except BombError as error:
            scanned.note("decompression-bomb", f"{self._label}: {error}")
            return None
        scanned.tar_bytes += unpacked.size_bytes
        return unpacked

    def _enter(self, tar: TarStream, member: Member) -> None:
        if self._rootfs.count >= MAX_ENTRIES:
            raise BombError(f"the image has more than {MAX_ENTRIES:,} entries")
        self._scanned.file_bytes += member.size_bytes
        parts = [part for part in member.name.split("/") if part not in ("", ".")]
        where = f"{self._label}: {member.name}"
        if member.name.startswith("/") or ".." in parts:
            self._scanned.note("escaping-entry", where)
            return
        if not parts:
            return
        try:
            folder, missing = self._rootfs.parent(parts, self._number)
        except EscapeError as error:
            self._scanned.note("escaping-entry", f"{where} {error}")
            return
        if missing:
            self._scanned.note("missing-parent-directory", f"{where} has no entry for {missing}/")
        name = parts[-1]
        if name == ".wh..wh..opq":
            for child in list(folder.children):
                self._rootfs.remove(folder, child, self._number)
        elif name.startswith(".wh."):
            self._rootfs.remove(folder, name[4:], self._number)
        else:
            self._place(tar, member, folder, name, where)

    def _place(self, tar: TarStream, member: Member, folder: Node, name: str, where: str) -> None:
        if member.kind == tarfile.LNKTYPE:
            self._hard_link(member, folder, name, where)
            return
        node = Node(
            kind=_kind(member),
            mode=member.mode,
            uid=member.uid,
            gid=member.gid,
            size_bytes=member.size_bytes,
            target=member.target if member.kind == tarfile.SYMTYPE else "",
            layer=self._number,
        )
        if member.is_file:
            self._look(node, member.name, tar.head(content.HEAD_BYTES), where)
            if member.mode & _SETUID and member.mode & 0o111:
                self._scanned.note("setuid-file", where)
        elif member.kind in _DEVICES:
            self._scanned.note("device-node", where)
        self._rootfs.put(folder, name, node)

    def _hard_link(self, member: Member, folder: Node, name: str, where: str) -> None:
        if member.target.startswith("/") or ".." in member.target.split("/"):
            self._scanned.note("escaping-entry", f"{where} → {member.target}")
            return
        node = self._rootfs.find(member.target)
        if node is None or node.kind == "folder":
            self._scanned.note("broken-layer", f"{where} is a hard link to nothing")
            return
        self._rootfs.put(folder, name, node)

    def _look(self, node: Node, path: str, head: bytes, where: str) -> None:
        node.elf = content.elf(head)
        node.interpreter = content.interpreter(head)
        if found := content.secret(path, head):
            self._scanned.note("secret-in-layer", f"{where} holds {found}")
        if content.is_pickle(path, head):
            self._scanned.note("pickled-model", where)


def _kind(member: Member) -> Kind:
    if member.is_file:
        return "file"
    match member.kind:
        case tarfile.DIRTYPE:
            return "folder"
        case tarfile.SYMTYPE:
            return "link"
        case _:
            return "other"
