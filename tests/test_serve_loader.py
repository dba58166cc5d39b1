"""Local checkpoints through every tier: equal bits, the choice that is made, what happens when it fails."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from coldpress import libllama
from coldpress.errors import CorruptModelError, InputError, IntegrityError
from coldpress.evaluate import page_cache
from coldpress.serve import loader, prefetch
from coldpress.serve.file_source import FileSource
from coldpress.serve.place import locate
from tests import loading, tiny_gguf

WAYS: list[dict[str, Any]] = [
    {"tier": tier, "verify": verify}
    for tier in ("auto", "plain", "page-cache", "memory")
    for verify in (False, True)
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return loading.made(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def expected(checkpoint: Path) -> bytes:
    return loading.logits(checkpoint.parent / "plain.gguf", tier="plain")


def _said(capfd: pytest.CaptureFixture[str]) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(capfd.readouterr().err.splitlines()[-1])
    return said


@pytest.mark.parametrize("way", WAYS)
def test_logits_are_equal_through_every_tier(
    checkpoint: Path, expected: bytes, way: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    assert loading.logits(checkpoint, **way) == expected
    said = _said(capfd)
    assert said["verified"] == (way["verify"] or way["tier"] == "memory")
    if way["tier"] != "auto":
        assert (said["tier"], said["why"]) == (way["tier"], "asked for")


def test_stock_llama_cpp_agrees(checkpoint: Path, expected: bytes) -> None:
    import llama_cpp
    import numpy as np

    libllama.load()
    peer = llama_cpp.Llama(
        str(checkpoint / "model.gguf"), n_ctx=64, n_threads=1, verbose=False, logits_all=True
    )
    peer.eval(list(range(3, 40)))
    logits = peer.scores[36].astype(np.float32)
    peer.close()
    # Its context is another one (flash attention), so the last bits may differ; the file's may not.
    np.testing.assert_allclose(logits, np.frombuffer(expected, np.float32), atol=2e-2)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "gemma2", "mixtral"])
def test_no_family_reads_weights_before_they_are_there(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing arrives before the context is made; the logits are the same."""
    import threading

    from coldpress import checkpoint as stage
    from coldpress.convert import ConvertOptions, convert
    from coldpress.serve.trace import Trace
    from tests import tiny_models
    from tests.range_server import serving

    monkeypatch.setenv("COLDPRESS_CACHE_BYTES", "0")
    model = tmp_path / "model"
    model.mkdir()
    more = {"num_local_experts": 4} if family == "mixtral" else {}
    tiny_models.save(model, family, head_dim=32, **more)
    tiny_models.sentencepiece(model)
    convert(model, tmp_path / "gguf", ConvertOptions(verify=False))
    stage.checkpoint(tmp_path / "gguf", tmp_path / "made")
    monkeypatch.setattr(loader, "_MAP_AT", 0)
    ready = threading.Event()

    class Watched(Trace):
        def put(self, name: str, began_s: float, ended_s: float) -> None:
            super().put(name, began_s, ended_s)
            if name == "context":
                ready.set()

    def hold(name: str, start: int) -> None:
        assert name != "model.gguf" or start == 0 or ready.wait(60)

    with serving(tmp_path / "made", hold=hold) as (address, _):
        late = loading.logits(address, trace=Watched(), patience=loading.Patience(stall_s=60))
    assert late == loading.logits(tmp_path / "gguf" / "model.gguf", tier="plain")


def test_a_cached_file_is_left_to_llama_cpp_and_a_cold_one_read_ahead(
    checkpoint: Path, expected: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    path = checkpoint / "model.gguf"
    path.read_bytes()
    assert loading.logits(checkpoint) == expected
    assert _said(capfd)["tier"] == "plain"
    if page_cache.drop(path) > 0.01:
        pytest.skip("this file system keeps its pages")
    assert not prefetch.is_cached([path])
    assert loading.logits(checkpoint) == expected
    assert _said(capfd)["tier"] == "page-cache"


def test_a_device_that_answers_late_is_proven_while_it_is_waited_for(
    checkpoint: Path,
    expected: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(loader, "is_cached", lambda _paths: False)
    for answer_s, verified in ((0.01, True), (0.0001, False)):
        monkeypatch.setattr(loader, "latency_s", lambda _path, answer_s=answer_s: answer_s)
        assert loading.logits(checkpoint) == expected
        said = _said(capfd)
        assert (said["tier"], said["verified"]) == ("page-cache", verified)
    monkeypatch.setattr(loader, "latency_s", lambda _path: 0.01)
    (tmp_path / "model.gguf").write_bytes((checkpoint / "model.gguf").read_bytes())
    assert loading.logits(tmp_path) == expected  # there is no index to prove it by
    assert _said(capfd)["verified"] is False


def test_a_devices_answer_is_timed(checkpoint: Path) -> None:
    assert 0 < prefetch.latency_s(checkpoint / "model.gguf") < 10


@pytest.mark.parametrize("known", [True, False])
def test_prefetch_brings_in_the_whole_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom((20 << 20) + 5))
    if page_cache.drop(path) > 0.01:
        pytest.skip("this file system keeps its pages")
    if not known:
        monkeypatch.setattr(prefetch, "_step", lambda _file: 0)
    ahead = prefetch.Prefetch([path])
    ahead._thread.join()
    if ahead.reading is not None:
        ahead.reading.wait()
    assert (ahead.reading is None) == known
    ahead.close()
    path.read_bytes()[:0]  # what was only asked for arrives by now
    assert page_cache.cached_share(path) == 1


@pytest.mark.parametrize("tier", ["plain", "page-cache", "memory"])
@pytest.mark.parametrize("place", ["header", "data", "end"])
def test_a_flipped_byte_is_found_when_asked_for(
    checkpoint: Path, tmp_path: Path, tier: str, place: str
) -> None:
    for path in checkpoint.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    path = tmp_path / "model.gguf"
    data = bytearray(path.read_bytes())
    data[{"header": 200, "data": len(data) // 2, "end": -1}[place]] ^= 4
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match=r"model\.gguf: bytes \d+-\d+ are"):
        loading.logits(tmp_path, tier=tier, verify=True)


def test_memory_falls_back_to_the_page_cache(
    checkpoint: Path,
    expected: bytes,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def fails(self: FileSource, start: int, end: int) -> Any:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(FileSource, "stream", fails)
        assert loading.logits(checkpoint, tier="memory") == expected
    said = _said(capfd)
    assert said["tier"] == "page-cache"
    assert "Input/output error" in said["why"]
    monkeypatch.setattr(os, "memfd_create", lambda _name: (_ for _ in ()).throw(OSError(38, "no")))
    assert loading.logits(checkpoint, tier="memory") == expected
    assert _said(capfd)["tier"] == "memory"


def test_where_a_device_copies_weights_the_model_is_loaded_again(
    checkpoint: Path, expected: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert libllama.maps_only()
    monkeypatch.setattr(libllama, "maps_only", lambda: False)
    loaded = []
    load = loader.load

    def counting(*arguments: Any) -> Any:
        loaded.append(arguments)
        return load(*arguments)

    monkeypatch.setattr(loader, "load", counting)
    assert loading.logits(checkpoint, tier="memory") == expected
    assert len(loaded) == 2


def test_a_plain_gguf_loads_by_every_tier_but_cannot_be_verified(
    checkpoint: Path, expected: bytes
) -> None:
    lone = checkpoint.parent / "plain.gguf"
    for tier in ("auto", "page-cache", "memory"):
        assert loading.logits(lone, tier=tier) == expected
    with pytest.raises(InputError, match="cannot be verified"):
        loading.logits(lone, verify=True)


def test_what_llama_cpp_cannot_load_is_named(tmp_path: Path) -> None:
    path = tiny_gguf.write(tmp_path / "whole.gguf")
    (tmp_path / "model.gguf").write_bytes(path.read_bytes()[:-4000])
    for tier in ("auto", "page-cache", "memory"):
        with pytest.raises(CorruptModelError, match=r"model\.gguf"):
            loading.logits(tmp_path / "model.gguf", tier=tier)


def test_what_is_no_checkpoint_is_refused(tmp_path: Path, checkpoint: Path) -> None:
    with pytest.raises(InputError):
        locate(tmp_path)
    (tmp_path / "model.gguf").write_bytes(b"PK\3\4")
    with pytest.raises(InputError, match="not a GGUF"):
        locate(tmp_path)
    (tmp_path / "model.gguf").write_bytes((checkpoint / "model.gguf").read_bytes())
    for index, words in (
        ('{"files": [{"name": "model.gguf", "size_bytes": 3}]}', "its index says 3"),
        ('{"files": []}', "does not list"),
        ("{}", "is not an index"),
    ):
        (tmp_path / "model.index.json").write_text(index)
        with pytest.raises(IntegrityError, match=words):
            locate(tmp_path)
    with pytest.raises(InputError, match="one of 99999 shards"):
        locate(_named(tmp_path, "x-00001-of-99999.gguf"))


def _named(folder: Path, name: str) -> Path:
    (folder / name).write_bytes(b"GGUF")
    return folder / name
