"""A package's list of contents, provenance and signature: equal twice, and every change is named."""

import base64
import hashlib
import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coldpress.checkpoint import signing
from coldpress.errors import IntegrityError, SignatureError
from coldpress.package import PackageOptions, package, provenance, registry, sbom, verify
from coldpress.package.stores import open_store
from tests import packages, registries
from tests.test_cli import coldpress, refused
from tests.test_signing import flip, make_key

pytest.importorskip("cryptography", reason="needs cryptography")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A signed package of a tiny model, its keys beside it."""
    folder = tmp_path_factory.mktemp("built")
    with pytest.MonkeyPatch.context() as patch:
        packages.small_base(patch, folder)
        checkpoint = packages.tiny_checkpoint(folder)
        package(checkpoint, folder / "lambda", PackageOptions(target="lambda"))
        package(checkpoint, folder / "zip", PackageOptions(target="lambda-microvm"))
    private, _ = make_key(folder, "key")
    provenance.sign(folder / "lambda", private)
    return folder


@pytest.fixture
def made(built: Path, tmp_path: Path) -> Path:
    """A copy of it to damage."""
    return shutil.copytree(built / "lambda", tmp_path / "made")


def document(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_bytes())
    return found


def remanifest(folder: Path, name: str) -> None:
    """Write the manifest as who has changed a file would."""
    manifest = document(folder / "manifest.json")
    for file in manifest["files"]:
        if file["name"] == name:
            data = (folder / name).read_bytes()
            file |= {"size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_everything_that_was_built_is_checked_and_said(built: Path) -> None:
    checked = verify.folder(built / "lambda", built / "key.pub")
    assert checked.signed
    said = "\n".join(checked.checks)
    for part in ("image: sha256:", "model: ", "files: all", sbom.NAME, provenance.NAME, "signed"):
        assert part in said
    unsigned = verify.folder(built / "lambda")
    assert not unsigned.signed and "not checked" in unsigned.checks[-1]
    zipped = verify.folder(built / "zip")
    assert zipped.checks[0].startswith("zip: ") and zipped.checks[-1] == "signature: none"
    assert zipped.checks[1] == checked.checks[1]  # the model
    with pytest.raises(SignatureError, match="zip is not signed"):
        verify.folder(built / "zip", built / "key.pub")


def test_provenance_says_what_went_in_and_what_came_out(built: Path) -> None:
    stated = document(built / "lambda" / provenance.NAME)
    assert stated["predicateType"] == "https://slsa.dev/provenance/v1"
    outputs = {it["name"]: it["digest"]["sha256"] for it in stated["subject"]}
    image = verify.folder(built / "lambda").digest
    assert outputs.pop("coldpress") == image.removeprefix("sha256:")
    assert {"template.yaml", "DEPLOY.md", sbom.NAME} <= set(outputs)
    for name, digest in outputs.items():
        data = (built / "lambda" / name).read_bytes()
        assert hashlib.sha256(data).hexdigest() == digest
    build = stated["predicate"]["buildDefinition"]
    assert build["externalParameters"]["target"] == "lambda"
    used = {it.get("name", it.get("uri")): it.get("digest") for it in build["resolvedDependencies"]}
    index = document(built / "checkpoint" / "model.index.json")
    assert used["checkpoint"] == {"sha256": index["root_sha256"]}
    for file in index["files"]:
        assert used[f"checkpoint/{file['name']}"] == {"sha256": file["sha256"]}
    assert "base/layer 1" in used and any(it.startswith("pkg:pypi/numpy@") for it in used)
    # No path of this machine, and no time.
    assert str(built) not in json.dumps(stated)


def test_the_same_build_elsewhere_has_the_same_documents(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages.small_base(monkeypatch, tmp_path)
    copy = shutil.copytree(built / "checkpoint", tmp_path / "elsewhere" / "copy")
    package(copy, tmp_path / "again", PackageOptions(target="lambda"))
    provenance.sign(tmp_path / "again", built / "key.pem")
    for name in (sbom.NAME, provenance.NAME, provenance.SIGNATURE):
        assert (tmp_path / "again" / name).read_bytes() == (built / "lambda" / name).read_bytes()


def test_a_flipped_byte_anywhere_in_the_image_is_found(built: Path, made: Path) -> None:
    size = (made / "image.tar").stat().st_size
    whole = (made / "image.tar").read_bytes()
    for place in range(0, size, size // 40):
        if whole[place] == 0:
            continue  # perhaps padding between members, which only the manifest knows
        (made / "image.tar").write_bytes(
            whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
        )
        with pytest.raises(IntegrityError, match=r"image\.tar"):
            verify.folder(made)


def test_a_damaged_layer_is_named(built: Path, made: Path) -> None:
    whole = (made / "image.tar").read_bytes()
    index = (built / "checkpoint" / "model.index.json").read_bytes()
    place = whole.index(index[100:160])  # the weights are stored as they are
    (made / "image.tar").write_bytes(whole[:place] + b"!" + whole[place + 1 :])
    with pytest.raises(IntegrityError, match=r"layer 3, sha256:[0-9a-f]{64}, has other bytes"):
        verify.folder(made)


def test_what_is_in_a_zip_is_compared_too(built: Path, tmp_path: Path) -> None:
    made = shutil.copytree(built / "zip", tmp_path / "made")
    flip(made / "function.zip")
    with pytest.raises(IntegrityError, match=r"function\.zip differs from its manifest"):
        verify.folder(made)
    remanifest(made, "function.zip")
    with pytest.raises(IntegrityError, match=r"function\.zip|sbom\.cdx\.json is about"):
        verify.folder(made)
    made = shutil.copytree(built / "zip", tmp_path / "other")
    remanifest(made, _other_version(made))
    with pytest.raises(IntegrityError, match=r"sbom\.cdx\.json says otherwise of pkg:deb"):
        verify.folder(made)


VALUES = st.none() | st.booleans() | st.integers() | st.text(max_size=9) | st.just([]) | st.just({})


def replaced(value: Any, path: list[int], by: Any) -> Any:
    """A document with one of its values replaced, which ``path`` leads to."""
    if not path or not isinstance(value, dict | list) or not value:
        return by
    if isinstance(value, list):
        at = path[0] % len(value)
        return [*value[:at], replaced(value[at], path[1:], by), *value[at + 1 :]]
    name = sorted(value)[path[0] % len(value)]
    return value | {name: replaced(value[name], path[1:], by)}


@given(path=st.lists(st.integers(0, 50), max_size=7), by=VALUES)
@settings(deadline=None)
def test_documents_of_any_form_are_judged(built: Path, path: list[int], by: Any) -> None:
    folder, digest = built / "lambda", f"sha256:{'ab' * 32}"
    listed = json.dumps(replaced(document(folder / sbom.NAME), path, by)).encode()
    with suppress(IntegrityError):
        sbom.check(
            listed, document(folder / sbom.NAME)["metadata"]["component"]["version"], {}, "it"
        )
    damaged = built / "damaged"
    damaged.mkdir(exist_ok=True)
    stated = json.dumps(replaced(document(folder / provenance.NAME), path, by))
    (damaged / provenance.NAME).write_text(stated)
    with suppress(IntegrityError):
        provenance.check(damaged, [], ("image.tar", digest), "ab" * 32)


@pytest.mark.parametrize("name", [sbom.NAME, "template.yaml", provenance.NAME])
def test_a_flipped_byte_in_a_document_is_named(made: Path, name: str) -> None:
    flip(made / name)
    with pytest.raises(IntegrityError, match=name):
        verify.folder(made)


def _other_version(folder: Path) -> str:
    text = (folder / sbom.NAME).read_text()
    (folder / sbom.NAME).write_text(text.replace("2025b-0+deb12u2", "2024a-0"))
    return sbom.NAME


def _unlisted(folder: Path) -> str:
    listed = document(folder / sbom.NAME)
    listed["components"] = [it for it in listed["components"] if it["type"] != "file"]
    (folder / sbom.NAME).write_text(json.dumps(listed))
    return sbom.NAME


def _open_to_all(folder: Path) -> str:
    text = (folder / "template.yaml").read_text()
    (folder / "template.yaml").write_text(text + "# changed\n")
    return "template.yaml"


def _other_model(folder: Path) -> str:
    stated = document(folder / provenance.NAME)
    used = stated["predicate"]["buildDefinition"]["resolvedDependencies"]
    used[0]["digest"]["sha256"] = "0" * 64
    (folder / provenance.NAME).write_text(json.dumps(stated))
    return provenance.NAME


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_other_version, r"sbom\.cdx\.json says otherwise of pkg:deb/debian/tzdata"),
        (_unlisted, r"sbom\.cdx\.json differs in file:.*_native\.so"),
        (_open_to_all, r"provenance\.json states other bytes of .*template\.yaml"),
        (_other_model, r"provenance\.json names another model"),
    ],
)
def test_who_rewrites_the_manifest_is_found_out(
    made: Path, change: Callable[[Path], str], words: str
) -> None:
    remanifest(made, change(made))
    with pytest.raises(IntegrityError, match=words):
        verify.folder(made)


def test_who_rewrites_everything_lacks_the_key(made: Path, built: Path, tmp_path: Path) -> None:
    name = _open_to_all(made)
    stated = document(made / provenance.NAME)
    for it in stated["subject"]:
        if it["name"] == name:
            it["digest"]["sha256"] = hashlib.sha256((made / name).read_bytes()).hexdigest()
    (made / provenance.NAME).write_text(json.dumps(stated))
    remanifest(made, name)
    remanifest(made, provenance.NAME)
    verify.folder(made)  # it agrees with itself
    with pytest.raises(SignatureError, match=r"provenance\.json is not the statement"):
        verify.folder(made, built / "key.pub")
    other, _ = make_key(tmp_path, "other")
    provenance.sign(made, other)
    with pytest.raises(SignatureError, match=r"another key than .*key\.pub"):
        verify.folder(made, built / "key.pub")
    bundle = document(made / provenance.SIGNATURE)
    hint = document(built / "lambda" / provenance.SIGNATURE)["verificationMaterial"]
    (made / provenance.SIGNATURE).write_text(json.dumps(bundle | {"verificationMaterial": hint}))
    with pytest.raises(SignatureError, match="was changed after it was signed"):
        verify.folder(made, built / "key.pub")
    assert base64.b64decode(bundle["dsseEnvelope"]["payload"]) == (
        (made / provenance.NAME).read_bytes()
    )


def test_an_image_is_checked_wherever_it_is(built: Path, tmp_path: Path) -> None:
    archive = built / "lambda" / "image.tar"
    digest = verify.folder(built / "lambda").digest
    with registries.registry(tmp_path) as host:
        registry.push(archive, f"{host}/model:1")
        found = json.loads(coldpress("verify", f"{host}/model:1", "--json").stdout)
        assert found["digest"] == digest
        signed = built / "lambda" / provenance.SIGNATURE
        both = ["--public-key", built / "key.pub", "--provenance", signed]
        assert json.loads(coldpress("verify", f"{host}/model:1", *both, "--json").stdout)["signed"]
        blob = next(
            (tmp_path / "data").glob(f"docker/registry/v2/blobs/sha256/*/{digest[7:]}/data")
        )
        manifest = json.loads(blob.read_bytes())
        weights = manifest["layers"][3]["digest"].removeprefix("sha256:")
        flip(tmp_path / f"data/docker/registry/v2/blobs/sha256/{weights[:2]}/{weights}/data")
        refused(coldpress("verify", f"{host}/model:1"), 15, f"layer 4, sha256:{weights}")
    assert json.loads(coldpress("verify", archive, "--json").stdout)["digest"] == digest
    refused(coldpress("verify", archive, "--public-key", built / "key.pub"), 2, "no signature")


def test_a_statement_about_another_image_is_refused(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages.small_base(monkeypatch, tmp_path)
    smaller = PackageOptions(target="cloudrun", weights="https://example.org/model")
    other = package(built / "checkpoint", tmp_path / "other", smaller)
    signed = built / "lambda" / provenance.SIGNATURE
    with pytest.raises(SignatureError, match=f"the image is {other.digest}"):
        verify.image(open_store(other.archive), signed, built / "key.pub")
    made = verify.image(open_store(built / "lambda" / "image.tar"), signed, built / "key.pub")
    assert made.signed


def test_what_is_damaged_is_not_signed(built: Path, made: Path, tmp_path: Path) -> None:
    (made / provenance.SIGNATURE).unlink()
    flip(made / "template.yaml")
    refused(coldpress("sign", made, "--key", built / "key.pem"), 15, r"template\.yaml")
    assert not (made / provenance.SIGNATURE).exists()
    folder = shutil.copytree(built / "checkpoint", tmp_path / "checkpoint")
    flip(folder / "model-00003-of-00003.gguf")
    refused(coldpress("sign", folder, "--key", built / "key.pem"), 15, "chunk")
    assert not (folder / signing.SIGNATURE).exists()


def test_a_checkpoints_signature_goes_with_it_through_a_registry(
    built: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(built / "checkpoint", tmp_path / "checkpoint")
    signing.sign(folder, built / "key.pem")
    with registries.registry(tmp_path) as host:
        registry.push(folder, f"{host}/weights:1")
        pulled = registry.pull(f"{host}/weights:1", tmp_path / "pulled")
    assert signing.verify(pulled, built / "key.pub") == 4


def test_the_commands(made: Path, built: Path) -> None:
    (made / provenance.SIGNATURE).unlink()
    key = ["--public-key", built / "key.pub"]
    refused(coldpress("verify", made, *key), 20, "is not signed")
    done = coldpress("sign", made, "--key", built / "key.pem")
    assert done.stdout.strip() == str(made / provenance.SIGNATURE)
    done = coldpress("verify", made, *key)
    assert done.returncode == 0 and done.stdout.strip() == str(made)
    assert len(done.stderr.splitlines()) == 6
    refused(coldpress("verify", made, "--chunk", "1"), 2, "has no chunks")
    refused(coldpress("verify", made, *key, "--provenance", made), 2, "goes with an image")
