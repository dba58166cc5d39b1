"""What is in a package, as a CycloneDX document: Debian's packages, Python's, the model with its card.

Nothing of the moment is in it: equal packages have equal documents. It lies beside the image, where
scanners and registries take it from; an image that carries attestations is refused by Lambda.

Source: CycloneDX 1.6, cyclonedx.org/docs/1.6/json; the package-url specification for the types used.
"""

import json
import re
import tarfile
import uuid
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote

from coldpress import __version__
from coldpress.package.blobs import Blob
from coldpress.package.model import Facts

NAME = "sbom.cdx.json"
_STATUS = re.compile(r"(\./)?var/lib/dpkg/status")
_MAX_STATUS_BYTES = 16 << 20


def write(digest: str, blobs: Iterable[Blob], python: Mapping[str, str], model: Facts) -> bytes:
    """The document as JSON.

    Args:
        digest: the image's or zip's, which the document is about.
        blobs: the base's layers; Debian's packages are read from ``/var/lib/dpkg/status``.
        python: distribution → version.
    """
    packages = [_debian(fields) for blob in blobs for fields in _status(blob)]
    distributions = [_python(name, version) for name, version in sorted(python.items())]
    found = [*packages, *distributions, _model(model)]
    # A package that an upper layer has too is one component.
    parts = list({part["bom-ref"]: part for part in found}.values())
    subject = {
        "type": "container",
        "bom-ref": digest,
        "name": "coldpress",
        "version": digest,
        "hashes": [_hash(digest.removeprefix("sha256:"))],
    }
    document = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        # Of its content and not of the moment.
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, digest)}",
        "version": 1,
        "metadata": {
            "tools": {
                "components": [{"type": "application", "name": "coldpress", "version": __version__}]
            },
            "component": subject,
        },
        "components": parts,
        "dependencies": [{"ref": digest, "dependsOn": sorted(part["bom-ref"] for part in parts)}],
    }
    return json.dumps(document, indent=1, ensure_ascii=False).encode()


def _status(blob: Blob) -> Iterator[dict[str, str]]:
    """The paragraphs of a layer's list of Debian packages; nothing where there is none."""
    with tarfile.open(blob.path, "r|gz") as tar:
        for member in tar:
            if _STATUS.fullmatch(member.name) and member.size <= _MAX_STATUS_BYTES:
                data = tar.extractfile(member)
                text = data.read().decode(errors="replace") if data else ""
                for paragraph in text.split("\n\n"):
                    lines = (line.partition(": ") for line in paragraph.splitlines())
                    fields = {key: value for key, colon, value in lines if colon}
                    if "Package" in fields and "Version" in fields:
                        yield fields


def _debian(fields: Mapping[str, str]) -> dict[str, Any]:
    name, version = fields["Package"], fields["Version"]
    where = quote(fields.get("Architecture", "all"), safe="")
    url = f"pkg:deb/debian/{quote(name, safe='')}@{quote(version, safe='')}?arch={where}"
    return {"type": "library", "bom-ref": url, "name": name, "version": version, "purl": url}


def _python(name: str, version: str) -> dict[str, Any]:
    url = f"pkg:pypi/{quote(name, safe='')}@{quote(version, safe='')}"
    return {"type": "library", "bom-ref": url, "name": name, "version": version, "purl": url}


def _model(model: Facts) -> dict[str, Any]:
    described: dict[str, Any] = {
        "type": "machine-learning-model",
        "bom-ref": f"model:{model.root_sha256}",
        "name": model.name,
        "version": model.root_sha256,
        "modelCard": {
            "modelParameters": {
                "task": "text-generation",
                "architectureFamily": "transformer",
                "modelArchitecture": model.architecture,
                "inputs": [{"format": "text"}],
                "outputs": [{"format": "text"}],
            }
        },
        # Its files are parts of it: the digests are those that a checkpoint's index holds.
        "components": [
            {"type": "file", "bom-ref": f"file:{name}", "name": name, "hashes": [_hash(sha256)]}
            for name, sha256 in sorted(model.files.items())
        ],
        "properties": [{"name": "coldpress:size_bytes", "value": str(model.size_bytes)}],
    }
    if model.license:
        described["licenses"] = [{"license": {"name": model.license}}]
    return described


def _hash(sha256: str) -> dict[str, str]:
    return {"alg": "SHA-256", "content": sha256}
