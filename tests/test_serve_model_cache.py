"""The local cache of remote checkpoints: shared, bounded, and whole whatever happens to who fills it."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from coldpress.errors import UsageError
from coldpress.serve import model_cache
from coldpress.serve.pieces import Contents, File, Piece
from tests import loading
from tests.range_server import State, serving

ROOTS = ["a" * 64, "b" * 64, "c" * 64]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COLDPRESS_CACHE", str(tmp_path / "cache"))
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


def _published() -> None:
    """Wait for the threads that publish what was fetched."""
    for thread in threading.enumerate():
        if thread.name == "publish":
            thread.join()


def _entries(cache: Path) -> list[Path]:
    return sorted(path for path in cache.iterdir() if path.is_dir())


def _of(root: str, size: int) -> Contents:
    return Contents((File("model.gguf", size, (Piece(0, size, None),)),), root)


def _fill(root: str, size: int = 1000) -> None:
    claim = model_cache.claim(_of(root, size))
    assert isinstance(claim, model_cache.Claim)
    claim.publish()


def test_the_second_time_only_the_index_is_fetched(
    served: tuple[str, State], expected: bytes, cache: Path, checkpoint: Path
) -> None:
    address, state = served
    assert loading.logits(address) == expected
    _published()
    (entry,) = _entries(cache)
    assert (entry / "model.gguf").read_bytes() == (checkpoint / "model.gguf").read_bytes()
    state.requests.clear()
    assert loading.logits(address) == expected
    assert [path for path, _ in state.requests] == ["/model.index.json"]


def test_a_partial_entry_is_resumed_and_its_bad_chunks_fetched_again(
    served: tuple[str, State], expected: bytes, cache: Path, checkpoint: Path
) -> None:
    address, state = served
    assert loading.logits(address) == expected
    _published()
    (entry,) = _entries(cache)
    entry.rename(entry.with_name(f"{entry.name}.partial"))
    path = entry.with_name(f"{entry.name}.partial") / "model.gguf"
    with path.open("r+b") as stream:
        stream.seek(path.stat().st_size // 2)
        stream.write(b"\0" * 3)  # as a chunk is whose pages were never written
    state.requests.clear()
    assert loading.logits(address) == expected
    _published()
    assert len([path for path, _ in state.requests if path == "/model.gguf"]) == 1
    assert (entry / "model.gguf").read_bytes() == (checkpoint / "model.gguf").read_bytes()


def test_a_damaged_entry_is_made_anew(
    served: tuple[str, State], expected: bytes, cache: Path
) -> None:
    address, _ = served
    assert loading.logits(address) == expected
    _published()
    (entry,) = _entries(cache)
    os.truncate(entry / "model.gguf", 100)
    assert loading.logits(address) == expected
    _published()
    assert (entry / "model.gguf").stat().st_size > 100


def test_kill_9_while_caching_leaves_nothing_that_is_believed(
    checkpoint: Path, expected: bytes, cache: Path
) -> None:
    half = threading.Event()
    size = (checkpoint / "model.gguf").stat().st_size

    def hold(name: str, start: int) -> None:
        if name == "model.gguf" and start > size // 2 and not half.is_set():
            half.set()
            process.kill()

    with serving(checkpoint, hold=hold) as (address, state):
        process = _ask_in_a_process(address)
        half.wait(60)
        process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL
        assert [path.name[64:] for path in _entries(cache)] == [".partial"]
        state.requests.clear()
        assert loading.logits(address) == expected
        _published()
        fetched = [path for path, _ in state.requests if path == "/model.gguf"]
        assert 0 < len(fetched) < size // loading.CHUNK_BYTES
    assert [path.name[64:] for path in _entries(cache)] == [""]


def test_two_processes_fill_one_entry(checkpoint: Path, expected: bytes, cache: Path) -> None:
    """The second waits for the first, and takes what it has made."""
    arrived = threading.Semaphore(0)

    def hold(name: str, start: int) -> None:
        if name == "model.index.json":
            arrived.release()
        elif start == 0:
            for _ in range(2):  # both want it before anybody has it
                arrived.acquire(timeout=60)
            arrived.release()
            arrived.release()

    with serving(checkpoint, hold=hold) as (address, state):
        processes = [_ask_in_a_process(address) for _ in range(2)]
        outputs = [process.communicate(timeout=120)[0] for process in processes]
        whole = [one for one, asked in state.requests if one == "/model.gguf" and asked]
    assert outputs == [expected.hex()] * 2
    assert len(whole) == len(set(state.requests)) - 1  # every range once
    assert [path.name[64:] for path in _entries(cache)] == [""]


def _ask_in_a_process(address: str) -> "subprocess.Popen[str]":
    code = (
        "import sys, threading\nfrom tests import loading\n"
        "print(loading.logits(sys.argv[1], patience=loading.Patience()).hex(), end='')\n"
        "[t.join() for t in threading.enumerate() if t.name == 'publish']"
    )
    argv = [sys.executable, "-c", code, address]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def test_an_entry_that_another_keeps_locked_is_not_waited_for_for_ever(
    served: tuple[str, State], expected: bytes, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import json

    monkeypatch.setattr(model_cache, "_WAIT_S", 0.1)
    index = served[1].folder / "model.index.json"
    root = json.loads(index.read_bytes())["root_sha256"]
    cache.mkdir(parents=True, mode=0o700)
    lock = model_cache._locked(cache / f"{root}.lock", 0)
    assert lock is not None
    try:
        assert loading.logits(served[0]) == expected
    finally:
        os.close(lock)
    assert _entries(cache) == []


@pytest.mark.skipif(os.getuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_is_done_without(
    served: tuple[str, State],
    expected: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", small], check=True)
    try:
        monkeypatch.setenv("COLDPRESS_CACHE", str(small))
        assert loading.logits(served[0]) == expected
        assert '"tier": "memory"' in capfd.readouterr().err
        assert list((small / "checkpoints").glob("*.partial")) == []
        # Where room cannot be reserved, the disk is found full under way.
        monkeypatch.setattr(os, "posix_fallocate", lambda *_: None)
        assert loading.logits(served[0]) == expected
        assert "the local cache failed: No space left" in capfd.readouterr().err
    finally:
        subprocess.run(["umount", "-l", small], check=True)


def test_a_folder_that_cannot_be_written_is_done_without(
    served: tuple[str, State], expected: bytes, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.parent.mkdir()
    cache.write_text("a file")
    assert loading.logits(served[0]) == expected
    cache.unlink()
    cache.mkdir()
    cache.chmod(0o777)  # anybody could put another model there
    assert loading.logits(served[0]) == expected
    assert _entries(cache) == []
    monkeypatch.setenv("COLDPRESS_CACHE_BYTES", "0")
    assert model_cache.claim(_of(ROOTS[0], 10)) is None


def test_the_least_recently_used_gives_way(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLDPRESS_CACHE_BYTES", "2500")
    for age, root in enumerate(ROOTS[:2]):
        _fill(root)
        os.utime(cache / root, (age, age))
    assert isinstance(model_cache.claim(_of(ROOTS[0], 1000)), model_cache.Hit)  # used now
    _fill(ROOTS[2])
    assert [path.name for path in _entries(cache)] == [ROOTS[0], ROOTS[2]]
    assert model_cache.claim(_of("d" * 64, 2501)) is None
    assert [path.name for path in _entries(cache)] == [ROOTS[0], ROOTS[2]]
    monkeypatch.setenv("COLDPRESS_CACHE_BYTES", "much")
    with pytest.raises(UsageError, match="COLDPRESS_CACHE_BYTES"):
        model_cache.claim(_of(ROOTS[0], 10))


def test_an_entry_being_filled_is_not_evicted(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLDPRESS_CACHE_BYTES", "1500")
    filling = model_cache.claim(_of(ROOTS[0], 1000))
    assert isinstance(filling, model_cache.Claim)
    assert model_cache.claim(_of(ROOTS[1], 1000)) is None
    filling.publish()
    _fill(ROOTS[1])
    assert [path.name for path in _entries(cache)] == [ROOTS[1]]


def test_memory_is_no_place_for_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLDPRESS_CACHE")
    monkeypatch.setattr(model_cache, "_file_system", lambda _path: "tmpfs")
    assert model_cache.folder() is None
    monkeypatch.setattr(model_cache, "_file_system", lambda _path: "ext4")
    assert model_cache.folder() == Path(f"/tmp/coldpress-{os.getuid()}")
    monkeypatch.undo()
    assert model_cache._file_system(Path("/proc/self")) == "proc"
