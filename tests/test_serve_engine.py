"""The engine against llama-cpp-python's own decoding, against itself run alone, and under abuse."""

import queue
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from coldpress.errors import (
    ColdpressError,
    CorruptModelError,
    PromptTooLongError,
    UsageError,
)
from coldpress.serve.engine import Engine, QueueFullError
from coldpress.serve.generation import Delta, Done, Event, Failed
from coldpress.serve.options import EngineOptions
from coldpress.serve.sampling import GenerateOptions
from coldpress.serve.trace import Trace
from tests import tiny_gguf, tiny_models
from tests.engines import quantized, start

GREEDY = GenerateOptions(temperature=0, max_tokens=60)
PROMPTS = ["the sea", "日本", "a " * 300, "of the", "on", "in at er", "", "é"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf.write(tmp_path_factory.mktemp("tiny") / "model.gguf")


@pytest.fixture(scope="module")
def engine(model: Path) -> Iterator[Engine]:
    started = start(model)
    yield started
    started.close()


class Answer:
    """A generation's events, gathered."""

    def __init__(self, engine: Engine, text: str, options: GenerateOptions) -> None:
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        tokens = engine.model.tokenize(text, add_special=True, parse_special=False)
        self.generation = engine.submit(tokens, options, self.events.put)

    def end(self) -> tuple[str, Any]:
        text = ""
        while isinstance(event := self.events.get(timeout=60), Delta):
            text += event.text
        return text, event


def _ask(engine: Engine, text: str, options: GenerateOptions) -> str:
    return Answer(engine, text, options).end()[0]


def test_greedy_equals_llama_cpp_python(engine: Engine, model: Path) -> None:
    import llama_cpp

    peer = llama_cpp.Llama(str(model), n_ctx=1024, n_threads=1, verbose=False)
    for prompt in PROMPTS[:4]:
        expected = []
        tokens = engine.model.tokenize(prompt, add_special=True, parse_special=False)
        assert tokens == peer.tokenize(prompt.encode(), add_bos=True, special=False)
        for token in peer.generate(tokens, temp=0):
            expected.append(token)
            if len(expected) == GREEDY.max_tokens:
                break
        data = b"".join(engine.model.piece(token) for token in expected)
        assert _ask(engine, prompt, GREEDY) == data.decode(errors="replace")
    peer.close()


def test_streams_run_together_equal_their_solo_runs(engine: Engine) -> None:
    alone = [_ask(engine, prompt, GREEDY) for prompt in PROMPTS]
    assert len(set(alone)) > 5  # the answers differ, so a mix-up would show
    for _ in range(3):
        together = [Answer(engine, prompt, GREEDY) for prompt in PROMPTS]
        assert [answer.end()[0] for answer in together] == alone


def test_a_seed_fixes_the_answer(engine: Engine) -> None:
    one = GenerateOptions(temperature=1.5, max_tokens=40, seed=1)
    two = GenerateOptions(temperature=1.5, max_tokens=40, seed=2)
    assert _ask(engine, "the", one) == _ask(engine, "the", one) != _ask(engine, "the", two)


def test_top_k_of_one_is_greedy(engine: Engine) -> None:
    only_best = GenerateOptions(temperature=2, top_k=1, max_tokens=60, seed=5)
    assert _ask(engine, "the", only_best) == _ask(engine, "the", GREEDY)


def test_a_stop_string_ends_the_answer_before_it(engine: Engine) -> None:
    whole = _ask(engine, "the", GREEDY)
    stop = whole[20:24]
    options = GenerateOptions(temperature=0, max_tokens=60, stop=(stop, "never"))
    text, done = Answer(engine, "the", options).end()
    assert text == whole[: whole.index(stop)]
    assert done.reason == "stop"


def test_an_end_token_ends_the_answer(engine: Engine, tmp_path: Path) -> None:
    whole, done = Answer(engine, "the", GREEDY).end()
    assert done == Done("length", prompt_tokens=done.prompt_tokens, completion_tokens=60)
    first = next(char for char in whole if char.isascii() and whole.count(char) == 1)
    end = engine.model.tokenize(first, add_special=False, parse_special=False)[-1]
    ended = start(tiny_gguf.write(tmp_path / "model.gguf", eos=end))
    try:
        text, done = Answer(ended, "the", GREEDY).end()
    finally:
        ended.close()
    assert done.reason == "stop"
    assert whole.startswith(text)
    assert len(text) <= whole.index(first)


def test_max_tokens_is_cut_to_the_context(model: Path) -> None:
    engine = start(model, context=256, parallel=1)
    try:
        _, done = Answer(engine, "the", GenerateOptions(temperature=0, max_tokens=9999)).end()
    finally:
        engine.close()
    assert done.reason == "length"
    assert done.prompt_tokens + done.completion_tokens == 256


def test_a_prompt_that_does_not_fit_is_refused_and_the_next_is_served(engine: Engine) -> None:
    with pytest.raises(PromptTooLongError, match="the context holds 4096"):
        Answer(engine, "x" * 5000, GREEDY)
    assert _ask(engine, "the", GREEDY)


def test_cancelling_stops_the_events_and_frees_the_place(engine: Engine) -> None:
    endless = GenerateOptions(temperature=0, max_tokens=4000)
    answers = [Answer(engine, "the", endless) for _ in range(6)]
    answers[0].events.get(timeout=60)
    for answer in answers:
        answer.generation.cancel()
    assert len(_ask(engine, "the", GREEDY)) > 0
    assert all(answer.generation.completion_tokens < 4000 for answer in answers)


def test_a_receiver_that_raises_harms_nobody_else(engine: Engine) -> None:
    def broken(_event: Event) -> None:
        raise RuntimeError("the loop is closed")

    tokens = engine.model.tokenize("the", add_special=True, parse_special=False)
    generation = engine.submit(tokens, GREEDY, broken)
    assert _ask(engine, "the", GREEDY)
    assert generation.cancelled


def test_a_full_queue_refuses(model: Path) -> None:
    engine = start(model, parallel=1, queue=1)
    endless = GenerateOptions(temperature=0, max_tokens=4000)
    try:
        first = Answer(engine, "the", endless)
        first.events.get(timeout=60)
        second = Answer(engine, "the", GREEDY)
        with pytest.raises(QueueFullError):
            Answer(engine, "the", GREEDY)
        first.generation.cancel()
        assert second.end()[1].reason == "length"
    finally:
        engine.close()


def test_closing_fails_what_is_unfinished(model: Path) -> None:
    engine = start(model, parallel=1)
    answers = [Answer(engine, "the", GenerateOptions(max_tokens=4000)) for _ in range(2)]
    engine.close()
    assert all(isinstance(answer.end()[1], Failed) for answer in answers)
    with pytest.raises(ColdpressError):
        Answer(engine, "the", GREEDY)


def test_options_out_of_bounds_are_refused() -> None:
    for wrong in ({"parallel": 0}, {"load": "quick"}):
        with pytest.raises(UsageError):
            EngineOptions(**wrong)  # type: ignore[arg-type]


def test_a_truncated_model_fails_the_engine(tmp_path: Path, model: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(model.read_bytes()[:-4000])
    engine = Engine(path, EngineOptions(), Trace())
    engine.start()
    assert not engine.wait(60)
    assert isinstance(engine.failure, CorruptModelError)
    engine.close()


@pytest.mark.parametrize("preset", [7, 10, 15])  # Q8_0, Q2_K, Q4_K_M
def test_quantized_streams_equal_their_solo_runs_bit_for_bit(
    random_gguf: Path, tmp_path: Path, preset: int
) -> None:
    """At temperature 1 every last bit of the logits would show, sooner or later."""
    path = quantized(random_gguf / "model.gguf", tmp_path / "model.gguf", preset)
    text = tiny_models.own_text()
    prompts = [text[at : at + size] for at, size in ((0, 20), (99, 500), (3000, 1), (5000, 300))]
    options = [GenerateOptions(max_tokens=100, seed=seed) for seed in range(4)]
    asked = list(zip(prompts, options, strict=True))
    engine = start(path)
    try:
        alone = [_ask(engine, *one) for one in asked]
        together = [Answer(engine, *one) for one in asked]
        assert [answer.end()[0] for answer in together] == alone
    finally:
        engine.close()
