"""The layers of weights and prefix, on a base without anything in it: nothing is downloaded."""

import json
import tarfile
from pathlib import Path

import pytest

from coldpress import demo
from coldpress.checkpoint import CheckpointOptions, checkpoint
from coldpress.package import Packaged, PackageOptions, package, plan, stage
from coldpress.package.base import Base
from coldpress.package.layer import File
from coldpress.serve import prefix


@pytest.fixture
def empty_base(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COLDPRESS_CACHE", str(tmp_path / "cache"))
    nothing = Base(
        layers=(), env=(), python="/usr/bin/python3", python_version="3.11", glibc="2.36"
    )
    monkeypatch.setattr(stage, "resolve", lambda _base, _work: nothing)
    monkeypatch.setattr(stage.runtime, "entries", lambda _base, **_: [File("opt/runtime", b"")])


def weights(archive: Path, made: Packaged) -> list[tuple[str, list[str]]]:
    """Purpose and file names of every layer that holds a part of the model."""
    found = []
    with tarfile.open(archive) as image:
        for layer in made.layers:
            blob = image.extractfile(f"blobs/{layer.digest.replace(':', '/')}")
            assert blob is not None
            with tarfile.open(fileobj=blob, mode="r:gz") as tar:
                names = [Path(member.name).name for member in tar if member.isfile()]
            if layer.purpose in ("weights", "prefix"):
                found.append((layer.purpose, names))
    return found


@pytest.mark.slow
def test_each_shard_is_a_layer_and_the_prefix_another(
    empty_base: None, demo_checkpoint: Path, tmp_path: Path
) -> None:
    sharded = tmp_path / "sharded"
    checkpoint(demo_checkpoint, sharded, CheckpointOptions(shards=3))
    text = tmp_path / "system.txt"
    text.write_text(demo.HELDOUT_TEXT.read_text(encoding="utf-8")[:700] + "\n", encoding="utf-8")
    bare = PackageOptions(target="lambda")
    spoken = PackageOptions(target="lambda", system_prompt=str(text))
    made = package(sharded, tmp_path / "a", spoken)
    first, second, third = (f"model-0000{number}-of-00003.gguf" for number in (1, 2, 3))
    shards = [
        ("weights", [first, "model.index.json"]),
        ("weights", [second]),
        ("weights", [third]),
    ]
    key_and_state = ("prefix", [prefix.KEY_NAME, prefix.STATE_NAME])
    assert weights(made.archive, made) == [*shards, key_and_state]
    again = package(sharded, tmp_path / "b", spoken)
    assert again.digest == made.digest
    without = package(sharded, tmp_path / "c", bare)
    assert weights(without.archive, without) == shards
    assert {layer.digest for layer in without.layers} <= {layer.digest for layer in made.layers}
    plans = [json.dumps(plan(sharded, tmp_path, each), default=str) for each in (bare, spoken)]
    assert plans[0] != plans[1]
