"""The list of what is in a package, held against CycloneDX's own schema and the image's content."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from coldpress.package import layer, runtime, sbom
from coldpress.package.blobs import Blob
from coldpress.package.layer import File
from coldpress.package.model import Facts

STATUS = b"""Package: libc6
Status: install ok installed
Version: 2.36-9+deb12u13
Architecture: amd64
Description: GNU C Library
 Version: not a field, but prose

Package: tzdata
Version: 2025b-0+deb12u2
Architecture: all

Package: broken
"""
FACTS = Facts(
    name="tiny",
    root_sha256="ab" * 32,
    size_bytes=123,
    architecture="llama",
    license="Apache-2.0",
    files={"model.gguf": "cd" * 32},
    fields={},
)
DIGEST = f"sha256:{'ef' * 32}"


@pytest.fixture
def base(tmp_path: Path) -> Blob:
    path = tmp_path / "base.tar.gz"
    with path.open("wb") as stream:
        entries = [File("var/lib/dpkg/status", STATUS), File("usr/bin/x", b"")]
        return Blob(path, layer.write(entries, stream, "deflate"))


def listed(blobs: list[Blob]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(sbom.write(DIGEST, blobs, {"numpy": "2.4.6"}, FACTS))
    return found


def test_every_part_has_its_name(base: Blob) -> None:
    found = listed([base, base])
    urls = [part.get("purl") for part in found["components"]]
    assert urls == [
        "pkg:deb/debian/libc6@2.36-9%2Bdeb12u13?arch=amd64",
        "pkg:deb/debian/tzdata@2025b-0%2Bdeb12u2?arch=all",
        "pkg:pypi/numpy@2.4.6",
        None,
    ]
    model = found["components"][-1]
    assert model["type"] == "machine-learning-model" and model["version"] == FACTS.root_sha256
    assert model["licenses"] == [{"license": {"name": "Apache-2.0"}}]
    assert model["components"][0]["hashes"][0]["content"] == FACTS.files["model.gguf"]
    assert found["metadata"]["component"]["hashes"][0]["content"] == "ef" * 32
    (depends,) = found["dependencies"]
    assert set(depends["dependsOn"]) == {part["bom-ref"] for part in found["components"]}


def test_equal_packages_have_equal_lists(base: Blob) -> None:
    assert listed([base]) == listed([base])
    assert listed([])["serialNumber"] == listed([base])["serialNumber"]


def test_it_is_cyclonedx(base: Blob) -> None:
    pytest.importorskip("cyclonedx", reason="needs cyclonedx-python-lib")
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    text = sbom.write(DIGEST, [base], runtime.versions(), FACTS).decode()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    wrong = text.replace("machine-learning-model", "language-model")
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(wrong) is not None


def test_a_base_without_debian_lists_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "base.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        info = tarfile.TarInfo("etc/os-release")
        tar.addfile(info, io.BytesIO())
    blob = Blob(path, layer.Layer("sha256:0", "sha256:0", 0, 0))
    assert [part["name"] for part in listed([blob])["components"]] == ["numpy", "tiny"]
