"""Check an image or a whole package: every byte, what it says it holds, and who signed it."""

from dataclasses import dataclass
from pathlib import Path

from coldpress import artifact, progress
from coldpress.errors import InputError, IntegrityError
from coldpress.package import contents, provenance, sbom
from coldpress.package.build import IMAGE, ROOT, ZIP
from coldpress.package.lint import image as images
from coldpress.package.lint.image import LayerRef
from coldpress.package.lint.streams import Blob, Unpacked
from coldpress.package.stores import Store, open_store

_MAX_UNPACKED_BYTES = 64 << 30
_LABEL = "coldpress.model.root_sha256"
_AGAIN = "build or fetch it again"


@dataclass(frozen=True)
class Checked:
    """What was checked and found true, a line each; ``signed`` if a key was given and fits."""

    path: str
    digest: str
    checks: tuple[str, ...]
    signed: bool = False


@dataclass(frozen=True)
class _Image:
    digest: str
    found: contents.Found
    root_sha256: str | None
    said: tuple[str, ...]


def folder(path: Path, public_key: Path | None = None) -> Checked:
    """Check the folder that ``package`` wrote: image or zip, list of contents, provenance, signature.

    Raises:
        IntegrityError: something differs; it is named.
        SignatureError: a key is given, and the statement is not signed with it.
    """
    names = {file.name for file in artifact.read(path).files}
    built = next((name for name in (IMAGE, ZIP) if name in names), None)
    if built is None:
        raise InputError(f"{path} holds no package", "give a folder that `coldpress package` wrote")
    try:
        if built == ZIP:  # it has no digests inside that would name a part of it
            artifact.verify(path)
        seen = _image(open_store(path / IMAGE)) if built == IMAGE else _zip(path / ZIP)
    except InputError as error:  # it was one when it was built
        raise IntegrityError(error.message, _AGAIN) from error
    artifact.verify(path)
    said = [*seen.said, f"files: all {len(names)} are as the manifest says"]
    where = path / sbom.NAME
    count = sbom.check(where.read_bytes(), seen.digest, seen.found, str(where))
    said.append(f"{sbom.NAME}: its {count} components are those of {built}")
    stated = provenance.check(path, names, (built, seen.digest), seen.root_sha256)
    said.append(f"{provenance.NAME}: {stated} outputs and inputs, the outputs as they are here")
    if public_key is not None:
        provenance.verify_signature(path, public_key)
        said.append(f"{provenance.SIGNATURE}: signed with {public_key}")
    elif (path / provenance.SIGNATURE).is_file():
        said.append(f"{provenance.SIGNATURE}: not checked; give --public-key")
    else:
        said.append("signature: none")
    return Checked(str(path), seen.digest, tuple(said), public_key is not None)


def image(store: Store, statement: Path | None = None, public_key: Path | None = None) -> Checked:
    """Check an image alone: every blob by its digest, and the model in it by its index.

    Args:
        statement: a package's signed provenance, which must be about this image; with ``public_key``.

    Raises:
        InputError: there is no image.
        IntegrityError: something differs; it is named.
        SignatureError: the statement is not signed with this key, or is about another image.
    """
    seen = _image(store)
    if statement is None or public_key is None:
        return Checked(store.name, seen.digest, seen.said)
    provenance.check_signed(statement, public_key, seen.digest)
    said = f"{statement}: signed with {public_key}, and about this image"
    return Checked(store.name, seen.digest, (*seen.said, said), signed=True)


def _image(store: Store) -> _Image:
    found = images.read(store)
    if found.mismatches:
        raise IntegrityError(f"{store.name}: {found.mismatches[0]}", _AGAIN)
    if len(found.manifests) != 1:
        raise InputError(f"{store.name} holds {len(found.manifests)} images", "give one image")
    with progress.task(
        "checking the layers", sum(it.size_bytes or 0 for it in found.layers)
    ) as tick:
        layers = []
        for number, ref in enumerate(found.layers, start=1):
            layers.append(_layer(store, ref, number))
            tick(ref.size_bytes or 0)
    merged = contents.merged(layers)
    labels = found.run.get("Labels")
    root = labels.get(_LABEL) if isinstance(labels, dict) else None
    digest = str(found.manifests[0].get("digest", ""))
    said = [f"image: {digest}, every byte of its {len(layers)} layers"]
    if (model := _model(merged, root, store.name)) is not None:
        said.append(f"model: {model}")
    return _Image(digest, merged, root, tuple(said))


def _zip(path: Path) -> _Image:
    digest = f"sha256:{artifact.sha256_file(path)}"
    found = contents.of_zip(path, f"{ROOT}/")
    said = [f"zip: {digest}"]
    if (model := _model(found, None, str(path))) is not None:
        said.append(f"model: {model}")
    return _Image(digest, found, None, tuple(said))


def _layer(store: Store, ref: LayerRef, number: int) -> contents.Found:
    """A layer's facts, once it is proven."""
    where = f"{store.name}: layer {number}, {ref.digest or ref.place},"
    if store.size_bytes(ref.place) is None:
        raise IntegrityError(f"{where} is missing", _AGAIN)
    with store.open(ref.place) as stream:
        blob = Blob(stream)
        unpacked = Unpacked(blob, _MAX_UNPACKED_BYTES)
        problem = ""
        facts: contents.Found = {}
        try:
            facts = contents.read(unpacked)
        except InputError as error:
            problem = error.message
        blob.drain()
    # Bytes that differ are the reason why it cannot be read.
    if ref.digest and blob.digest != ref.digest:
        raise IntegrityError(f"{where} has other bytes than its digest", _AGAIN)
    if problem:
        raise IntegrityError(f"{where} {problem}", _AGAIN)
    if ref.diff_id and unpacked.diff_id != ref.diff_id:
        raise IntegrityError(f"{where} unpacks to other bytes than the config says", _AGAIN)
    return facts


def _model(found: contents.Found, root: str | None, where: str) -> str | None:
    """Hold the model's files in an image against the index beside them and the image's label."""
    from coldpress.checkpoint import index

    sides = {path: fact["index"] for path, fact in found.items() if "index" in fact}
    if not sides:
        return None
    if len(sides) > 1:
        raise IntegrityError(f"{where} holds {len(sides)} models", "build it again")
    ((side, text),) = sides.items()
    listed = index.parse(text.encode(), f"{where}: {side}")
    if root is not None and root != listed.root_sha256:
        raise IntegrityError(f"{where}: {side} is of another model than the label says", _AGAIN)
    below = side.rpartition("/")[0]
    for file in listed.files:
        fact = found.get(f"{below}/{file.name}", {})
        if fact.get("model") != file.sha256:
            raise IntegrityError(f"{where}: {below}/{file.name} is not what its index says", _AGAIN)
    return f"{listed.root_sha256}, {len(listed.files)} files as the index says"
