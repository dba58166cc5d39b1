"""Guessing, reusing and going on change when tokens come, never which: against the plain run."""

import json
import queue
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coldpress.errors import UnsupportedModelError, UsageError
from coldpress.serve import constraint
from coldpress.serve.engine import Engine
from coldpress.serve.generation import Delta, Done, Event, NotResumableError
from coldpress.serve.load.place import locate
from coldpress.serve.model import CHUNK_TOKENS
from coldpress.serve.options import EngineOptions
from coldpress.serve.sampling import GenerateOptions, Speculate
from coldpress.serve.speculation import MAX_GUESSES, PromptLookup, Speculation
from coldpress.serve.trace import Trace
from tests import tiny_gguf, tiny_models
from tests.engines import quantized, start

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
CHOICES = {
    "greedy": GenerateOptions(temperature=0, max_tokens=120),
    "drawn": GenerateOptions(temperature=0.2, max_tokens=120, seed=7),
    "cold": GenerateOptions(temperature=0.3, max_tokens=120, seed=8, logprobs=2),
    "penalized": GenerateOptions(temperature=0, max_tokens=120, frequency_penalty=0.02),
    "stopped": GenerateOptions(temperature=0, max_tokens=120, stop=("e s", "qq")),
}


@pytest.fixture(scope="module")
def model(random_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quantized(random_gguf / "model.gguf", tmp_path_factory.mktemp("q4") / "model.gguf", 15)


@pytest.fixture(scope="module")
def draft(random_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quantized(random_gguf / "model.gguf", tmp_path_factory.mktemp("q8") / "model.gguf", 7)


@pytest.fixture(scope="module")
def engine(model: Path, draft: Path) -> Iterator[Engine]:
    started = start(model, draft=draft)
    yield started
    started.close()


class Answer:
    def __init__(
        self,
        engine: Engine,
        prompt: list[int],
        options: GenerateOptions,
        *,
        schema: dict[str, Any] | None = None,
        answered: list[int] | None = None,
    ) -> None:
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        form = constraint.json_schema(schema) if schema else None
        matcher = constraint.matcher(engine.model, form) if form else None
        self.generation = engine.submit(
            prompt, options, self.events.put, matcher, answered=answered or []
        )
        self.deltas: list[Delta] = []

    def end(self) -> Done:
        while isinstance(event := self.events.get(timeout=120), Delta):
            self.deltas.append(event)
        assert isinstance(event, Done), event
        return event

    @property
    def text(self) -> str:
        return "".join(each.text for each in self.deltas)


def prompt(engine: Engine, at: int, size: int) -> list[int]:
    text = tiny_models.own_text()
    tokens = engine.model.tokenize(text, add_special=False, parse_special=False)
    return tokens[at : at + size]


def whole(answer: Answer) -> tuple[str, list[int], list[Any], str]:
    reason = answer.end().reason
    logprobs = [each for delta in answer.deltas for each in delta.logprobs]
    return answer.text, answer.generation.tokens, logprobs, reason


@pytest.mark.parametrize("how", ["lookup", "draft"])
@pytest.mark.parametrize("choice", CHOICES)
def test_guessing_changes_no_token(
    engine: Engine, how: Speculate, choice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned: list[tuple[int, int]] = []
    learn = Speculation._learn

    def noted(self: Speculation, n_guessed: int, n_right: int, seconds: float) -> None:
        learned.append((n_guessed, n_right))
        # A clock on which guessing always pays, so that it is always tried.
        learn(self, n_guessed, n_right, 1.0)

    monkeypatch.setattr(Speculation, "_learn", noted)
    options = CHOICES[choice]
    for at, size in ((0, 40), (5000, 380), (900, 129), (77, 1)):
        tokens = prompt(engine, at, size)
        plain = whole(Answer(engine, tokens, options))
        assert whole(Answer(engine, tokens, replace(options, speculate=how))) == plain
    assert any(guessed > 1 for guessed, _ in learned)
    if how == "draft" and choice == "greedy":
        right = sum(right for _, right in learned)
        assert 0 < right < sum(guessed for guessed, _ in learned)


@pytest.mark.filterwarnings("ignore:llama_token_get_attr is deprecated")
def test_guessing_follows_a_schema(engine: Engine) -> None:
    tokens = prompt(engine, 10, 50)
    options = GenerateOptions(max_tokens=60, seed=3)
    plain = whole(Answer(engine, tokens, options, schema=SCHEMA))
    guessed = replace(options, speculate="lookup")
    assert whole(Answer(engine, tokens, guessed, schema=SCHEMA)) == plain
    if plain[3] == "stop":
        assert isinstance(json.loads(plain[0])["a"], int)


def test_guessing_in_company_changes_no_token(engine: Engine) -> None:
    options = [replace(CHOICES["drawn"], seed=seed, speculate="lookup") for seed in range(6)]
    prompts = [prompt(engine, 500 * at, 30 + 60 * at) for at in range(6)]
    alone = [whole(Answer(engine, *one)) for one in zip(prompts, options, strict=True)]
    together = [Answer(engine, *one) for one in zip(prompts, options, strict=True)]
    assert [whole(one) for one in together] == alone


def test_weights_whose_rows_are_not_alike_are_not_guessed(
    random_gguf: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Of bf16, ggml multiplies several rows in another way than one."""
    engine = start(random_gguf / "model.gguf", speculate="lookup")
    try:
        tokens, options = prompt(engine, 0, 40), CHOICES["greedy"]
        guessed = whole(Answer(engine, tokens, options))
        assert guessed == whole(Answer(engine, tokens, replace(options, speculate="off")))
    finally:
        engine.close()
    assert capfd.readouterr().err.count("no_speculation") == 1


@pytest.mark.parametrize("sequences", [1, 3])
def test_what_earlier_prompts_left_changes_no_token(model: Path, sequences: int) -> None:
    base = start(model, parallel=1)
    try:
        shared = prompt(base, 0, 3 * CHUNK_TOKENS + 50)
        prompts = [
            shared,
            shared + prompt(base, 9000, 60),
            shared[:300] + prompt(base, 4000, 10),
            shared[:256],
            shared[:257],
            prompt(base, 4000, 300),
            shared,
        ]
        fresh = []
        for tokens in prompts:
            engine = start(model, parallel=1)
            fresh.append(whole(Answer(engine, tokens, CHOICES["cold"])))
            engine.close()
    finally:
        base.close()
    engine = start(model, parallel=sequences)
    try:
        reused = []
        for tokens, expected in zip(prompts, fresh, strict=True):
            answer = Answer(engine, tokens, CHOICES["cold"])
            assert whole(answer) == expected
            reused.append(answer.generation.reused_tokens)
        assert reused[:3] == [0, 384, 256]
        together = [Answer(engine, tokens, CHOICES["cold"]) for tokens in prompts]
        assert [whole(answer) for answer in together] == fresh
        if sequences > 1:  # from a sequence that is answering still
            assert sum(one.generation.reused_tokens > 0 for one in together) >= 4
    finally:
        engine.close()


def test_a_cancelled_prompt_leaves_only_what_it_read(engine: Engine) -> None:
    tokens = prompt(engine, 3000, 450)
    expected = whole(Answer(engine, tokens, CHOICES["greedy"]))
    for at in (1000, 2000):
        other = prompt(engine, at, 450)
        Answer(engine, other, CHOICES["greedy"]).generation.cancel()
        answer = whole(Answer(engine, other, CHOICES["greedy"]))
        assert answer == whole(Answer(engine, other, CHOICES["greedy"]))
    assert whole(Answer(engine, tokens, CHOICES["greedy"])) == expected


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("size", [1, 40, 129, 400])
def test_an_answer_that_is_gone_on_with_ends_as_if_it_had_not_been_cut(
    engine: Engine, model: Path, choice: str, size: int
) -> None:
    tokens, options = prompt(engine, 100, size), CHOICES[choice]
    expected = Answer(engine, tokens, options)
    done = expected.end()
    elsewhere = start(model, parallel=2, threads=1)
    try:
        for delta in expected.deltas[:: max(len(expected.deltas) // 4, 1)]:
            cut = delta.completion_tokens
            answered = expected.generation.tokens[size : size + cut]
            said = "".join(each.text for each in expected.deltas if each.completion_tokens <= cut)
            if cut == done.completion_tokens:
                continue
            rest = Answer(elsewhere, tokens, options, answered=answered)
            assert rest.generation.said == said
            ended = rest.end()
            assert ended.reason == done.reason
            assert ended.completion_tokens == done.completion_tokens == cut + ended.made_tokens
            assert said + rest.text == expected.text
            assert rest.generation.tokens == expected.generation.tokens
    finally:
        elsewhere.close()


@pytest.mark.filterwarnings("ignore:llama_token_get_attr is deprecated")
def test_what_is_no_beginning_of_the_answer_is_refused(engine: Engine) -> None:
    tokens = prompt(engine, 0, 10)
    few = GenerateOptions(temperature=0, max_tokens=3)
    with pytest.raises(NotResumableError, match="complete"):
        Answer(engine, tokens, few, answered=[5, 6, 7])
    with pytest.raises(NotResumableError, match="form"):
        Answer(engine, tokens, CHOICES["greedy"], schema=SCHEMA, answered=[5, 6, 7])


def test_each_place_draws_for_itself(engine: Engine) -> None:
    """At a high temperature all of the two likeliest tokens' draws are fair coins, in every place."""
    options = GenerateOptions(temperature=2, top_k=2, min_p=0, max_tokens=12, logprobs=2)
    tokens = prompt(engine, 0, 30)
    drawn: Counter[tuple[int, bool]] = Counter()
    expected = variance = 0.0
    for seed in range(150):
        answer = Answer(engine, tokens, replace(options, seed=seed))
        for each in whole(answer)[2]:
            likeliest, second = each.top
            p = 1 / (1 + 2.718281828459045 ** ((second[1] - likeliest[1]) / 2))
            expected += p
            variance += p * (1 - p)
            drawn[0, each.piece == likeliest[0]] += 1
    assert abs(drawn[0, True] - expected) < 4 * variance**0.5


def test_a_draft_model_of_another_vocabulary_is_refused(model: Path, tmp_path: Path) -> None:
    other = tiny_gguf.write(tmp_path / "model.gguf")
    engine = Engine(locate(model), EngineOptions(draft=other, speculate="draft"), Trace())
    engine.start()
    assert not engine.wait(60)
    assert isinstance(engine.failure, UnsupportedModelError)
    engine.close()
    with pytest.raises(UsageError, match="no model that guesses"):
        EngineOptions(speculate="draft")
    wild: Any = "wildly"
    with pytest.raises(UsageError, match="no way to speculate"):
        EngineOptions(speculate=wild)


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(1, MAX_GUESSES))
def test_a_lookup_finds_what_followed_the_last_three_tokens(tokens: list[int], most: int) -> None:
    lookup = PromptLookup()
    for end in range(3, len(tokens) + 1):
        known = tokens[:end]
        earlier = [at for at in range(3, end) if known[at - 3 : at] == known[-3:]]
        expected = known[earlier[-1] : earlier[-1] + most] if earlier else []
        assert lookup.guess(known, most) == expected


def test_as_many_are_guessed_as_pays() -> None:
    """Rows that cost nothing are filled; rows that cost as much as a step are not."""

    class Sure:
        def guess(self, tokens: list[int], most: int) -> list[int]:
            return [0] * most

    def settled(cost: float, right: float) -> int:
        speculation = Speculation(Sure())
        speculation._learn(0, 0, 1.0)
        for _ in range(300):
            guessed = speculation._most()
            n_right = round(guessed * right)
            speculation._learn(guessed, n_right, 1 + cost * guessed)
        return speculation._most()

    assert settled(0.0, 1.0) == MAX_GUESSES
    assert settled(2.0, 1.0) == 0
    assert settled(0.5, 0.0) == 0
    assert settled(0.3, 1.0) == MAX_GUESSES
