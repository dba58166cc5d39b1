"""What is in a package, as a CycloneDX document: Debian's packages, Python's, the model with its card.

Nothing of the moment is in it: equal packages have equal documents. It lies beside the image, where
scanners and registries take it from; an image that carries attestations is refused by Lambda.

Source: CycloneDX 1.6, cyclonedx.org/docs/1.6/json; the package-url specification for the types used.
"""

import json
import uuid
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

from coldpress import __version__
from coldpress.errors import IntegrityError
from coldpress.package import contents
from coldpress.package.model import Facts, Metric

NAME = "sbom.cdx.json"
_MODEL = "machine-learning-model"


def write(digest: str, layers: Iterable[contents.Found], model: Facts) -> bytes:
    """The document as JSON.

    Args:
        digest: the image's or zip's, which the document is about.
        layers: what the layers below the model hold.
    """
    parts = [*software(contents.merged(layers)), _model(model)]
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


def software(found: contents.Found) -> list[dict[str, Any]]:
    """The components of what the layers hold: operating system, packages, native libraries."""
    release: dict[str, str] = next((it["os"] for it in found.values() if "os" in it), {})
    parts = [_os(release)] if release.get("id") else []
    for path, fact in sorted(found.items()):
        if "debian" in fact:
            parts += [_debian(package, release) for package in fact["debian"]]
        elif "python" in fact:
            parts.append(_python(fact["python"]))
        elif "library" in fact:
            parts.append(_file(path, fact["library"]))
    # A package that is listed twice is one component.
    return list({part["bom-ref"]: part for part in parts}.values())


def check(document: bytes, digest: str, found: contents.Found, where: str) -> int:
    """Hold a document against the image that it is about; return how many components it lists.

    Args:
        found: what the image, or the zip, holds.

    Raises:
        IntegrityError: it is about another image, or lists something else than is there.
    """
    try:
        listed = json.loads(document)
        about = listed["metadata"]["component"]["version"]
        parts = {str(part["bom-ref"]): part for part in listed["components"]}
        files = {
            file["name"]: file["hashes"][0]["content"]
            for part in parts.values()
            if part["type"] == _MODEL
            for file in part["components"]
        }
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise IntegrityError(f"{where} is damaged: {error}", "build it again") from error
    if about != digest:
        raise IntegrityError(f"{where} is about {about}, not {digest}", "build it again")
    there = {part["bom-ref"]: part for part in software(found)}
    named = {ref: part for ref, part in parts.items() if part["type"] != _MODEL}
    for ref in sorted(there.keys() | named.keys()):
        if there.get(ref) != named.get(ref):
            what = "says otherwise of" if ref in there and ref in named else "differs in"
            raise IntegrityError(f"{where} {what} {ref} than the image", "build it again")
    for path, fact in found.items():
        name = path.rpartition("/")[2]
        if "model" in fact and files.get(name) != fact["model"]:
            raise IntegrityError(f"{where} has another {name} than the image", "build it again")
    return len(parts)


def _os(release: dict[str, str]) -> dict[str, Any]:
    name, version = release["id"], release["version_id"]
    part = {"type": "operating-system", "bom-ref": f"os:{name}@{version}", "name": name}
    return part | ({"version": version} if version else {})


def _debian(package: dict[str, str], release: dict[str, str]) -> dict[str, Any]:
    name, version = package["name"], package["version"]
    where = quote(package["architecture"], safe="")
    by = release.get("id") or "debian"
    url = f"pkg:deb/{quote(by, safe='')}/{quote(name, safe='')}@{quote(version, safe='')}?arch={where}"
    if release.get("version_id"):
        url += f"&distro={quote(by, safe='')}-{quote(release['version_id'], safe='')}"
    return {"type": "library", "bom-ref": url, "name": name, "version": version, "purl": url}


def _python(found: dict[str, str]) -> dict[str, Any]:
    name, version = found["name"], found["version"]
    url = f"pkg:pypi/{quote(name, safe='')}@{quote(version, safe='')}"
    part: dict[str, Any] = {"type": "library", "bom-ref": url, "name": name, "version": version}
    if found["expression"]:
        part["licenses"] = [{"expression": found["expression"]}]
    elif found["license"]:
        part["licenses"] = [{"license": {"name": found["license"]}}]
    return part | {"purl": url}


def _file(path: str, sha256: str) -> dict[str, Any]:
    return {"type": "file", "bom-ref": f"file:{path}", "name": path, "hashes": [_hash(sha256)]}


def _model(model: Facts) -> dict[str, Any]:
    card: dict[str, Any] = {
        "modelParameters": {
            "task": "text-generation",
            "architectureFamily": "transformer",
            "modelArchitecture": model.architecture,
            "inputs": [{"format": "text"}],
            "outputs": [{"format": "text"}],
        }
    }
    if model.metrics:
        card["quantitativeAnalysis"] = {"performanceMetrics": list(map(_metric, model.metrics))}
    properties = {"size_bytes": str(model.size_bytes), "quantization": model.quantization}
    described: dict[str, Any] = {
        "type": _MODEL,
        "bom-ref": f"model:{model.root_sha256}",
        "name": model.name,
        "version": model.root_sha256,
        "modelCard": card,
        # Its files are parts of it: the digests are those that a checkpoint's index holds.
        "components": [_file(name, sha256) for name, sha256 in sorted(model.files.items())],
        "properties": [
            {"name": f"coldpress:{name}", "value": value}
            for name, value in properties.items()
            if value
        ],
    }
    if model.license:
        described["licenses"] = [{"license": {"name": model.license}}]
    return described


def _metric(metric: Metric) -> dict[str, Any]:
    described: dict[str, Any] = {"type": metric.name, "value": f"{metric.value:.6g}"}
    if metric.stderr is not None:
        low, high = metric.value - 1.96 * metric.stderr, metric.value + 1.96 * metric.stderr
        described["confidenceInterval"] = {"lowerBound": f"{low:.6g}", "upperBound": f"{high:.6g}"}
    return described


def _hash(sha256: str) -> dict[str, str]:
    return {"alg": "SHA-256", "content": sha256}
