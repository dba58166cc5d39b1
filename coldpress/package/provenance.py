"""What a package was built from and by what, as a SLSA provenance statement beside the image.

It is never part of the image: Lambda refuses image indexes with attestations. No time is in it, so that
equal builds state the same. Signed, it lies in a bundle of its own; the plain statement stays readable.

Source: SLSA 1.0 provenance, slsa.dev/spec/v1.0/provenance; in-toto statement 1.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

from coldpress import __version__, signatures
from coldpress.artifact import sha256_file
from coldpress.errors import InputError, IntegrityError, SignatureError
from coldpress.package.base import Base
from coldpress.package.model import Facts

NAME = "provenance.json"
SIGNATURE = "provenance.sigstore.json"
IMAGE = "coldpress"
_PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
_BUILDER = f"pkg:pypi/coldpress@{__version__}"
_BUILD_TYPE = "pkg:pypi/coldpress#package"
_MAX_BYTES = 16 << 20


def write(
    folder: Path,
    built: tuple[str, str],
    base: Base,
    model: Facts,
    options: Mapping[str, object],
) -> bytes:
    """The statement about a finished folder, as JSON.

    Args:
        built: name and digest of the image or the zip; of the image, the manifest's.
        options: as the manifest has them: without this machine's paths.
    """
    internal = ("app", "python", "runtime")
    external = {key: value for key, value in options.items() if key not in internal}
    statement = {
        "_type": signatures.STATEMENT_TYPE,
        "subject": _subjects(folder, (path.name for path in folder.iterdir()), *built),
        "predicateType": _PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": _BUILD_TYPE,
                "externalParameters": external,
                "internalParameters": {"app": options["app"], "python": options["python"]},
                "resolvedDependencies": _dependencies(base, model, options),
            },
            "runDetails": {"builder": {"id": _BUILDER, "version": {"coldpress": __version__}}},
        },
    }
    return json.dumps(statement, indent=1, sort_keys=True, ensure_ascii=False).encode()


def check(
    folder: Path, names: Iterable[str], built: tuple[str, str], root_sha256: str | None
) -> int:
    """Hold a folder's statement against the folder; return how many things it states.

    Args:
        names: of the files that were built; a deployment may have added others.
        root_sha256: the model's, as the image itself says.

    Raises:
        IntegrityError: it names other files or other bytes; they are named.
    """
    path = folder / NAME
    try:
        stated = signatures.statement(_read(path), _PREDICATE_TYPE, str(path))
        subjects = {str(it["name"]): it["digest"]["sha256"] for it in stated["subject"]}
        used = stated["predicate"]["buildDefinition"]["resolvedDependencies"]
        roots = [it["digest"]["sha256"] for it in used if it.get("name") == "checkpoint"]
    except (SignatureError, KeyError, TypeError, AttributeError, OSError) as error:
        raise IntegrityError(f"{path} is damaged: {error}", "build the package again") from error
    there = {it["name"]: it["digest"]["sha256"] for it in _subjects(folder, names, *built)}
    for name in sorted(subjects.keys() | there.keys()):
        if subjects.get(name) != there.get(name):
            what = "does not name" if name not in subjects else "states other bytes of"
            raise IntegrityError(f"{path} {what} {folder / name}", "build the package again")
    if root_sha256 is not None and roots != [root_sha256]:
        raise IntegrityError(f"{path} names another model than the image", "build it again")
    return len(subjects) + len(used)


def sign(folder: Path, key: Path) -> Path:
    """Sign a package's statement; return the bundle's path.

    Raises:
        InputError: the folder has no statement, or the key is no EC private key.
        ToolError: cryptography is not installed.
    """
    try:
        bundle = signatures.sign(_read(folder / NAME), key)
    except OSError as error:
        raise InputError(f"{folder} has no {NAME}", "build the package again") from error
    partial = folder / f"{SIGNATURE}.partial"
    try:
        partial.write_bytes(bundle)
        partial.replace(folder / SIGNATURE)
    finally:
        partial.unlink(missing_ok=True)
    return folder / SIGNATURE


def verify_signature(folder: Path, public_key: Path) -> None:
    """Check that the signed statement is the one that lies there.

    Raises:
        SignatureError: it is not signed, or with another key, or changed.
    """
    bundle = folder / SIGNATURE
    if not bundle.is_file():
        raise SignatureError(f"{folder} is not signed", "coldpress sign FOLDER --key FILE")
    if signatures.opened(bundle, public_key) != _read(folder / NAME):
        raise SignatureError(
            f"{folder / NAME} is not the statement that was signed", "do not use it"
        )


def check_signed(bundle: Path, public_key: Path, digest: str) -> None:
    """Check that a signed statement is about an image.

    Raises:
        SignatureError: it is not signed with this key, or is about another image.
    """
    payload = signatures.opened(bundle, public_key)
    stated = signatures.statement(payload, _PREDICATE_TYPE, str(bundle))
    try:
        about = {it["name"]: it["digest"]["sha256"] for it in stated["subject"]}
    except (KeyError, TypeError) as error:
        raise SignatureError(f"{bundle} names no image", "sign the package again") from error
    if about.get(IMAGE) != digest.removeprefix("sha256:"):
        raise SignatureError(
            f"{bundle} is about {about.get(IMAGE, 'a zip')[:64]}, the image is {digest}",
            "do not use the image, or give its own statement",
        )


def _subjects(folder: Path, names: Iterable[str], name: str, digest: str) -> list[dict[str, Any]]:
    """What was built: the image by its digest, and every file beside it."""
    stated = {IMAGE if name.endswith(".tar") else name: digest.removeprefix("sha256:")}
    stated |= {each: sha256_file(folder / each) for each in sorted({*names} - {name, NAME})}
    return [{"name": name, "digest": {"sha256": it}} for name, it in stated.items()]


def _dependencies(
    base: Base, model: Facts, options: Mapping[str, object]
) -> Iterable[dict[str, Any]]:
    """What went into it, by digest; distributions by their version, as they are installed."""
    found: list[dict[str, Any]] = [
        {"name": "checkpoint", "digest": {"sha256": model.root_sha256}},
        *(_named(f"checkpoint/{name}", sha256) for name, sha256 in sorted(model.files.items())),
        *(
            _named(f"base/layer {number}", blob.layer.digest.removeprefix("sha256:"))
            for number, blob in enumerate(base.layers, start=1)
        ),
    ]
    if base.reference:
        place, _, digest = base.reference.partition("@sha256:")
        found.append({"name": "base", "uri": f"docker://{place}", "digest": {"sha256": digest}})
    versions = cast("Mapping[str, str]", options["runtime"])
    return found + [
        {"uri": f"pkg:pypi/{quote(name, safe='')}@{quote(version, safe='')}"}
        for name, version in sorted(versions.items())
    ]


def _named(name: str, sha256: str) -> dict[str, Any]:
    return {"name": name, "digest": {"sha256": sha256}}


def _read(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(_MAX_BYTES)
