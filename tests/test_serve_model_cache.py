"""The local cache of remote checkpoints: shared, bounded, and whole whatever happens to who fills it."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from coldpress.errors import UsageError
from coldpress.serve.load import model_cache
from coldpress.serve.load.pieces import Contents, File, Piece
from tests import loading
from tests.range_server import State, serving

ROOTS = ["a" * 64, "b" * 64, "c" * 64]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COLDPRESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(model_cache, "_AFTER_S", 0)
    return tmp_path / "cache" / "checkpoints"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return loading.made(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def expected(checkpoint: Path) -> bytes:
    return loading.logits(checkpoint.parent / "plain.gguf", tier="plain")


@pytest.fixture
def served(checkpoint: Path) -> Iterator[tuple[str, State]]:
    with serving(checkpoint) as server:
        yield server


def _kept() -> None:
    """Wait for the threads that copy what was fetched."""
    for thread in threading.enumerate():
        if thread.name == "keep":
            thread.join()


def _entries(cache: Path) -> list[str]:
    """Entries, each as the start of its name and its suffix."""
    return sorted(path.name[:1] + path.name[64:] for path in cache.iterdir() if path.is_dir())


def _of(root: str, size: int = 1000) -> Contents:
    return Contents((File("model.gguf", size, (Piece(0, size, None),)),), root)


def _fill(root: str, size: int = 1000) -> bool:
    source = os.memfd_create("source")
    os.ftruncate(source, size)
    try:
        return model_cache.keep(_of(root, size), [source])
    finally:
        os.close(source)


def _root(checkpoint: Path) -> str:
    root: str = json.loads((checkpoint / "model.index.json").read_bytes())["root_sha256"]
    return root


def test_the_second_time_only_the_index_is_fetched(
    served: tuple[str, State],
    expected: bytes,
    cache: Path,
    checkpoint: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    address, state = served
    assert loading.logits(address) == expected
    _kept()
    kept = cache / _root(checkpoint) / "model.gguf"
    assert kept.read_bytes() == (checkpoint / "model.gguf").read_bytes()
    state.requests.clear()
    assert loading.logits(address) == expected
    assert [path for path, _ in state.requests] == ["/model.index.json"]
    assert '"why": "the local cache has it"' in capfd.readouterr().err


def test_a_model_of_shards_is_kept_too(tmp_path: Path, expected: bytes) -> None:
    with serving(loading.made(tmp_path, shards=3)) as (address, state):
        assert loading.logits(address) == expected
        _kept()
        state.requests.clear()
        assert loading.logits(address) == expected
        assert [path for path, _ in state.requests] == ["/model.index.json"]


def test_a_damaged_entry_is_made_anew(
    served: tuple[str, State], expected: bytes, cache: Path, checkpoint: Path
) -> None:
    kept = cache / _root(checkpoint) / "model.gguf"
    kept.parent.mkdir(parents=True)
    cache.chmod(0o700)
    kept.write_bytes(b"too short")
    for _ in range(2):
        assert loading.logits(served[0]) == expected
        _kept()
        assert kept.read_bytes() == (checkpoint / "model.gguf").read_bytes()


def test_kill_9_while_copying_leaves_nothing_that_is_believed(
    served: tuple[str, State], expected: bytes, cache: Path, checkpoint: Path
) -> None:
    code = (
        "import os, sys, threading\nfrom coldpress.serve.load import model_cache\n"
        "from tests import loading\n"
        "model_cache._AFTER_S, copy = 0, model_cache._copy\n"
        "def half(source, sink, size):\n"
        "    copy(source, sink, size // 2)\n    os.kill(os.getpid(), 9)\n"
        "model_cache._copy = half\nloading.logits(sys.argv[1])\n"
        "[t.join() for t in threading.enumerate() if t.name == 'keep']"
    )
    argv = [sys.executable, "-c", code, served[0]]
    killed = subprocess.run(argv, capture_output=True, timeout=60, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert _entries(cache) == [f"{_root(checkpoint)[0]}.partial"]
    assert model_cache.find(_of(_root(checkpoint))) is None
    assert loading.logits(served[0]) == expected
    _kept()
    assert _entries(cache) == [_root(checkpoint)[0]]
    kept = cache / _root(checkpoint) / "model.gguf"
    assert kept.read_bytes() == (checkpoint / "model.gguf").read_bytes()


def test_two_processes_fill_one_entry(checkpoint: Path, expected: bytes, cache: Path) -> None:
    both = threading.Barrier(2)

    def hold(name: str, start: int) -> None:
        if name == "model.index.json":
            both.wait(60)  # neither can find what the other keeps

    code = (
        "import sys, threading\nfrom coldpress.serve.load import model_cache\nfrom tests import loading\n"
        "model_cache._AFTER_S = 0\n"
        "print(loading.logits(sys.argv[1], patience=loading.Patience()).hex(), end='')\n"
        "[t.join() for t in threading.enumerate() if t.name == 'keep']"
    )
    with serving(checkpoint, hold=hold) as (address, _):
        argv = [sys.executable, "-c", code, address]
        processes = [
            subprocess.Popen(argv, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            for _ in range(2)
        ]
        outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert outputs == [expected.hex()] * 2
    assert _entries(cache) == [_root(checkpoint)[0]]
    kept = cache / _root(checkpoint) / "model.gguf"
    assert kept.read_bytes() == (checkpoint / "model.gguf").read_bytes()


def test_only_one_copies(cache: Path) -> None:
    assert _fill(ROOTS[0])
    assert not _fill(ROOTS[0])  # it is there
    lock = model_cache._locked(cache / f"{ROOTS[1]}.lock")
    assert lock is not None
    assert not _fill(ROOTS[1])  # somebody is at it
    os.close(lock)
    assert _fill(ROOTS[1])


@pytest.mark.skipif(os.getuid() != 0, reason="mounting a small file system needs root")
@pytest.mark.parametrize("reserved", [True, False])
def test_a_full_disk_is_done_without(
    served: tuple[str, State],
    expected: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    reserved: bool,
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", small], check=True)
    try:
        monkeypatch.setenv("COLDPRESS_CACHE", str(small))
        if not reserved:
            monkeypatch.setattr(os, "posix_fallocate", lambda *_: None)
        assert loading.logits(served[0]) == expected
        _kept()
        assert _entries(small / "checkpoints") == []
        with pytest.raises(OSError, match="No space"):
            _fill(ROOTS[0], 1 << 20)
    finally:
        subprocess.run(["umount", "-l", small], check=True)


def test_a_folder_that_cannot_be_written_is_done_without(
    served: tuple[str, State], expected: bytes, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.parent.mkdir()
    cache.write_text("a file")
    assert loading.logits(served[0]) == expected
    _kept()
    cache.unlink()
    cache.mkdir()
    cache.chmod(0o777)  # anybody could put another model there
    assert loading.logits(served[0]) == expected
    _kept()
    assert _entries(cache) == []
    cache.chmod(0o700)
    assert _fill(ROOTS[0])
    monkeypatch.setenv("COLDPRESS_CACHE_BYTES", "0")
    assert not _fill(ROOTS[1])
    assert model_cache.find(_of(ROOTS[0])) is None


def test_the_least_recently_used_gives_way(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLDPRESS_CACHE_BYTES", "2500")
    for age, root in enumerate(ROOTS[:2]):
        assert _fill(root)
        os.utime(cache / root, (age, age))
    assert model_cache.find(_of(ROOTS[0])) == (cache / ROOTS[0] / "model.gguf",)  # used now
    assert _fill(ROOTS[2])
    assert _entries(cache) == ["a", "c"]
    assert not _fill("d" * 64, 2501)
    assert _entries(cache) == ["a", "c"]
    monkeypatch.setenv("COLDPRESS_CACHE_BYTES", "much")
    with pytest.raises(UsageError, match="COLDPRESS_CACHE_BYTES"):
        _fill("d" * 64)


def test_an_entry_being_filled_is_not_removed(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLDPRESS_CACHE_BYTES", "1500")
    assert _fill(ROOTS[0])
    lock = model_cache._locked(cache / f"{ROOTS[0]}.lock")
    assert lock is not None
    with pytest.raises(OSError, match="in use up to its limit"):
        _fill(ROOTS[1])
    os.close(lock)
    assert _fill(ROOTS[1])
    assert _entries(cache) == ["b"]


def test_memory_is_no_place_for_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLDPRESS_CACHE")
    assert model_cache._file_system(Path("/proc/self")) == "proc"
    monkeypatch.setattr(model_cache, "_file_system", lambda _path: "tmpfs")
    assert model_cache.folder() is None
    monkeypatch.setattr(model_cache, "_file_system", lambda _path: "ext4")
    assert model_cache.folder() == Path(f"/tmp/coldpress-{os.getuid()}")
