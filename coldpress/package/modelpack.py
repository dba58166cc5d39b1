"""A checkpoint as a CNCF ModelPack artifact: its files as they are, so that any registry keeps them.

Docker Model Runner, KitOps, modctl and Kubernetes' image volumes read it. Nothing is copied: the
artifact is a view of the checkpoint's folder, from which it is pushed.
Source: github.com/modelpack/model-spec, docs/spec.md and docs/config.md, media types of the cncf names.
"""

import hashlib
import io
import json
import math
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import IO, Any

from coldpress.checkpoint.signing import SIGNATURE
from coldpress.errors import InputError, IntegrityError
from coldpress.package.oci import INDEX_TYPE, MANIFEST_TYPE
from coldpress.package.stores import Store, blob_name

_TYPE = "application/vnd.cncf.model"
ARTIFACT_TYPE = f"{_TYPE}.manifest.v1+json"
_CONFIG_TYPE = f"{_TYPE}.config.v1+json"
# Raw, so that the blob is the GGUF and its digest the file's; who runs it goes by the file's name.
_WEIGHT_TYPE = f"{_TYPE}.weight.v1.raw"
_SIDE_TYPE = f"{_TYPE}.weight.config.v1.raw"
_FILEPATH = "org.cncf.model.filepath"
_INDEX = "model.index.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_PIECE = 1 << 20
_MAX_MANIFEST_BYTES = 4 << 20


class Artifact:
    """A ``Store`` with the layout of a checkpoint's artifact.

    The digests are those of the checkpoint's index; the registry proves the bytes on arrival.

    Raises:
        InputError: the folder holds no checkpoint.
    """

    def __init__(self, checkpoint: Path) -> None:
        from coldpress.checkpoint import index

        side = checkpoint / _INDEX
        if not side.is_file():
            raise InputError(
                f"{checkpoint} has no {_INDEX}", "give a folder that `coldpress checkpoint` wrote"
            )
        self.name = str(checkpoint)
        self._files: dict[str, Path] = {}
        self._documents: dict[str, bytes] = {}
        layers = [
            self._add(checkpoint / file.name, file.sha256, _WEIGHT_TYPE)
            for file in index.read(side).files
        ]
        beside = [side, *(it for it in [checkpoint / SIGNATURE] if it.is_file())]
        layers += [
            self._add(path, hashlib.sha256(path.read_bytes()).hexdigest(), _SIDE_TYPE)
            for path in beside
        ]
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "artifactType": ARTIFACT_TYPE,
            "config": self._keep(_config(checkpoint, layers), _CONFIG_TYPE),
            "layers": layers,
        }
        listed = {
            "schemaVersion": 2,
            "mediaType": INDEX_TYPE,
            "manifests": [self._keep(manifest, MANIFEST_TYPE)],
        }
        self._documents["index.json"] = _json(listed)

    def size_bytes(self, name: str) -> int | None:
        """As ``Store``."""
        if name in self._documents:
            return len(self._documents[name])
        path = self._files.get(name)
        return path.stat().st_size if path and path.is_file() else None

    def open(self, name: str, start: int = 0) -> IO[bytes]:
        """As ``Store``."""
        found = self._documents.get(name)
        stream: IO[bytes] = self._files[name].open("rb") if found is None else io.BytesIO(found)
        stream.seek(start)
        return stream

    def _add(self, path: Path, sha256: str, media_type: str) -> dict[str, Any]:
        digest = f"sha256:{sha256}"
        self._files[blob_name(digest)] = path
        return {
            "mediaType": media_type,
            "digest": digest,
            "size": path.stat().st_size if path.is_file() else 0,
            "annotations": {_FILEPATH: path.name, "org.opencontainers.image.title": path.name},
        }

    def _keep(self, document: dict[str, Any], media_type: str) -> dict[str, Any]:
        data = _json(document)
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        self._documents[blob_name(digest)] = data
        return {"mediaType": media_type, "digest": digest, "size": len(data)}


def is_artifact(store: Store) -> bool:
    """Whether a store holds a ModelPack artifact."""
    return _manifest(store).get("artifactType") == ARTIFACT_TYPE


def unpack(store: Store, out: Path) -> Path:
    """Write an artifact's files into ``out``, proven, whole by rename.

    Raises:
        InputError: ``out`` exists, or the artifact's files are not plain files with plain names.
        IntegrityError: a file is not what its digest says.
    """
    if out.exists():
        raise InputError(f"{out} exists", "choose another folder")
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        for layer in _manifest(store).get("layers", ()):
            name = (layer.get("annotations") or {}).get(_FILEPATH, "")
            if not _NAME.fullmatch(name) or not str(layer.get("mediaType")).endswith(".raw"):
                raise InputError(
                    f"{store.name} has the file {name!r}, {layer.get('mediaType')}",
                    "only raw files in one folder are read",
                )
            _write(store, str(layer["digest"]), partial / name)
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return out


def _write(store: Store, digest: str, path: Path) -> None:
    sha256 = hashlib.sha256()
    with store.open(blob_name(digest)) as source, path.open("xb") as out:
        while piece := source.read(_PIECE):
            sha256.update(piece)
            out.write(piece)
    if f"sha256:{sha256.hexdigest()}" != digest:
        raise IntegrityError(
            f"{store.name}: {path.name} has other bytes than its digest", "fetch it again"
        )


def _manifest(store: Store) -> dict[str, Any]:
    try:
        listed = json.loads(_document(store, "index.json"))["manifests"]
        found = json.loads(_document(store, blob_name(listed[0]["digest"])))
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise InputError(f"{store.name} holds no artifact", "check its name") from error
    return found if isinstance(found, dict) else {}


def _document(store: Store, name: str) -> bytes:
    with store.open(name) as stream:
        return stream.read(_MAX_MANIFEST_BYTES)


def _config(checkpoint: Path, layers: list[dict[str, Any]]) -> dict[str, Any]:
    """What runners show of a model; no date in it, so that equal inputs give an equal digest."""
    from coldpress.checkpoint import source

    read = source.read(checkpoint)
    fields = {field.key: field for field in read.fields if field.is_scalar}

    def text(key: str) -> str:
        return str(fields[key].value()) if key in fields else ""

    sizes: Counter[str] = Counter()
    for tensor in read.tensors:
        sizes[tensor.type] += tensor.size_bytes
    family = text("general.architecture")
    descriptor = {"name": text("general.name"), "family": family}
    if license_ := text("general.license"):
        descriptor["licenses"] = [license_]  # type: ignore[assignment]  # the one list
    return {
        "descriptor": {key: value for key, value in descriptor.items() if value},
        "config": {
            "architecture": family,
            "format": "gguf",
            "paramSize": _count(sum(math.prod(tensor.shape) for tensor in read.tensors)),
            # Of a mixed file, the type that most bytes have.
            "quantization": sizes.most_common(1)[0][0],
        },
        "modelfs": {"type": "layers", "diffIds": [layer["digest"] for layer in layers]},
    }


def _count(n_params: int) -> str:
    """Such as 6.7b, with at most one digit after the point."""
    for letter, scale in (("t", 10**12), ("b", 10**9), ("m", 10**6), ("k", 10**3)):
        if n_params >= scale:
            return f"{n_params / scale:.1f}".removesuffix(".0") + letter
    return f"{n_params / 1000:.1f}k"


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
