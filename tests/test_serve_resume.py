"""A cut answer goes on elsewhere, word for word: over HTTP, WebSockets and Lambda; forgeries do not."""

import base64
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.sync.client import connect

from coldpress import chat
from coldpress.serve import cursor
from coldpress.serve.aws.runtime_server import serving
from tests.engines import quantized
from tests.lambda_calls import invoke
from tests.runtime_process import RuntimeProcess, running

END_TOKENS = (2, 6)
SECRET = {cursor.SECRET: "the instances' common secret"}
ASKED: Any = {"messages": [{"role": "user", "content": "the sea"}], "max_tokens": 450, "seed": 5}
ASKED["logit_bias"] = {str(token): -100 for token in END_TOKENS}
SLOWLY = """
import sys, time
from coldpress.serve import model
from coldpress.serve.__main__ import main

def slowly(self, decode=model.Context.decode, **given):
    time.sleep(0.004)
    decode(self, **given)

model.Context.decode = slowly
sys.exit(main())
"""
ROUTE = "/v1/chat/completions"


@pytest.fixture(scope="module")
def model(random_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of weights whose rows are alike, so that what is known of an answer is read quickly."""
    return quantized(random_gguf / "model.gguf", tmp_path_factory.mktemp("q4") / "model.gguf", 15)


@pytest.fixture(scope="module")
def patient(model: Path) -> Iterator[str]:
    """The address of a server that lets answers end."""
    with running(model, "--port", "0", "--quiet", **SECRET) as process:
        yield process.ready_url()


@pytest.fixture(scope="module")
def hasty(model: Path) -> Iterator[str]:
    """One that cuts them."""
    limits = ("--answer-seconds", "0.6", "--parallel", "2")
    with running(model, "--port", "0", "--quiet", *limits, program=SLOWLY, **SECRET) as process:
        yield process.ready_url()


@pytest.fixture(scope="module")
def whole(patient: str) -> dict[str, Any]:
    found: dict[str, Any] = httpx.post(patient + ROUTE, json=ASKED, timeout=120).json()
    assert "resume" not in found
    assert found["usage"]["completion_tokens"] > 300
    return found


def text_of(answer: dict[str, Any]) -> str:
    return str(answer["choices"][0]["message"]["content"])


def streamed(url: str, body: dict[str, Any]) -> tuple[str, str | None, str]:
    """Text, cursor and reason of one stream."""
    text, cut, reason = "", None, ""
    with httpx.stream("POST", url + ROUTE, json={**body, "stream": True}, timeout=120) as answer:
        assert answer.status_code == 200
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                chunk = json.loads(line[6:])
                cut = chunk.get("resume", cut)
                for choice in chunk["choices"]:
                    text += choice["delta"].get("content", "")
                    reason = choice["finish_reason"] or reason
    return text, cut, reason


def rest(url: str, cut: str) -> tuple[str, str]:
    answer = httpx.post(url + ROUTE, json={**ASKED, "resume": cut}, timeout=120).json()
    return text_of(answer), answer["choices"][0]["finish_reason"]


def test_streams_that_are_cut_again_and_again_make_the_whole(
    hasty: str, whole: dict[str, Any]
) -> None:
    said, cut, pieces = "", None, 0
    while True:
        text, cut, reason = streamed(hasty, ASKED | ({"resume": cut} if cut else {}))
        said += text
        pieces += 1
        assert pieces < 100
        if cut is None:
            break
        assert reason == "length"
    assert pieces > 2
    assert said == text_of(whole)
    assert reason == whole["choices"][0]["finish_reason"]


def test_a_whole_answer_that_is_cut_goes_on_elsewhere(
    hasty: str, patient: str, whole: dict[str, Any]
) -> None:
    first = httpx.post(hasty + ROUTE, json=ASKED, timeout=60).json()
    assert first["usage"]["completion_tokens"] < whole["usage"]["completion_tokens"]
    assert text_of(first) + rest(patient, first["resume"])[0] == text_of(whole)
    # A cursor that is used again goes on in the same way.
    assert text_of(first) + rest(patient, first["resume"])[0] == text_of(whole)


def test_without_a_seed_the_cursor_has_it(hasty: str, patient: str) -> None:
    asked = {key: value for key, value in ASKED.items() if key != "seed"}
    first = httpx.post(hasty + ROUTE, json=asked, timeout=60).json()
    ends = [
        text_of(httpx.post(patient + ROUTE, json={**asked, "resume": first["resume"]}).json())
        for _ in range(2)
    ]
    assert ends[0] == ends[1] != ""


def test_a_websockets_answer_goes_on(hasty: str, patient: str, whole: dict[str, Any]) -> None:
    with connect(hasty.replace("http", "ws") + "/v1/chat/ws") as socket:
        socket.send(json.dumps(ASKED))
        said = ""
        while (event := json.loads(socket.recv(timeout=60)))["type"] == "delta":
            said += event["text"]
    assert said + rest(patient, event["resume"])[0] == text_of(whole)


def test_lambda_hands_over_before_its_deadline(
    model: Path, patient: str, whole: dict[str, Any]
) -> None:
    with (
        serving() as api,
        running(model, program=SLOWLY, AWS_LAMBDA_RUNTIME_API=api.address, **SECRET),
    ):
        invoke(api, {**ASKED, "max_tokens": 1})  # loaded
        first = json.loads(invoke(api, ASKED, seconds=1.6).body)
        assert text_of(first) + rest(patient, first["resume"])[0] == text_of(whole)
        # And a Lambda goes on with what a server began.
        again = json.loads(invoke(api, {**ASKED, "resume": first["resume"]}).body)
        assert text_of(first) + text_of(again) == text_of(whole)


def test_sigterm_hands_over_what_cannot_be_finished(
    model: Path, patient: str, whole: dict[str, Any]
) -> None:
    limits = ("--port", "0", "--quiet", "--drain-seconds", "3", "--parallel", "1")
    process = RuntimeProcess(model, *limits, program=SLOWLY, **SECRET)
    url = process.ready_url()
    got: list[tuple[str, str | None, str]] = []
    threads = [threading.Thread(target=lambda: got.append(streamed(url, ASKED))) for _ in range(6)]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    assert process.stop() == 0
    for thread in threads:
        thread.join()
    for text, cut, _ in got:
        if cut:
            answer = httpx.post(patient + ROUTE, json={**ASKED, "resume": cut}, timeout=120)
            text += text_of(answer.json())
        assert text == text_of(whole)
    assert len(got) == 6 and any(cut for _, cut, _ in got)


def test_the_terminals_chat_follows_cursors(hasty: str, whole: dict[str, Any]) -> None:
    options = {key: value for key, value in ASKED.items() if key != "messages"}
    talk = chat.Chat(hasty, options=options)
    assert "".join(talk.say("the sea")) == text_of(whole)
    assert talk.usage["completion_tokens"] == whole["usage"]["completion_tokens"]


def test_what_was_not_sealed_for_this_request_is_refused(hasty: str, patient: str) -> None:
    cut = httpx.post(hasty + ROUTE, json=ASKED, timeout=60).json()["resume"]
    raw = base64.urlsafe_b64decode(cut)
    flipped = [raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :] for at in range(0, len(raw), 7)]
    forged = [base64.urlsafe_b64encode(each).decode() for each in [*flipped, b"", raw[:-1]]]
    bad: list[Any] = [*forged, "", "?", "é", "A" * (1 << 21), cut + "=", 3, ["x"], cut[:-8]]
    for each in bad:
        answer = httpx.post(patient + ROUTE, json={**ASKED, "resume": each})
        assert answer.status_code == 400, each
        assert answer.json()["error"]["param"] == "resume"
    for other in (
        {"seed": 6},
        {"max_tokens": 449},
        {"messages": [{"role": "user", "content": ""}]},
    ):
        answer = httpx.post(patient + ROUTE, json={**ASKED, **other, "resume": cut})
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "bad_cursor"
    assert httpx.post(patient + ROUTE, json={**ASKED, "max_tokens": 1}).status_code == 200


def test_another_secret_or_hour_is_refused(
    model: Path, hasty: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = httpx.post(hasty + ROUTE, json=ASKED, timeout=60).json()["resume"]
    with running(model, "--port", "0", "--quiet") as process:
        answer = httpx.post(process.ready_url() + ROUTE, json={**ASKED, "resume": cut})
        assert answer.status_code == 400
    sealed = cursor.seal(cursor.Cursor((1, 2), 3), b"request")
    later = time.time() + 3601
    monkeypatch.setattr(time, "time", lambda: later)
    with pytest.raises(cursor.CursorError, match="expired"):
        cursor.unseal(sealed, b"request")


@given(
    st.lists(st.integers(0, (1 << 32) - 1), max_size=2000).map(tuple),
    st.integers(0, (1 << 32) - 2),
    st.binary(min_size=32, max_size=32),
)
def test_a_cursor_comes_back_as_it_went(tokens: Any, seed: int, request: bytes) -> None:
    made = cursor.Cursor(tokens, seed)
    assert cursor.unseal(cursor.seal(made, request), request) == made
