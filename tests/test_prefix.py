"""The shipped system prompt: the same bits as reading it again, or it is not used."""

import hashlib
import json
import queue
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coldpress import demo, inspect, libllama
from coldpress.checkpoint import CheckpointOptions, checkpoint, verify
from coldpress.errors import InputError, IntegrityError, UnsupportedModelError
from coldpress.package import prefix as build
from coldpress.package import prefix_state
from coldpress.serve import prefix
from coldpress.serve.api import template
from coldpress.serve.api.reply import Reply
from coldpress.serve.engine import Engine
from coldpress.serve.generation import Delta, Event, Generation
from coldpress.serve.load.mapping import load
from coldpress.serve.model import CHUNK_TOKENS, Context, Model
from coldpress.serve.options import EngineOptions
from coldpress.serve.sampling import GenerateOptions
from coldpress.serve.trace import Trace
from tests import tiny_gguf
from tests.engines import quantized

SYSTEM = demo.HELDOUT_TEXT.read_text(encoding="utf-8")[:1350]
ASKED = ["", "a", "the sea of " * 30, "x" * 95, "日本 " * 20]
NO_SAMPLER: Any = None


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory, demo_gguf: Path) -> Path:
    """A checkpoint without a prefix, at Q4_K_M: its kernels round few rows otherwise than many."""
    folder = tmp_path_factory.mktemp("prefix")
    plain = quantized(demo_gguf, folder / "plain.gguf", 15)
    checkpoint(plain, folder / "checkpoint", CheckpointOptions())
    return folder / "checkpoint"


@pytest.fixture(scope="module")
def shipped(bare: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = shutil.copytree(bare, tmp_path_factory.mktemp("shipped") / "checkpoint")
    made = build.build(folder / "model.gguf", SYSTEM, folder)
    assert made.n_tokens > 2 * CHUNK_TOKENS
    return folder


@pytest.fixture
def copy(shipped: Path, tmp_path: Path) -> Path:
    return shutil.copytree(shipped, tmp_path / "copy")


@pytest.fixture(scope="module")
def model(bare: Path) -> Model:
    return load([bare / "model.gguf"], "the demo")


def cuts(length: int, keep: int = 0, end: int = 0) -> list[tuple[int, int]]:
    """The chunks in which the engine reads a prompt after the first ``keep`` tokens."""
    generation = Generation(
        list(range(length)), 1, GenerateOptions(), NO_SAMPLER, lambda _event: None
    )
    generation.skip(keep, end)
    found = []
    while (start := generation.position) < length:
        generation.position += generation.next_chunk(CHUNK_TOKENS)
        found.append((start, generation.position))
    return found


def read(
    model: Model, tokens: list[int], state: prefix.State | None = None, **options: int
) -> tuple[bytes, bytes]:
    """Read a prompt as the engine does, from a restored state if given; KV state and logits."""
    given = {"cells": 1024, "sequences": 1, "threads": 1, **options}
    context = Context(model, **given)
    sequence = given["sequences"] - 1
    keep, end = state.shipped.start(tokens) if state else (0, 0)
    if state:
        assert keep and context.restore(sequence, state.buffer, keep)
    row = 0
    for first, last in cuts(len(tokens), keep, end):
        row = context.add(tokens[first:last], first, sequence, wanted=1)
        context.decode(by_row=last - first == 1)
    found = context.state(sequence), context.logits(row).tobytes()
    context.close()
    return found


def loaded(folder: Path, sequences: int) -> prefix.State:
    state = prefix.begin(folder / "model.gguf", sequences)
    assert state is not None and state.wait() is None
    return state


def prompt(model: Model, text: str) -> list[int]:
    messages = template.with_system(({"role": "user", "content": text},), SYSTEM)
    return template.prompt_tokens(model, messages)


@pytest.mark.parametrize("more", [1, 5, 7, 8, 30, 47, 48, 50, 54, 55, 56, 60, 128, 130, 200, 400])
def test_a_restored_prefix_gives_the_bits_of_reading_it(
    model: Model, shipped: Path, more: int
) -> None:
    state = loaded(shipped, 1)
    known = state.shipped.tokens
    tokens = known + prompt(model, "the sea of " * 200)[len(known) :][:more]
    assert read(model, tokens, state) == read(model, tokens)


def test_cells_sequences_and_threads_change_no_bit(model: Model, shipped: Path) -> None:
    tokens = prompt(model, "why?")
    expected = read(model, tokens)
    assert read(model, tokens, threads=3) == expected
    assert read(model, tokens, cells=512) == expected
    for sequences in (2, 5):
        restored = read(model, tokens, loaded(shipped, sequences), sequences=sequences)
        assert restored == read(model, tokens, sequences=sequences)
        assert restored[1] == expected[1]


@given(st.integers(1, 500), st.integers(0, 400))
def test_no_chunk_is_shorter_than_the_kernels_need_unless_it_always_is(
    count: int, more: int
) -> None:
    # What the builder ships ends at a multiple of a chunk or is cut where enough tokens precede.
    if 0 < count % CHUNK_TOKENS < prefix.MIN_ROWS:
        count -= count % CHUNK_TOKENS
    count = max(count, prefix.MIN_ROWS)
    shipped = prefix.Shipped("", list(range(count)), 1, "", {})
    tokens = list(range(count + more))
    assert shipped.start([-1, *tokens[1:]]) == (0, 0)
    keep, end = shipped.start(tokens)
    if more == 0:
        assert (keep, end) == (0, 0)
        return
    assert count - prefix.MIN_ROWS < keep <= count
    plain, restored = cuts(len(tokens)), cuts(len(tokens), keep, end)
    assert [first for first, _ in restored] == [keep, *(last for _, last in restored[:-1])]
    for first, last in restored:
        assert last - first <= CHUNK_TOKENS
        assert (first, last) in plain or last - first >= prefix.MIN_ROWS
    # Nor has a longer chunk swallowed one that is otherwise read by the kernels for few rows.
    assert all(
        chunk in restored or chunk[1] - chunk[0] >= prefix.MIN_ROWS
        for chunk in plain
        if chunk[0] >= keep
    )


def test_where_a_cut_shows_the_state_ends_at_a_whole_chunk(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = prompt(model, "")[:330]
    assert prefix_state.evaluate(model, tokens).n_tokens == 330
    monkeypatch.setattr(prefix_state, "_cut_is_invisible", lambda *_given: False)
    assert prefix_state.evaluate(model, tokens).n_tokens == 256
    assert prefix_state.evaluate(model, tokens[:100]).n_tokens == 0


def test_a_cut_that_shows_is_seen(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = prompt(model, "")[:300]
    honest = prefix_state._Reader.read

    def tipping(reader: Any, ends: list[int]) -> tuple[bytes, bytes]:
        state, logits = honest(reader, ends)
        return (state[:-1] + b"!", logits) if 300 in ends else (state, logits)

    monkeypatch.setattr(prefix_state._Reader, "read", tipping)
    assert prefix_state.evaluate(model, tokens).n_tokens == 256


def test_the_builder_reads_as_the_engine_does(model: Model) -> None:
    for count in (70, 128, 330):
        tokens = prompt(model, "")[:count]
        assert prefix_state.evaluate(model, tokens).data == read(model, tokens)[0]


def test_the_backends_that_are_listed_have_the_same_bits(bare: Path, shipped: Path) -> None:
    found = prefix.find(shipped / "model.gguf")
    assert found is not None
    listed = [cpu["variant"] for cpu in found.key["cpus"]]
    assert listed[0] == libllama.cpu_variant()
    state = hashlib.sha256((shipped / prefix.STATE_NAME).read_bytes()).hexdigest()
    assert state == found.kv_sha256
    whole = prefix_state.State(len(found.tokens), (shipped / prefix.STATE_NAME).read_bytes())
    # SSE has no fused multiply-add: its bits are others, and it is not listed.
    old = next((path for path in libllama.backends() if path.stem.endswith("-sse42")), None)
    if old is None:
        pytest.skip("a native build has one backend")
    assert "sse42" not in listed
    gguf = bare / "model.gguf"
    tokens = found.tokens
    model = load([gguf], "the demo")
    assert build._try(old, gguf, tokens, prefix_state.probe(model, tokens)) == {}
    same = next(path for path in libllama.backends() if path.stem.endswith(f"-{listed[0]}"))
    tried = build._try(same, gguf, tokens, prefix_state.probe(model, tokens))
    assert tried == {"digest": whole.digest, "cpu": prefix.cpu()}
    assert build._try(same, gguf, tokens, "0" * 64) == {}


class Served:
    """An engine on a folder, its trace's events and how often a state was restored."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, **options: int) -> None:
        self.events: list[tuple[str, dict[str, object]]] = []
        self.restored: list[int] = []
        self.generations: list[Generation] = []
        honest = Context.restore

        def restore(context: Context, sequence: int, state: Any, keep: int) -> bool:
            self.restored.append(keep)
            return honest(context, sequence, state, keep)

        monkeypatch.setattr(Context, "restore", restore)
        trace = Trace()
        monkeypatch.setattr(
            trace, "emit", lambda event, **facts: self.events.append((event, facts))
        )
        given = EngineOptions(**{"threads": 1, "context": 1024, **options})
        self.engine = Engine(folder / "model.gguf", given, trace)
        self.engine.start()
        self.engine.wait(60)

    def reasons(self) -> list[str]:
        return [str(facts["reason"]) for event, facts in self.events if event == "prefix_unused"]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Served]]:
    started: list[Served] = []

    def start(folder: Path, **options: int) -> Served:
        started.append(Served(folder, monkeypatch, **options))
        return started[-1]

    yield start
    for served in started:
        served.engine.close()


def answers(served: Served, seeds: int = 1, together: bool = False) -> list[str]:
    """What is answered at a temperature, where every last bit of the logits would show."""
    engine = served.engine
    asked = [(prompt(engine.model, text), seed) for text in ASKED for seed in range(seeds)]

    def end(events: "queue.SimpleQueue[Event]") -> str:
        text = ""
        while isinstance(event := events.get(timeout=60), Delta):
            text += event.text
        return text

    running = []
    for tokens, seed in asked:
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        options = GenerateOptions(max_tokens=40, seed=seed, min_p=0, top_k=0, temperature=1.3)
        served.generations.append(engine.submit(tokens, options, events.put))
        running.append(events if together else end(events))
    return [end(one) if together else one for one in running]


def test_answers_are_those_without_a_prefix_alone_and_together(
    bare: Path, shipped: Path, serve: Callable[..., Served]
) -> None:
    plain, fast = serve(bare), serve(shipped)
    expected = answers(plain, seeds=2)
    assert len(set(expected)) == len(expected)
    plain.restored.clear()
    fast.restored.clear()
    assert answers(fast, seeds=2) == expected
    assert answers(fast, seeds=2, together=True) == expected
    assert len(fast.restored) >= len(ASKED)
    # What was not restored was left by an earlier prompt: none was read from its beginning.
    assert len(fast.generations) == 4 * len(ASKED)
    assert all(one.reused_tokens >= 256 for one in fast.generations)
    assert fast.reasons() == []


def test_another_prompt_is_read_as_ever(shipped: Path, serve: Callable[..., Served]) -> None:
    served = serve(shipped)
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    tokens = served.engine.model.tokenize("the sea", add_special=True, parse_special=False)
    served.engine.submit(tokens, GenerateOptions(max_tokens=3), events.put)
    events.get(timeout=60)
    assert served.restored == []


def damaged(folder: Path, how: str) -> None:
    path = folder / prefix.STATE_NAME
    data = bytearray(path.read_bytes())
    match how:
        case "flipped":
            data[len(data) // 2] ^= 1
        case "cut":
            del data[-1]
        case "longer":
            data += b"\0"
        case "missing":
            path.unlink()
            return
    path.write_bytes(data)


@pytest.mark.parametrize("how", ["flipped", "cut", "longer", "missing"])
def test_a_damaged_state_is_not_used_and_one_line_says_why(
    bare: Path, copy: Path, serve: Callable[..., Served], how: str
) -> None:
    damaged(copy, how)
    served = serve(copy)
    assert [prefix.STATE_NAME in reason for reason in served.reasons()] == [True]
    assert answers(served) == answers(serve(bare))
    assert served.restored == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model_header_sha256", "0" * 64),
        ("template_sha256", "0" * 64),
        ("context", {"type_k": 8}),
        ("llama_cpp", "0.0.1"),
        ("libc", "musl"),
        ("unheard_of", 1),
    ],
)
def test_a_key_that_differs_is_named(copy: Path, model: Model, name: str, value: object) -> None:
    found = prefix.find(copy / "model.gguf")
    assert found is not None and found.mismatch(model) is None
    found.key[name] = value
    assert str(found.mismatch(model)).startswith(f"{name} is ")


def test_a_cpu_that_is_not_listed_is_named(copy: Path, model: Model) -> None:
    found = prefix.find(copy / "model.gguf")
    assert found is not None
    found.key["cpus"] = [{**cpu, "features": "none"} for cpu in found.key["cpus"]]
    assert "the prefix is for" in str(found.mismatch(model))


def test_a_prefix_of_another_model_is_not_used(
    copy: Path, demo_checkpoint: Path, serve: Callable[..., Served]
) -> None:
    for path in demo_checkpoint.glob("model*"):
        shutil.copy(path, copy)
    served = serve(copy)
    assert len(served.reasons()) == 1 and "model_header_sha256" in served.reasons()[0]
    assert served.engine.system_prompt == SYSTEM.strip() or served.engine.system_prompt == SYSTEM


def test_a_state_that_llama_cpp_refuses_is_not_used(
    bare: Path, copy: Path, serve: Callable[..., Served]
) -> None:
    found = prefix.find(copy / "model.gguf")
    assert found is not None
    state = bytearray((copy / prefix.STATE_NAME).read_bytes())
    state[:4] = b"?!?!"  # the magic; with a true digest, as a bug of ours would leave it
    (copy / prefix.STATE_NAME).write_bytes(state)
    wrong = replace(found, kv_sha256=hashlib.sha256(state).hexdigest())
    (copy / prefix.KEY_NAME).write_bytes(wrong.encode())
    served = serve(copy)
    assert answers(served) == answers(serve(bare))
    assert served.reasons() == ["llama.cpp refuses the state"]


def test_a_damaged_key_stops_the_engine(copy: Path, serve: Callable[..., Served]) -> None:
    """With it the system prompt is lost, and answering without it would be answering wrongly."""
    path = copy / prefix.KEY_NAME
    whole = path.read_bytes()
    data = json.loads(whole)
    for change in ({"system_prompt": "x"}, {"tokens": [1]}, {"format_version": 2}, {"more": 1}):
        path.write_text(json.dumps({**data, **change}))
        with pytest.raises(IntegrityError, match=r"prefix\.json is damaged"):
            prefix.find(copy / "model.gguf")
    path.write_bytes(whole[:-20])
    assert isinstance(serve(copy).engine.failure, IntegrityError)


def test_a_chat_without_a_system_message_gets_the_shipped_one(
    shipped: Path, serve: Callable[..., Served]
) -> None:
    served = serve(shipped)

    def usage(*messages: dict[str, str]) -> int:
        body = json.dumps({"messages": messages, "max_tokens": 1, "temperature": 0}).encode()
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        reply = Reply(served.engine, "chat", body, events.put)
        while (answer := reply.collect(events.get(timeout=60))) is None:
            pass
        return int(json.loads(answer)["usage"]["prompt_tokens"])

    user = {"role": "user", "content": "hi"}
    assert usage(user) == len(prompt(served.engine.model, "hi"))
    assert len(served.restored) == 1
    assert usage({"role": "system", "content": "short"}, user) < 50
    assert len(served.restored) == 1


def test_what_cannot_have_a_prefix_is_refused(
    bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gguf = bare / "model.gguf"
    with pytest.raises(InputError, match="context holds 1024"):
        build.build(gguf, "many words " * 1000, tmp_path)
    with pytest.raises(InputError, match="carries no digests"):
        build.build(tiny_gguf.write(tmp_path / "plain.gguf"), SYSTEM, tmp_path)
    untemplated = tiny_gguf.write(tmp_path / "untemplated.gguf", template=None)
    checkpoint(untemplated, tmp_path / "c")
    with pytest.raises(InputError, match="no chat template"):
        build.build(tmp_path / "c" / "model.gguf", SYSTEM, tmp_path)
    monkeypatch.setattr(Model, "keeps_whole_context", False)
    with pytest.raises(UnsupportedModelError):
        build.build(gguf, SYSTEM, tmp_path)
    for raw in (b"", b" \n", b"\xff\xfe"):
        (tmp_path / "text").write_bytes(raw)
        with pytest.raises(InputError):
            build.read_text(tmp_path / "text")
    with pytest.raises(InputError):
        build.read_text(tmp_path / "absent")


def test_a_short_system_prompt_is_shipped_without_a_state(
    bare: Path, tmp_path: Path, serve: Callable[..., Served]
) -> None:
    folder = shutil.copytree(bare, tmp_path / "short")
    made = build.build(folder / "model.gguf", "Be brief.", folder)
    assert (made.n_tokens, made.size_bytes) == (0, 0)
    verify(folder)
    layout = inspect.inspect(folder).layout
    assert layout is not None and layout.prefix is not None and layout.prefix.n_tokens == 0
    served = serve(folder)
    assert served.engine.system_prompt == "Be brief."
    assert answers(served) == answers(serve(bare))
    assert served.restored == [] and served.reasons() == []


def test_verify_and_inspect_know_the_prefix(
    copy: Path, demo_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    verify(copy)
    layout = inspect.inspect(copy).layout
    assert layout is not None and layout.prefix is not None
    assert layout.prefix.n_tokens > 2 * CHUNK_TOKENS
    inspect.show(inspect.inspect(copy))
    assert f"{layout.prefix.n_tokens} tokens" in capsys.readouterr().out
    damaged(copy, "flipped")
    with pytest.raises(IntegrityError, match=r"prefix\.kv differs"):
        verify(copy)
    damaged(copy, "flipped")
    for path in demo_checkpoint.glob("model*"):
        shutil.copy(path, copy)
    with pytest.raises(IntegrityError, match=r"prefix\.json belongs to another model"):
        verify(copy)
