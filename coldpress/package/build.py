"""The parts of a package, written as an image or as a zip."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import assert_never

from coldpress import progress
from coldpress.artifact import sha256_file
from coldpress.package import deploy, zipped
from coldpress.package.blobs import Blob
from coldpress.package.layer import Entry, File, Folder, Layer, Symlink, unpacked_bytes
from coldpress.package.oci import Archive, Config
from coldpress.platforms import Target

IMAGE = "image.tar"
ZIP = "function.zip"
_START = "start.sh"
ROOT = "root"


@dataclass(frozen=True)
class Parts:
    """What a package consists of; ``weights`` a layer per shard, none where they are fetched."""

    base: tuple[Blob, ...]
    runtime: Blob
    weights: tuple[tuple[Entry, ...], ...]
    state: tuple[Entry, ...]
    app: Blob

    @property
    def model_bytes(self) -> int:
        """Bytes of weights and state."""
        return sum(unpacked_bytes(entries) for entries in (*self.weights, self.state))

    @property
    def unpacked_bytes(self) -> int:
        """Bytes of all files."""
        blobs = (*self.base, self.runtime, self.app)
        return self.model_bytes + sum(blob.layer.unpacked_bytes for blob in blobs)


@dataclass(frozen=True)
class PackagedLayer:
    """One layer of an image and what it is for."""

    purpose: str
    digest: str
    size_bytes: int
    unpacked_bytes: int


@dataclass(frozen=True)
class Built:
    """The file that was written; a zip's digest is its own."""

    name: str
    digest: str
    layers: tuple[PackagedLayer, ...]


def write(folder: Path, target: Target, parts: Parts, config: Config, model: str) -> Built:
    """Write what a target takes into ``folder``.

    Raises:
        InputError: the base cannot be put into a zip.
    """
    match target:
        case "lambda" | "cloudrun" | "kserve" | "compose":
            return _image(folder / IMAGE, parts, config)
        case "lambda-snapstart":
            script = File(_START, deploy.start_script(config, model), executable=True)
            return _zip(folder / ZIP, parts, [script], "")
        case "lambda-microvm":
            dockerfile = File("Dockerfile", deploy.dockerfile(config, model))
            return _zip(folder / ZIP, parts, [dockerfile], f"{ROOT}/")
        case _:
            assert_never(target)


def _image(path: Path, parts: Parts, config: Config) -> Built:
    with path.open("wb") as stream:
        archive = Archive(stream)
        for blob in parts.base:
            archive.copy_layer(blob, "base")
        archive.copy_layer(parts.runtime, "runtime")
        with progress.task("writing the weights' layers", parts.model_bytes) as tick:
            for entries in parts.weights:
                archive.write_layer(entries, "weights", tick)
            if parts.state:
                archive.write_layer(parts.state, "prefix", tick)
        archive.copy_layer(parts.app, "app")
        digest, layers = archive.finish(config)
    return Built(IMAGE, digest, tuple(_describe(layer, purpose) for layer, purpose in layers))


def _zip(path: Path, parts: Parts, own: list[File], below: str) -> Built:
    """Everything that the image would have, unpacked below a folder."""
    blobs = zipped.of_layers((*parts.base, parts.runtime, parts.app))
    model = [entry for entries in (*parts.weights, parts.state) for entry in entries]
    stored = [_moved(entry, below) for entry in model]
    with progress.task("writing the zip", parts.model_bytes) as tick:
        zipped.write(path, [*own, *(_moved(entry, below) for entry in blobs)], stored, tick)
    return Built(ZIP, f"sha256:{sha256_file(path)}", ())


def _moved(entry: Entry, below: str) -> Entry:
    match entry:
        case File() | Folder() | Symlink():
            return replace(entry, path=f"{below}{entry.path}")
        case _:
            assert_never(entry)


def _describe(layer: Layer, purpose: str) -> PackagedLayer:
    return PackagedLayer(purpose, layer.digest, layer.size_bytes, layer.unpacked_bytes)
