"""Checkpoints on the command line: shards, parts of a check, the way back, safetensors."""

import json
from pathlib import Path

import pytest

from coldpress import artifact, demo
from tests import tiny_gguf
from tests.test_cli import coldpress, files, refused


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    made = coldpress(
        "checkpoint", tiny_gguf.write(folder / "tiny.gguf"), "-o", folder / "c", "--shards", "3"
    )
    assert made.returncode == 0, made.stderr
    return folder / "c"


def test_shards_are_verified_in_parts_and_inspected(sharded: Path) -> None:
    shards = [f"model-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    assert files(sharded) == ["manifest.json", *shards, "model.index.json"]
    parts = ["--chunk", "0", "--chunk", "0-1", "--tensor", "output.weight", "--threads", "1"]
    verified = json.loads(coldpress("verify", sharded, *parts, "--json").stdout)
    assert (verified["n_files"], verified["n_checked"]) == (3, 2)
    refused(coldpress("verify", sharded, "--chunk", "two"), 2, "'two' is not a chunk")
    refused(coldpress("verify", sharded, "--chunk", "2"), 2, "there is no chunk 2")
    inspected = coldpress("inspect", sharded).stdout
    assert verified["root_sha256"] in inspected and shards[2] in inspected
    layout = json.loads(coldpress("inspect", sharded, "--json").stdout)["layout"]
    assert (layout["alignment"], layout["files"]) == (4096, shards)


def test_shards_by_size_and_the_way_back(sharded: Path, tmp_path: Path) -> None:
    one = coldpress("checkpoint", sharded, "-o", tmp_path / "one", "--json")
    assert json.loads(one.stdout)["n_files"] == 1
    many = coldpress(
        "checkpoint", sharded, "-o", tmp_path / "many", "--shard-size", "64KiB", "--json"
    )
    assert json.loads(many.stdout)["n_files"] > 4
    for source in (tmp_path / "one", tmp_path / "many"):
        back = coldpress("checkpoint", source, "-o", tmp_path / "plain", "--plain")
        assert back.returncode == 0, back.stderr
        assert files(tmp_path / "plain") == ["manifest.json", "model.gguf"]
    refused(coldpress("verify", tmp_path / "plain"), 5, "plain GGUF")
    both = ("checkpoint", sharded, "-o", tmp_path / "x", "--plain", "--shards", "2")
    refused(coldpress(*both), 2, "one file")
    refused(coldpress("checkpoint", sharded, "-o", tmp_path / "x", "--shards", "99"), 2, "divided")
    assert not (tmp_path / "x").exists()


def test_safetensors_are_indexed_and_verified(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(
        (demo.MODEL_DIR / "model.safetensors").read_bytes()
    )
    before = artifact.sha256_file(tmp_path / "model.safetensors")
    indexed = json.loads(coldpress("index", tmp_path, "--json").stdout)
    assert artifact.sha256_file(tmp_path / "model.safetensors") == before
    verified = json.loads(coldpress("verify", tmp_path, "--json").stdout)
    assert verified["root_sha256"] == indexed["root_sha256"]
    raw = bytearray((tmp_path / "model.safetensors").read_bytes())
    raw[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(raw)
    refused(coldpress("verify", tmp_path), 15, r"chunk \d+ of \d+: bytes .* differ")
    (tmp_path / "empty").mkdir()
    refused(coldpress("index", tmp_path / "empty"), 5, "no safetensors files")


def test_a_system_prompt_that_is_no_text(tmp_path: Path, demo_checkpoint: Path) -> None:
    (tmp_path / "prompt.txt").write_bytes(b"\xff\xfe")
    asked = ("package", demo_checkpoint, "-o", tmp_path / "out", "--target", "lambda")
    refused(coldpress(*asked, "--system-prompt", tmp_path / "prompt.txt"), 5, "not UTF-8")
    refused(coldpress(*asked, "--system-prompt", tmp_path / "absent"), 5, "absent")
    assert not (tmp_path / "out").exists()
