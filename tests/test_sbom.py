"""The list of what is in a package, held against CycloneDX's own schema and the image's content."""

import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from coldpress import artifact
from coldpress.errors import IntegrityError
from coldpress.package import contents, layer, model, runtime, sbom
from coldpress.package.base import Base
from coldpress.package.blobs import Blob
from coldpress.package.layer import File
from coldpress.package.lint.streams import Blob as Stored
from coldpress.package.lint.streams import Unpacked
from coldpress.package.model import Facts, Metric
from tests import made_evaluations, packages
from tests.packages import BASE, RUNTIME, SITE_PACKAGES

FACTS = Facts(
    name="tiny",
    root_sha256="ab" * 32,
    size_bytes=123,
    architecture="llama",
    license="Apache-2.0",
    files={"model.gguf": "cd" * 32},
    fields={},
    quantization="Q4_K",
    metrics=(Metric("perplexity", 10.5, 0.25), Metric("KL", 0.0123)),
)
DIGEST = f"sha256:{'ef' * 32}"


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COLDPRESS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def blobs(tmp_path: Path) -> list[Blob]:
    parts = {"base": list(BASE), "runtime": list(RUNTIME)}
    return [packages.blob(tmp_path, name, [*entries]) for name, entries in parts.items()]


def document(blobs: list[Blob]) -> bytes:
    return sbom.write(DIGEST, map(contents.of_blob, blobs), FACTS)


def listed(blobs: list[Blob]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(document(blobs))
    return found


def test_every_part_has_its_name_licence_and_digest(blobs: list[Blob]) -> None:
    found = listed([blobs[0], *blobs])
    assert [(part["type"], part.get("purl")) for part in found["components"]] == [
        ("operating-system", None),
        ("library", "pkg:pypi/some-thing@1.2"),
        ("file", None),
        ("library", "pkg:deb/debian/libc6@2.36-9%2Bdeb12u13?arch=amd64&distro=debian-12"),
        ("library", "pkg:deb/debian/tzdata@2025b-0%2Bdeb12u2?arch=all&distro=debian-12"),
        ("machine-learning-model", None),
    ]
    _, python, library, *_, described = found["components"]
    assert python["licenses"] == [{"expression": "MIT AND 0BSD"}]
    assert library["name"] == f"{SITE_PACKAGES}/some_thing/_native.so"
    assert library["hashes"] == [{"alg": "SHA-256", "content": RUNTIME[1].sha256}]
    assert described["version"] == FACTS.root_sha256
    assert described["licenses"] == [{"license": {"name": "Apache-2.0"}}]
    assert described["components"][0]["hashes"][0]["content"] == FACTS.files["model.gguf"]
    assert {it["name"]: it["value"] for it in described["properties"]} == {
        "coldpress:size_bytes": "123",
        "coldpress:quantization": "Q4_K",
    }
    assert described["modelCard"]["quantitativeAnalysis"]["performanceMetrics"] == [
        {
            "type": "perplexity",
            "value": "10.5",
            "confidenceInterval": {"lowerBound": "10.01", "upperBound": "10.99"},
        },
        {"type": "KL", "value": "0.0123"},
    ]
    assert found["metadata"]["component"]["hashes"][0]["content"] == "ef" * 32
    (depends,) = found["dependencies"]
    assert set(depends["dependsOn"]) == {part["bom-ref"] for part in found["components"]}


def test_equal_packages_have_equal_lists(blobs: list[Blob]) -> None:
    first = document(blobs)
    assert document(blobs) == first  # now from what was kept
    assert listed([])["serialNumber"] == listed(blobs)["serialNumber"]


def test_it_is_cyclonedx(blobs: list[Blob], tmp_path: Path) -> None:
    pytest.importorskip("cyclonedx", reason="needs cyclonedx-python-lib")
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    found = Base(layers=(), python="", python_version="3.11", glibc="", env=())
    shipped = packages.blob(tmp_path, "shipped", runtime.entries(found))
    text = document([blobs[0], shipped]).decode()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    wrong = text.replace("machine-learning-model", "language-model")
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(wrong) is not None
    # Of what ships, everything is there: versions as installed, and a licence of each.
    parts = {part.get("purl"): part for part in json.loads(text)["components"]}
    for name, version in runtime.versions().items():
        assert parts[f"pkg:pypi/{name}@{version}"]["licenses"], name
    files = [it for it in json.loads(text)["components"] if it["type"] == "file"]
    assert [it for it in files if "libllama.so" in it["name"]]


def test_a_base_without_debian_lists_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "base.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("etc/os-release"), io.BytesIO())
    blob = Blob(path, layer.Layer(f"sha256:{'0' * 64}", "", 0, 0))
    assert [part["name"] for part in listed([blob])["components"]] == ["tiny"]


def facts(entries: list[layer.Entry]) -> contents.Found:
    out = io.BytesIO()
    layer.write(entries, out, "deflate")
    out.seek(0)
    return contents.read(Unpacked(Stored(out), 1 << 20))


def test_upper_layers_replace_and_delete() -> None:
    replaced = [File("var/lib/dpkg/status", b"Package: one\nVersion: 1\n")]
    found = contents.merged([facts([*BASE]), facts([*replaced])])
    assert [it["name"] for it in found["var/lib/dpkg/status"]["debian"]] == ["one"]
    for whiteout in ("var/lib/dpkg/.wh.status", "var/lib/.wh.dpkg", "var/lib/dpkg/.wh..wh..opq"):
        deleted = contents.merged([facts([*BASE]), facts([File(whiteout, b"")])])
        assert set(deleted) == {"etc/os-release"}
    again = contents.merged([facts([*BASE]), facts([File("var/.wh.lib", b""), *replaced])])
    assert "var/lib/dpkg/status" in again
    distroless = facts([File("var/lib/dpkg/status.d/libc6", packages.STATUS)])
    assert [it["name"] for it in distroless["var/lib/dpkg/status.d/libc6"]["debian"]] == [
        "libc6",
        "tzdata",
    ]


def test_a_list_of_something_else_is_refused(blobs: list[Blob]) -> None:
    text = document(blobs)
    there = contents.merged(map(contents.of_blob, blobs)) | {"a/model.gguf": {"model": "cd" * 32}}
    assert sbom.check(text, DIGEST, there, "it") == 6
    for damaged, words in (
        (text.replace(b'"2025b-0+deb12u2"', b'"2025a-0"'), "says otherwise of pkg:deb/.*tzdata"),
        (text.replace(b"file:opt", b"file:tmp"), "differs in file:"),
        (text.replace(RUNTIME[1].sha256.encode(), b"0" * 64), "says otherwise of file:"),
        (text.replace(b"cd" * 32, b"0" * 64), r"another model\.gguf"),
        (text.replace(b"ef" * 32, b"0" * 64), "is about sha256:0"),
        (text[:-9], "is damaged"),
    ):
        with pytest.raises(IntegrityError, match=words):
            sbom.check(damaged, DIGEST, there, "it")


def test_an_evaluation_is_found_by_what_it_measured(tmp_path: Path) -> None:
    made = packages.tiny_checkpoint(tmp_path)
    assert model.evaluation_of(made) is None
    other = tmp_path / "evaluate" / "other"
    made_evaluations.write(other, made_evaluations.DEMO[4])
    assert model.evaluation_of(made) is None
    own = tmp_path / "evaluate" / "own"
    made_evaluations.write(own, made_evaluations.DEMO[4], tmp_path / "tiny.gguf")
    assert model.evaluation_of(made) == own
    found = model.read(made, "ab" * 32, own)
    kl = next(it for it in found.metrics if it.name.startswith("KL"))
    assert kl.value == made_evaluations.DEMO[4][5]
    assert replace(found, metrics=()) == model.read(made, "ab" * 32)
    assert artifact.read(own).stage == "evaluate"
