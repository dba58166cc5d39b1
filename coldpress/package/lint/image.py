"""Follow an image from its index to its layers, and note on the way what is not as it should be."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coldpress.errors import InputError
from coldpress.package.stores import Store, blob_name

MANIFEST_TYPES = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
INDEX_TYPES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
_MAX_JSON_BYTES = 16 << 20
_MAX_MANIFESTS = 1000
_MAX_LAYERS = 10_000
_HINT = "give an OCI layout, an OCI archive or what `docker save` wrote"


@dataclass(frozen=True)
class LayerRef:
    """A layer as the manifest states it; a docker archive states neither type nor digest."""

    place: str
    media_type: str = ""
    digest: str = ""
    size_bytes: int | None = None
    diff_id: str = ""


@dataclass
class Image:
    """An image's documents. ``indexes`` counts indexes beyond a layout's own ``index.json``."""

    name: str
    indexes: int = 0
    manifests: list[dict[str, Any]] = field(default_factory=list)
    attestations: int = 0
    config_type: str = ""
    config_bytes: int = 0
    config: dict[str, Any] = field(default_factory=dict)
    layers: list[LayerRef] = field(default_factory=list)
    mismatches: list[str] = field(default_factory=list)

    @property
    def run(self) -> dict[str, Any]:
        """How its containers start."""
        found = self.config.get("config")
        return found if isinstance(found, dict) else {}

    @property
    def env(self) -> dict[str, str]:
        """Its environment."""
        return dict(item.split("=", 1) for item in texts(self.run.get("Env")) if "=" in item)


def texts(value: object) -> list[str]:
    """The strings of a list that may be anything."""
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def dicts(value: object) -> list[dict[str, Any]]:
    """The objects of a list that may be anything."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def read(store: Store) -> Image:
    """Read an image's documents.

    Raises:
        InputError: there is no image, or a part of it is missing or is no such document.
    """
    image = Image(Path(store.name).name)
    if store.size_bytes("index.json") is not None:
        _layout(store, image)
    elif store.size_bytes("manifest.json") is not None:
        _docker_archive(store, image)
    else:
        raise InputError(f"{store.name} holds no image", _HINT)
    return image


def _layout(store: Store, image: Image) -> None:
    _follow(store, image, _json(store, "index.json"))
    if not image.manifests:
        raise InputError(f"{store.name} lists no image", _HINT)
    described = image.manifests[0]
    manifest = _blob(store, image, described)
    config = manifest.get("config")
    if not isinstance(config, dict):
        raise InputError(f"{store.name} has a manifest of an old kind", _HINT)
    image.config_type = str(config.get("mediaType", ""))
    image.config_bytes = store.size_bytes(blob_name(config.get("digest"))) or 0
    image.config = _blob(store, image, config)
    diff_ids = _diff_ids(image)
    layers = dicts(manifest.get("layers"))[:_MAX_LAYERS]
    for number, layer in enumerate(layers):
        size = layer.get("size")
        image.layers.append(
            LayerRef(
                place=blob_name(layer.get("digest")),
                media_type=str(layer.get("mediaType", "")),
                digest=str(layer["digest"]),
                size_bytes=size if isinstance(size, int) else None,
                diff_id=diff_ids[number] if number < len(diff_ids) else "",
            )
        )
    if len(diff_ids) != len(layers):
        image.mismatches.append(f"{len(layers)} layers, but {len(diff_ids)} diff_ids")


def _follow(store: Store, image: Image, index: dict[str, Any], depth: int = 0) -> None:
    """Collect the manifests that an index lists, those of indexes inside it too."""
    if depth > 4:
        raise InputError(f"{store.name} nests its indexes too deeply", _HINT)
    for described in dicts(index.get("manifests"))[:_MAX_MANIFESTS]:
        notes = described.get("annotations") or {}
        if notes.get("vnd.docker.reference.type") == "attestation-manifest":
            image.attestations += 1
        elif described.get("mediaType") in INDEX_TYPES:
            image.indexes += 1
            _follow(store, image, _blob(store, image, described), depth + 1)
        else:
            image.manifests.append(described)


def _docker_archive(store: Store, image: Image) -> None:
    listed = _parse(store, "manifest.json")
    entries = dicts(listed)
    if len(entries) != 1 or not isinstance(entries[0].get("Config"), str):
        raise InputError(f"{store.name} holds {len(entries)} images", "save one image at a time")
    place = entries[0]["Config"]
    image.manifests = entries
    image.config_bytes = store.size_bytes(place) or 0
    image.config = _json(store, place)
    diff_ids = _diff_ids(image)
    places = texts(entries[0].get("Layers"))[:_MAX_LAYERS]
    for number, place in enumerate(places):
        diff_id = diff_ids[number] if number < len(diff_ids) else ""
        image.layers.append(LayerRef(place=place, diff_id=diff_id))
    if len(diff_ids) != len(places):
        image.mismatches.append(f"{len(places)} layers, but {len(diff_ids)} diff_ids")


def _diff_ids(image: Image) -> list[str]:
    rootfs = image.config.get("rootfs")
    return texts(rootfs.get("diff_ids")) if isinstance(rootfs, dict) else []


def _blob(store: Store, image: Image, described: dict[str, Any]) -> dict[str, Any]:
    """A document by its descriptor; a wrong size or digest is noted, not raised."""
    name = blob_name(described.get("digest"))
    data = _read(store, name)
    if f"sha256:{hashlib.sha256(data).hexdigest()}" != described["digest"]:
        image.mismatches.append(f"{described['digest'][:19]}… has other bytes")
    elif described.get("size") != len(data):
        image.mismatches.append(f"{described['digest'][:19]}… has {len(data)} bytes")
    return _document(store, name, data)


def _json(store: Store, name: str) -> dict[str, Any]:
    return _document(store, name, _read(store, name))


def _document(store: Store, name: str, data: bytes) -> dict[str, Any]:
    found = _decode(store, name, data)
    if not isinstance(found, dict):
        raise InputError(f"{store.name}: {name} is no JSON object", _HINT)
    return found


def _parse(store: Store, name: str) -> object:
    return _decode(store, name, _read(store, name))


def _decode(store: Store, name: str, data: bytes) -> object:
    try:
        found: object = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{store.name}: {name} is no JSON: {error}", _HINT) from error
    return found


def _read(store: Store, name: str) -> bytes:
    size = store.size_bytes(name)
    if size is None:
        raise InputError(f"{store.name}: {name} is missing", "build or fetch the image again")
    if size > _MAX_JSON_BYTES:
        raise InputError(f"{store.name}: {name} has {size} bytes", _HINT)
    with store.open(name) as stream:
        return stream.read(_MAX_JSON_BYTES)
