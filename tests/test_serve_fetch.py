"""A checkpoint fetched from a server that does everything a server can do wrong."""

import json
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from coldpress.errors import ColdpressError, InputError, IntegrityError, RemoteError, TooLargeError
from coldpress.serve.load import loader
from coldpress.serve.load.fetch import Tuner
from coldpress.serve.trace import Trace
from tests import loading
from tests.range_server import Fault, Speed, State, serving
from tests.runtime_process import running

Served = tuple[str, State]
FOREVER = 10_000


@pytest.fixture(autouse=True)
def _no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLDPRESS_CACHE_BYTES", "0")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return loading.made(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def expected(checkpoint: Path) -> bytes:
    return loading.logits(checkpoint.parent / "plain.gguf", tier="plain")


@pytest.fixture
def served(checkpoint: Path) -> Iterator[Served]:
    with serving(checkpoint) as server:
        yield server


def test_a_folder_a_file_and_a_plain_file_load_alike(
    served: Served, expected: bytes, checkpoint: Path, tmp_path: Path
) -> None:
    address, _ = served
    assert loading.logits(address) == expected
    assert loading.logits(f"{address}/") == expected
    assert loading.logits(f"{address}/deep/model.gguf?signature=secret") == expected
    for source in (checkpoint / "model.gguf", checkpoint.parent / "plain.gguf"):
        (tmp_path / "lone.gguf").write_bytes(source.read_bytes())
        with serving(tmp_path) as (lone, _):
            assert loading.logits(f"{lone}/lone.gguf") == expected


def test_shards_are_fetched_side_by_side(tmp_path: Path, expected: bytes) -> None:
    folder = loading.made(tmp_path, shards=3)
    assert len(list(folder.glob("model-*-of-00003.gguf"))) == 3
    with serving(folder) as (address, _):
        assert loading.logits(address) == expected
    assert loading.logits(folder) == expected
    assert loading.logits(folder, tier="memory", verify=True) == expected
    next(folder.glob("model-00002-*")).unlink()
    with serving(folder) as (address, _), pytest.raises(RemoteError, match=r"00002-.*not exist"):
        loading.logits(address)
    with pytest.raises(InputError, match="00002"):
        loading.logits(folder)


@pytest.mark.parametrize(
    "kind",
    [
        "flip",
        "drop",
        "stall",
        "drip",
        "whole",
        "shifted",
        "long",
        "short",
        "gzip",
        "garbage",
        "503",
    ],
)
def test_a_passing_fault_is_survived(served: Served, expected: bytes, kind: str) -> None:
    address, state = served
    # One range may meet both, and is tried three times.
    state.faults = [Fault(kind, after=after) for after in (0, 7)]
    assert loading.logits(address) == expected
    assert all(fault.seen > fault.after for fault in state.faults)


@pytest.mark.parametrize(
    ("kind", "error", "words"),
    [
        ("flip", IntegrityError, "are damaged, 3 times|are not the header"),
        ("drop", RemoteError, "broke off"),
        ("stall", RemoteError, "sent nothing for too long"),
        ("drip", RemoteError, "bytes per second"),
        ("whole", RemoteError, "answers 200 with the whole object"),
        ("shifted", RemoteError, "to a request for"),
        ("long", RemoteError, "announces"),
        ("short", RemoteError, "announces"),
        ("gzip", RemoteError, "gzip"),
        ("garbage", RemoteError, "BadStatusLine"),
        ("changed", IntegrityError, "replaced while it was fetched"),
        ("resized", IntegrityError, "were expected"),
        ("500", RemoteError, "answers 500"),
        ("403", RemoteError, "forbidden"),
        ("404", RemoteError, "does not exist"),
        ("410", RemoteError, "does not exist"),
        ("416", IntegrityError, "shorter than its index says"),
        ("418", RemoteError, "answers 418"),
    ],
)
def test_a_lasting_fault_is_named(
    served: Served, kind: str, error: type[ColdpressError], words: str
) -> None:
    address, state = served
    state.faults = [Fault(kind, times=FOREVER, after=4)]
    with pytest.raises(error, match=words) as caught:
        loading.logits(address, patience=replace(loading.HASTY, deadline_s=3))
    assert "model.gguf" in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("seed", range(12))
def test_whatever_goes_wrong_no_bit_is(served: Served, expected: bytes, seed: int) -> None:
    address, state = served
    draw = random.Random(seed)
    kinds = [
        "flip",
        "drop",
        "whole",
        "shifted",
        "long",
        "short",
        "gzip",
        "garbage",
        "503",
        "changed",
    ]
    state.faults = [
        Fault(
            draw.choice(kinds),
            name=draw.choice(["model.gguf"] * 4 + ["model.index.json"]),
            times=draw.choice([1, 1, 2, 5, 40]),
            after=draw.randrange(30),
        )
        for _ in range(draw.randrange(1, 8))
    ]
    try:
        assert loading.logits(address) == expected
    except (RemoteError, IntegrityError) as error:
        assert ".gguf" in error.message or ".json" in error.message


def test_an_object_that_is_replaced_is_noticed(checkpoint: Path, tmp_path: Path) -> None:
    data = (checkpoint / "model.gguf").read_bytes()
    (tmp_path / "model.index.json").write_bytes((checkpoint / "model.index.json").read_bytes())
    (tmp_path / "model.gguf").write_bytes(data)

    once = threading.Lock()

    def swap(name: str, start: int) -> None:
        if name == "model.gguf" and start > len(data) // 2 and once.acquire(blocking=False):
            (tmp_path / "new").write_bytes(data[::-1])
            (tmp_path / "new").rename(tmp_path / "model.gguf")

    with (
        serving(tmp_path, hold=swap) as (address, _),
        pytest.raises(IntegrityError, match="replaced while it was fetched"),
    ):
        loading.logits(address)


def test_an_index_of_another_model_is_named(checkpoint: Path, tmp_path: Path) -> None:
    from tests import tiny_gguf

    other = tiny_gguf.write(tmp_path / "other.gguf", context=4096)
    (tmp_path / "served").mkdir()
    served = tmp_path / "served"
    from coldpress import checkpoint as stage

    made = tmp_path / "made"
    stage.checkpoint(other, made, stage.CheckpointOptions(chunk_bytes=loading.CHUNK_BYTES))
    (served / "model.gguf").write_bytes((checkpoint / "model.gguf").read_bytes())
    (served / "model.index.json").write_bytes((made / "model.index.json").read_bytes())
    with (
        serving(served) as (address, _),
        pytest.raises(IntegrityError, match="not the header"),
    ):
        loading.logits(address)


@pytest.mark.parametrize("cut", [1, 5000, 200_000])
def test_a_truncated_object_is_named(checkpoint: Path, tmp_path: Path, cut: int) -> None:
    for path in checkpoint.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "model.gguf").write_bytes((checkpoint / "model.gguf").read_bytes()[:-cut])
    with serving(tmp_path) as (address, _), pytest.raises(IntegrityError, match="were expected"):
        loading.logits(address)
    (tmp_path / "model.index.json").unlink()
    with serving(tmp_path) as (address, _), pytest.raises(IntegrityError, match="its header says"):
        loading.logits(f"{address}/model.gguf")


def test_an_index_that_cannot_be_one_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    index = json.loads((checkpoint / "model.index.json").read_bytes())
    (tmp_path / "model.gguf").write_bytes((checkpoint / "model.gguf").read_bytes())
    escaping = json.dumps({**index, "files": [{**index["files"][0], "name": "../x.gguf"}]})
    for wrong in ("{}", "[]", "not json", "[" * 100_000, escaping):
        (tmp_path / "model.index.json").write_text(wrong)
        with serving(tmp_path) as (address, _), pytest.raises(IntegrityError, match="damaged"):
            loading.logits(address)


@pytest.mark.parametrize("kind", ["drop", "stall", "drip", "garbage", "503", "gzip"])
def test_an_index_is_asked_for_again(served: Served, expected: bytes, kind: str) -> None:
    address, state = served
    state.faults = [Fault(kind, name="model.index.json")]
    assert loading.logits(address) == expected
    state.faults = [Fault(kind, name="model.index.json", times=FOREVER)]
    with pytest.raises(RemoteError, match=r"model\.index\.json failed 3 times"):
        loading.logits(address)


def test_no_memory_is_named(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_file: int, _data: bytes, _position: int) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("coldpress.serve.load.fetch.os.pwrite", full)
    with pytest.raises(TooLargeError, match="does not fit into memory: No space left"):
        loading.logits(served[0])


def test_an_endless_index_is_not_read(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, served: Served
) -> None:
    monkeypatch.setattr("coldpress.serve.load.contents.MAX_INDEX_BYTES", 100)
    with pytest.raises(RemoteError, match="more than 100 bytes"):
        loading.logits(served[0])


def test_mapping_and_context_need_no_weights(
    checkpoint: Path, expected: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No byte of the data section leaves the server before the context exists."""
    monkeypatch.setattr(loader, "_MAP_AT", 0)
    mapped = threading.Event()
    early: list[bool] = []

    class Watched(Trace):
        def put(self, name: str, began_s: float, ended_s: float) -> None:
            super().put(name, began_s, ended_s)
            if name == "context":
                mapped.set()

    def hold(name: str, start: int) -> None:
        if name == "model.gguf" and start > 0:
            early.append(not mapped.is_set())
            assert mapped.wait(30)

    patient = loading.Patience(stall_s=30)
    with serving(checkpoint, hold=hold) as (address, _):
        assert loading.logits(address, trace=Watched(), patience=patient) == expected
    assert any(early)


def test_one_connection_serves_many_ranges(served: Served, expected: bytes) -> None:
    address, state = served
    assert loading.logits(address) == expected
    # One for the index, and one for each of the threads.
    assert state.connections <= 9 < len(state.requests)


def test_a_token_is_sent_and_never_said(
    served: Served,
    expected: bytes,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    address, state = served
    state.token = "s3cret"
    with pytest.raises(RemoteError, match="forbidden") as caught:
        loading.logits(f"{address}/model.gguf?sig=hidden")
    assert "hidden" not in caught.value.message + caught.value.hint
    monkeypatch.setenv("COLDPRESS_FETCH_TOKEN", "s3cret")
    assert loading.logits(f"{address}/model.gguf?sig=hidden") == expected
    assert all(path.endswith("?sig=hidden") for path, _ in state.requests)
    said = capfd.readouterr()
    assert "s3cret" not in said.err + said.out
    assert "hidden" not in said.err + said.out


def test_https_is_checked(
    checkpoint: Path, expected: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = tmp_path / "pair.pem"
    argv = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=test",
    ]
    argv += [
        "-addext",
        "subjectAltName=IP:127.0.0.1",
        "-keyout",
        str(pair),
        "-out",
        str(tmp_path / "c"),
    ]
    subprocess.run(argv, check=True, capture_output=True)
    pair.write_bytes(pair.read_bytes() + (tmp_path / "c").read_bytes())
    with serving(checkpoint, certificate=pair) as (address, state):
        with pytest.raises(RemoteError, match="CERTIFICATE_VERIFY_FAILED"):
            loading.logits(address)
        assert state.requests == []
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "c"))
        monkeypatch.setenv("COLDPRESS_FETCH_TOKEN", "s3cret")
        state.token = "s3cret"
        assert loading.logits(address) == expected


def test_redirects_keep_scheme_and_token(
    served: Served, expected: bytes, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, state = served
    monkeypatch.setenv("COLDPRESS_FETCH_TOKEN", "s3cret")
    with serving(checkpoint) as (other, seen):
        state.faults = [Fault("307", location=f"{other}/model.gguf", times=FOREVER)]
        seen.token = "none is sent to another host"
        with pytest.raises(RemoteError, match="forbidden"):
            loading.logits(address)
        seen.token = None
        assert loading.logits(address) == expected
    state.faults = [Fault("302", location="https://127.0.0.1/x", times=FOREVER)]
    with pytest.raises(InputError, match="from http to https"):
        loading.logits(address)
    state.faults = [Fault("302", location="/model.gguf", times=FOREVER)]
    with pytest.raises(RemoteError, match="circles"):
        loading.logits(address)


def test_no_server_at_all_is_named() -> None:
    with pytest.raises(RemoteError, match="ConnectionRefused"):
        loading.logits("http://127.0.0.1:9/model")


def test_more_requests_are_made_while_that_is_faster() -> None:
    tuner = Tuner(first=8, most=32)
    now_s = 0.0
    for _ in range(200):  # 70 per stream, 600 in all
        tuner.note(int(min(70 * tuner.allowed, 600) * 0.05), now_s)
        now_s += 0.05
    assert tuner.allowed == 16
    alone = Tuner(first=8, most=32)
    for step in range(200):  # one stream takes all there is
        alone.note(1000, step * 0.05)
    assert alone.allowed == 8


def test_a_runtime_that_still_fetches_stops_when_told(checkpoint: Path) -> None:
    asked = threading.Event()
    ended = threading.Event()

    def hold(name: str, start: int) -> None:
        if name == "model.gguf" and start > 0:
            asked.set()
            ended.wait(60)

    with (
        serving(checkpoint, hold=hold) as (address, _),
        running(address, "--port", "0") as runtime,
    ):
        runtime.event("listening")
        assert asked.wait(60)
        assert runtime.stop() == 0
        ended.set()


def test_a_runtime_serves_from_an_address_and_says_how(checkpoint: Path) -> None:
    with (
        serving(checkpoint) as (address, _),
        running(f"{address}/?sig=hidden", "--port", "0") as runtime,
    ):
        port = runtime.event("listening")["port"]
        while _status(port) == 503:
            pass
        assert _status(port) == 200
    (said,) = [json.loads(line) for line in runtime.lines if '"loader"' in line]
    assert (said["tier"], said["verified"]) == ("memory", True)
    assert "hidden" not in "".join(runtime.lines)
    with running("http://127.0.0.1:9/x", "--port", "0") as runtime:
        assert runtime.wait() == 19
    assert any("ConnectionRefused" in line for line in runtime.lines)


def _status(port: int) -> int:
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", "/readyz")
    status = connection.getresponse().status
    connection.close()
    return status


def test_a_slow_server_is_read_in_parallel(checkpoint: Path, expected: bytes) -> None:
    together = threading.Barrier(4)

    def hold(name: str, start: int) -> None:
        if name == "model.gguf" and start > 0 and together.n_waiting < 4 and not together.broken:
            try:
                together.wait(5)
            except threading.BrokenBarrierError:
                return
            together.abort()

    with serving(checkpoint, speed=Speed(latency_s=0.005), hold=hold) as (address, _):
        assert loading.logits(address, patience=loading.Patience()) == expected
    assert together.broken


def test_http_client_is_not_imported_for_a_local_file() -> None:
    code = (
        "import sys, coldpress.serve.engine as e;"
        "heavy = {'http.client', 'ssl', 'coldpress.checkpoint', 'numpy', 'torch', 'typer'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
