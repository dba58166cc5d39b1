"""A checkpoint as a ModelPack artifact: through a registry and back."""

import hashlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from coldpress.checkpoint import CheckpointOptions, checkpoint, verify
from coldpress.errors import InputError, IntegrityError
from coldpress.package import registry
from coldpress.package.lint import lint
from coldpress.package.modelpack import Artifact, unpack
from coldpress.package.stores import open_store
from tests import registries, tiny_gguf
from tests.bad_images import Image

# The parts of the specification's own schema (schema/config-schema.json) that we write.
_STRINGS = {"type": "array", "items": {"type": "string"}, "minItems": 1}
SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["descriptor", "config", "modelfs"],
    "properties": {
        "descriptor": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "name": {"type": "string", "minLength": 1},
                "family": {"type": "string"},
                "licenses": _STRINGS,
            },
        },
        "config": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "architecture": {"type": "string"},
                "format": {"const": "gguf"},
                "paramSize": {"type": "string", "pattern": r"^\d+(\.\d)?[kmbt]$"},
                "quantization": {"type": "string"},
            },
        },
        "modelfs": {
            "type": "object",
            "additionalProperties": False,
            "required": ["type", "diffIds"],
            "properties": {"type": {"const": "layers"}, "diffIds": _STRINGS},
        },
    },
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with registries.registry(tmp_path_factory.mktemp("registry")) as host:
        yield host


@pytest.fixture(scope="module", params=[None, 3], ids=["one", "shards"])
def made(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    gguf = tiny_gguf.write(folder / "plain.gguf")
    checkpoint(gguf, folder / "checkpoint", CheckpointOptions(shards=request.param))
    return folder / "checkpoint"


def documents(store: Artifact) -> tuple[dict[str, Any], dict[str, Any]]:
    """Manifest and config."""

    def load(digest: str) -> Any:
        with store.open(f"blobs/sha256/{digest[7:]}") as stream:
            return json.loads(stream.read())

    with store.open("index.json") as stream:
        manifest = load(json.loads(stream.read())["manifests"][0]["digest"])
    return manifest, load(manifest["config"]["digest"])


def test_documents_are_what_the_specification_asks(made: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    manifest, config = documents(Artifact(made))
    assert manifest["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    assert manifest["config"]["mediaType"] == "application/vnd.cncf.model.config.v1+json"
    jsonschema.validate(config, SCHEMA)
    assert config["modelfs"]["diffIds"] == [layer["digest"] for layer in manifest["layers"]]
    names = [layer["annotations"]["org.cncf.model.filepath"] for layer in manifest["layers"]]
    assert names[-1] == "model.index.json" and all(it.endswith(".gguf") for it in names[:-1])
    for layer, name in zip(manifest["layers"], names, strict=True):
        data = (made / name).read_bytes()
        assert layer["digest"] == f"sha256:{hashlib.sha256(data).hexdigest()}"
        assert layer["size"] == len(data)


def test_round_trip_gives_a_checkpoint_that_verifies(
    made: Path, server: str, tmp_path: Path
) -> None:
    pushed = registry.push(made, f"{server}/models/tiny:1")
    again = registry.push(made, f"{server}/models/tiny:2")
    assert (again.digest, again.n_present) == (pushed.digest, again.n_blobs)
    out = registry.pull(pushed.reference, tmp_path / "out")
    assert verify(out).root_sha256 == verify(made).root_sha256
    assert {path.name for path in made.iterdir()} - {path.name for path in out.iterdir()} == {
        "manifest.json"
    }
    with pytest.raises(InputError, match="exists"):
        registry.pull(pushed.reference, out)


def test_skopeo_copies_the_artifact(made: Path, server: str, tmp_path: Path) -> None:
    if not shutil.which("skopeo"):
        pytest.skip("needs skopeo")
    pushed = registry.push(made, f"{server}/models/copied:1")
    argv = ["skopeo", "copy", "--quiet", "--preserve-digests", "--src-tls-verify=false"]
    to = f"oci:{tmp_path / 'layout'}:1"
    subprocess.run([*argv, f"docker://{server}/models/copied:1", to], check=True)
    store = open_store(tmp_path / "layout")
    assert verify(unpack(store, tmp_path / "out")).root_sha256 == verify(made).root_sha256
    listed = json.loads((tmp_path / "layout/index.json").read_bytes())["manifests"]
    assert [it["digest"] for it in listed] == [pushed.digest]
    # It is no image, and the linter says so.
    assert "media-type" in {it.rule for it in lint(tmp_path / "layout").findings}


def test_damaged_weights_are_not_taken(made: Path, server: str, tmp_path: Path) -> None:
    broken = shutil.copytree(made, tmp_path / "broken")
    weights = max(broken.glob("*.gguf"), key=lambda path: path.stat().st_size)
    data = bytearray(weights.read_bytes())
    data[-50] ^= 1
    weights.write_bytes(data)
    with pytest.raises(IntegrityError, match="got other bytes"):
        registry.push(broken, f"{server}/models/broken:1")


@pytest.mark.parametrize("name", ["../evil", "/etc/passwd", "a/b", ".hidden", ""])
def test_names_stay_in_the_folder(name: str, tmp_path: Path) -> None:
    image = Image().write(tmp_path / "image")
    index = json.loads((image / "index.json").read_bytes())
    manifest = image / "blobs/sha256" / index["manifests"][0]["digest"][7:]
    read = json.loads(manifest.read_bytes())
    read["layers"][0] |= {"mediaType": "x.raw", "annotations": {"org.cncf.model.filepath": name}}
    manifest.write_bytes(json.dumps(read).encode())
    with pytest.raises(InputError, match="has the file"):
        unpack(open_store(image), tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"image"}


def test_folder_without_an_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"model\.index\.json"):
        Artifact(tmp_path)
