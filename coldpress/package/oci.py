"""Write an image as an OCI archive: one manifest, no index of indexes, no attestations.

Lambda refuses image indexes and attestations, and docker's media types for uncompressed layers;
none of them can come out of here.
Source: OCI image specification 1.1: manifest.md, config.md, image-layout.md.
"""

import hashlib
import json
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import IO, Any

from coldpress.errors import IntegrityError
from coldpress.package import layer
from coldpress.package.blobs import Blob
from coldpress.package.layer import Entry, Layer
from coldpress.progress import Tick

LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"
_CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
_EPOCH = "1970-01-01T00:00:00Z"
_COPY_BYTES = 1 << 20


@dataclass(frozen=True)
class Config:
    """How a container of the image starts; ``name`` is the image's in its archive."""

    name: str
    architecture: str
    entrypoint: tuple[str, ...]
    env: tuple[str, ...]
    labels: dict[str, str]
    port: int | None = None
    user: str = "65532:65532"


class Archive:
    """An OCI archive being written to a seekable file: layers in order, then ``finish``."""

    def __init__(self, out: IO[bytes]) -> None:
        self._out = out
        self._layers: list[tuple[Layer, str]] = []
        self._blobs: set[str] = set()
        self._add("oci-layout", _json({"imageLayoutVersion": "1.0.0"}))

    def copy_layer(self, blob: Blob, purpose: str) -> None:
        """Add a finished layer.

        Raises:
            IntegrityError: its file is not what its digest says.
        """
        self._layers.append((blob.layer, purpose))
        if blob.layer.digest in self._blobs:
            return
        self._blobs.add(blob.layer.digest)
        self._out.write(_header(_name(blob.layer.digest), blob.layer.size_bytes))
        digest = hashlib.sha256()
        with blob.path.open("rb") as stream:
            while piece := stream.read(_COPY_BYTES):
                digest.update(piece)
                self._out.write(piece)
        if f"sha256:{digest.hexdigest()}" != blob.layer.digest:
            raise IntegrityError(f"{blob.path} is damaged", "delete it; it is made again")
        self._pad(blob.layer.size_bytes)

    def write_layer(self, entries: Iterable[Entry], purpose: str, tick: Tick) -> None:
        """Write a stored layer straight into the archive; its name is known only at its end."""
        start = self._out.tell()
        self._out.write(bytes(tarfile.BLOCKSIZE))
        written = layer.write(entries, self._out, "stored", tick)
        end = self._out.tell()
        self._out.seek(start)
        self._out.write(_header(_name(written.digest), written.size_bytes))
        self._out.seek(end)
        self._pad(written.size_bytes)
        self._layers.append((written, purpose))
        self._blobs.add(written.digest)

    def finish(self, config: Config) -> tuple[str, tuple[tuple[Layer, str], ...]]:
        """Write config, manifest and index; return the manifest's digest and the layers."""
        image = self._add_blob(_json(_config(config, self._layers)), _CONFIG_TYPE)
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": image,
            "layers": [_descriptor(LAYER_TYPE, it.digest, it.size_bytes) for it, _ in self._layers],
            "annotations": config.labels,
        }
        described = self._add_blob(_json(manifest), MANIFEST_TYPE)
        # umoci and skopeo address an image in a layout by this name.
        named = {**described, "annotations": {"org.opencontainers.image.ref.name": config.name}}
        index = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [named]}
        self._add("index.json", _json(index))
        self._out.write(bytes(2 * tarfile.BLOCKSIZE))
        return str(described["digest"]), tuple(self._layers)

    def _add_blob(self, data: bytes, media_type: str) -> dict[str, object]:
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        self._add(_name(digest), data)
        return _descriptor(media_type, digest, len(data))

    def _add(self, name: str, data: bytes) -> None:
        self._out.write(_header(name, len(data)))
        self._out.write(data)
        self._pad(len(data))

    def _pad(self, size: int) -> None:
        self._out.write(bytes(-size % tarfile.BLOCKSIZE))


def _config(config: Config, layers: Sequence[tuple[Layer, str]]) -> dict[str, object]:
    run: dict[str, Any] = {
        "User": config.user,
        "Env": list(config.env),
        "Entrypoint": list(config.entrypoint),
        "WorkingDir": "/",
        "Labels": config.labels,
    }
    if config.port is not None:
        run["ExposedPorts"] = {f"{config.port}/tcp": {}}
    return {
        "created": _EPOCH,
        "architecture": config.architecture,
        "os": "linux",
        "config": run,
        "rootfs": {"type": "layers", "diff_ids": [it.diff_id for it, _ in layers]},
        "history": [{"created": _EPOCH, "created_by": f"coldpress: {why}"} for _, why in layers],
    }


def _descriptor(media_type: str, digest: str, size: int) -> dict[str, object]:
    return {"mediaType": media_type, "digest": digest, "size": size}


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _name(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


def _header(name: str, size: int) -> bytes:
    """One 512-byte block whatever the size: GNU's number format goes beyond 8 GiB."""
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT)
