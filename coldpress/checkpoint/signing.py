"""Sign a model's folder as OpenSSF's model-signing does, and check such signatures, either's.

Every file is listed with its sha256. ``manifest.json`` is left out: what it says is the run's, and a
checkpoint that was pulled from a registry comes without it.

Source: github.com/sigstore/model-transparency, model_signing/_signing/signing.py (predicate 1.0).
"""

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from coldpress import signatures
from coldpress.artifact import MANIFEST, sha256_file
from coldpress.errors import InputError, IntegrityError, SignatureError

SIGNATURE = "model.sig"
_PREDICATE_TYPE = "https://model_signing/signature/v1.0"
_IGNORED = (".git", ".gitattributes", ".github", ".gitignore", MANIFEST, SIGNATURE)


@dataclass(frozen=True)
class Signed:
    """A signature that was written; ``root_sha256`` is over the files' digests in order of their names."""

    path: Path
    n_files: int
    root_sha256: str


def sign(folder: Path, key: Path) -> Signed:
    """Write ``model.sig`` into a model's folder; an older one is replaced.

    Raises:
        InputError: the folder is empty or holds links, or the key is no EC private key.
        ToolError: cryptography is not installed.
    """
    partial = folder / f"{SIGNATURE}.partial"
    partial.unlink(missing_ok=True)  # of an attempt that was killed; or it would be signed
    files = _digests(folder, _IGNORED)
    if not files:
        raise InputError(f"{folder} has no files to sign", "give a checkpoint's folder")
    root = _root(files.values())
    resources = [
        {"name": name, "algorithm": "sha256", "digest": digest} for name, digest in files.items()
    ]
    statement = {
        "_type": signatures.STATEMENT_TYPE,
        "subject": [{"name": folder.resolve().name, "digest": {"sha256": root}}],
        "predicateType": _PREDICATE_TYPE,
        "predicate": {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": list(_IGNORED),
            },
            "resources": resources,
        },
    }
    payload = json.dumps(statement, sort_keys=True, ensure_ascii=False).encode()
    bundle = signatures.sign(payload, key)
    try:
        partial.write_bytes(bundle)
        partial.replace(folder / SIGNATURE)
    finally:
        partial.unlink(missing_ok=True)
    return Signed(folder / SIGNATURE, len(files), root)


def verify(folder: Path, public_key: Path) -> int:
    """Check ``model.sig`` and that the folder holds what it lists, no more; return how many files.

    Raises:
        SignatureError: there is none, it is another key's, or it was changed.
        IntegrityError: a file differs, is missing or was added; it is named.
    """
    bundle = folder / SIGNATURE
    if not bundle.is_file():
        raise SignatureError(f"{folder} is not signed", "coldpress sign FOLDER --key FILE")
    payload = signatures.opened(bundle, public_key)
    signed = signatures.statement(payload, _PREDICATE_TYPE, str(bundle))
    try:
        expected, ignored = _listed(signed)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SignatureError(
            f"{bundle} cannot be followed: {error}", "sign it by file, with sha256"
        ) from error
    found = _digests(folder, (*ignored, SIGNATURE, *_IGNORED[:4]))
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            raise IntegrityError(f"{folder / name} is missing; it was signed", "fetch it again")
        if name not in expected:
            raise IntegrityError(f"{folder / name} is not among what was signed", "remove it")
        if found[name] != expected[name]:
            raise IntegrityError(
                f"{folder / name} is not the file that was signed", "fetch it again"
            )
    return len(expected)


def _listed(signed: dict[str, Any]) -> tuple[dict[str, str], list[str]]:
    """File → sha256, and the paths that the signer left out."""
    predicate = signed["predicate"]
    how = predicate["serialization"]
    if (how["method"], how["hash_type"]) != ("files", "sha256"):
        raise ValueError(f"it lists {how['method']} by {how['hash_type']}")
    files: dict[str, str] = {}
    for resource in predicate["resources"]:
        if resource["algorithm"] != "sha256" or resource["name"] in files:
            raise ValueError(f"{resource['name']!r} is listed by {resource['algorithm']} or twice")
        files[str(resource["name"])] = resource["digest"]
    (subject,) = signed["subject"]
    if subject["digest"]["sha256"] != _root(files.values()):
        raise ValueError("its digest is not that of what it lists")
    return files, [str(path) for path in how.get("ignore_paths", ())]


def _digests(folder: Path, ignored: Iterable[str]) -> dict[str, str]:
    """Sha256 of every file below a folder by its path, sorted, but for what is ignored."""
    left_out = [PurePosixPath(path) for path in ignored]
    found: dict[str, str] = {}
    for where, folders, names in os.walk(folder):
        # A link to a folder is not entered, and would be a way around the signature.
        for name in [*names, *(it for it in folders if Path(where, it).is_symlink())]:
            path = Path(where, name)
            inner = PurePosixPath(path.relative_to(folder).as_posix())
            if any(inner.is_relative_to(path) for path in left_out):
                continue
            if path.is_symlink() or not path.is_file():
                raise InputError(f"{path} is no plain file", "copy what it points to in its place")
            found[str(inner)] = sha256_file(path)
    return {str(path): found[str(path)] for path in sorted(map(PurePosixPath, found))}


def _root(digests: Iterable[str]) -> str:
    return hashlib.sha256(b"".join(bytes.fromhex(digest) for digest in digests)).hexdigest()
