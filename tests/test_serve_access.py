"""Keys, request ids, logs, metrics, limits, WebSockets and the chat page: with the clients that use them."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from tests import tiny_gguf
from tests.runtime_process import running
from tests.test_serve_http import HELLO

KEY = "s3cret-ключ"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf.write(tmp_path_factory.mktemp("access") / "model.gguf", context=1 << 16)


@pytest.fixture(scope="module")
def open_url(model: Path) -> Iterator[str]:
    # Room for answers that last longer than a person's way to the stop button.
    with running(model, "--port", "0", "--quiet", "--context", "60000") as process:
        yield process.ready_url()


@pytest.fixture(scope="module")
def keyed_url(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    keys = tmp_path_factory.mktemp("keys") / "keys.txt"
    keys.write_text(f"other\n\n {KEY} \n", encoding="utf-8")
    arguments = (
        "--port",
        "0",
        "--quiet",
        "--api-keys",
        str(keys),
        "--cors",
        "https://page.example",
    )
    with running(model, *arguments) as process:
        yield process.ready_url()


def _bearer(key: str) -> dict[str, bytes]:
    return {"Authorization": f"Bearer {key}".encode()}


@pytest.mark.parametrize(
    "headers",
    [{}, _bearer("wrong"), _bearer("oth"), _bearer(KEY + "x"), {"Authorization": b"Basic " + KEY.encode()}],
    ids=["none", "wrong", "shorter", "longer", "basic"],
)  # fmt: skip
@pytest.mark.parametrize(
    "path", ["/v1/models", "/v1/completions", "/metrics", "/tokenize", "/none"]
)
def test_without_a_key_nothing_is_told(
    keyed_url: str, path: str, headers: dict[str, bytes]
) -> None:
    answer = httpx.post(f"{keyed_url}{path}", headers=headers, content=b"x" * 100)
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_api_key"
    assert answer.headers["WWW-Authenticate"] == "Bearer"


def test_a_key_opens_and_probes_need_none(keyed_url: str) -> None:
    for key in ("other", KEY):
        assert httpx.get(f"{keyed_url}/v1/models", headers=_bearer(key)).status_code == 200
    for path in ("/healthz", "/readyz", "/"):
        assert httpx.get(f"{keyed_url}{path}").status_code == 200
    with openai.OpenAI(base_url=f"{keyed_url}/v1", api_key="bad", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError):
            client.models.list()
        assert client.with_options(api_key="other").models.list().data[0].id == "tiny"


def test_other_sites_may_call_only_where_they_are_named(keyed_url: str, open_url: str) -> None:
    def preflight(url: str, origin: str) -> str | None:
        headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        answer = httpx.options(f"{url}/v1/chat/completions", headers=headers)
        return answer.headers.get("Access-Control-Allow-Origin")

    assert preflight(keyed_url, "https://page.example") == "https://page.example"
    assert preflight(keyed_url, "https://evil.example") is None
    assert preflight(open_url, "https://page.example") is None


def test_a_request_keeps_its_id_or_gets_one(open_url: str) -> None:
    url = f"{open_url}/v1/models"
    kept = httpx.get(url, headers={"X-Request-Id": "trace-7/a"}).headers["X-Request-Id"]
    assert kept == "trace-7/a"
    bad = ("a b", "x" * 200, '"', "{}")
    made = {httpx.get(url, headers={"X-Request-Id": each}).headers["X-Request-Id"] for each in bad}
    assert len(made) == 4 and all(re.fullmatch("[0-9a-f]{24}", each) for each in made)
    assert httpx.post(f"{open_url}/v1/completions", content=b"{").headers["X-Request-Id"]


def test_each_request_is_a_line_but_probes_are_not(model: Path) -> None:
    argv = [sys.executable, "-m", "coldpress.serve", str(model), "--port", "0", "--threads", "1"]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    # How the model was loaded may be said before.
    port = next(told["port"] for told in map(json.loads, process.stderr) if "port" in told)
    url = f"http://127.0.0.1:{port}"
    while httpx.get(f"{url}/readyz").status_code == 503:
        pass
    httpx.get(f"{url}/v1/models", headers={"X-Request-Id": "one"})
    httpx.post(f"{url}/v1/completions", json={"prompt": 3})
    process.terminate()
    output, _ = process.communicate(timeout=60)
    lines = [json.loads(line) for line in output.splitlines()]
    assert [(line["method"], line["path"], line["status"]) for line in lines] == [
        ("GET", "/v1/models", 200),
        ("POST", "/v1/completions", 400),
    ]
    assert lines[0]["request_id"] == "one" and lines[1]["seconds"] < 60


def _metrics(url: str) -> dict[tuple[str, ...], float]:
    text = httpx.get(f"{url}/metrics").text
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_metrics_count_what_was_done(open_url: str) -> None:
    before = _metrics(open_url)
    with openai.OpenAI(base_url=f"{open_url}/v1", api_key="x", max_retries=0) as client:
        usage = client.chat.completions.create(model="t", messages=HELLO, max_tokens=7).usage
    httpx.get(f"{open_url}/made/up/{'x' * 50}")
    httpx.post(f"{open_url}/v1/completions", content=b"{")
    after = _metrics(open_url)

    def grown(*key: str) -> float:
        return after.get(key, 0) - before.get(key, 0)

    assert usage is not None and usage.completion_tokens == 7
    assert grown("coldpress_tokens_total", "prompt") == usage.prompt_tokens
    assert grown("coldpress_tokens_total", "completion") == 7
    assert grown("coldpress_requests_total", "/v1/chat/completions", "200") == 1
    assert grown("coldpress_requests_total", "/v1/completions", "400") == 1
    assert grown("coldpress_requests_total", "other", "404") == 1
    assert grown("coldpress_first_token_seconds_count") == 1
    assert (after["coldpress_running",], after["coldpress_waiting",]) == (0, 0)
    assert after["coldpress_ready",] == 1
    assert not any("made" in part for key in after for part in key)


def test_tokenize_is_the_models(open_url: str, model: Path) -> None:
    import llama_cpp

    peer = llama_cpp.Llama(str(model), vocab_only=True, verbose=False)
    for text in ("the sea 日本", "</s>", ""):
        for special in (True, False):
            body = {"content": text, "add_special": special}
            tokens = httpx.post(f"{open_url}/tokenize", json=body).json()["tokens"]
            assert tokens == peer.tokenize(text.encode(), add_bos=special, special=False)
    assert httpx.post(f"{open_url}/tokenize", json={"content": 3}).status_code == 400


def test_an_answer_ends_when_its_time_is_up(model: Path) -> None:
    with running(model, "--port", "0", "--quiet", "--answer-seconds", "0.3") as process:
        url = process.ready_url()
        with openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client:
            done = client.completions.create(
                model="t", prompt="a", max_tokens=100_000, temperature=0
            )
            assert done.choices[0].finish_reason == "length" and done.usage is not None
            assert 0 < done.usage.completion_tokens < 4000
            again = client.completions.create(model="t", prompt="a", max_tokens=2, temperature=0)
            assert done.choices[0].text.startswith(again.choices[0].text)


def _converse(socket: Any, message: str) -> tuple[str, dict[str, Any]]:
    socket.send(message)
    text = ""
    while (event := json.loads(socket.recv(timeout=60)))["type"] == "delta":
        text += event["text"]
    return text, event


def test_a_websocket_says_what_http_says(open_url: str) -> None:
    asked = {"messages": HELLO, "max_tokens": 20, "temperature": 0}
    whole = httpx.post(f"{open_url}/v1/chat/completions", json=asked).json()
    address = open_url.replace("http", "ws") + "/v1/chat/ws"
    with connect(address) as socket:
        for _ in range(2):
            text, end = _converse(socket, json.dumps(asked))
            assert text == whole["choices"][0]["message"]["content"]
            assert (end["type"], end["finish_reason"]) == ("done", "length")
            assert end["usage"] == whole["usage"]
        # A mistake does not end the conversation; plain text is what the user says.
        text, end = _converse(socket, '{"messages": []}')
        assert (text, end["type"], end["error"]["param"]) == ("", "error", "messages")
        text, end = _converse(socket, "the sea")
        assert text and end["usage"]["prompt_tokens"] == whole["usage"]["prompt_tokens"]
        socket.send(b"\xff")
        with pytest.raises(ConnectionClosed):
            socket.recv(timeout=60)
    # One that leaves under way frees its place.
    with connect(address) as socket:
        socket.send(json.dumps({**asked, "max_tokens": 60_000}))
        socket.recv(timeout=60)
    deadline = 600
    while _metrics(open_url)["coldpress_running",] and deadline:
        deadline -= 1
    assert deadline


def test_a_websocket_needs_the_key_too(keyed_url: str) -> None:
    address = keyed_url.replace("http", "ws") + "/v1/chat/ws"
    for protocols in (None, ["bearer", "wrong"]):
        with pytest.raises(InvalidStatus):
            connect(address, subprotocols=protocols)
    with connect(address, subprotocols=["bearer", "other"]) as socket:
        assert _converse(socket, json.dumps({"messages": HELLO, "max_tokens": 3}))[0]
    with connect(address, additional_headers={"Authorization": "Bearer other"}) as socket:
        assert _converse(socket, json.dumps({"messages": HELLO, "max_tokens": 3}))[0]


def _ask_for_more(route: Any) -> None:
    body = {**json.loads(route.request.post_data), "max_tokens": 60_000}
    route.continue_(post_data=json.dumps(body))


def test_a_person_chats_on_the_page(chromium: Any, open_url: str) -> None:
    from playwright.sync_api import expect

    page = chromium.new_page(viewport={"width": 390, "height": 700})
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.goto(open_url)
    expect(page.locator("#status")).to_have_text("ready")
    assert page.title() == "tiny"
    page.fill("#text", "the sea")
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_contain_text("tok/s")
    expect(page.locator("#status")).to_contain_text("512 tokens, cut off")
    answers = page.locator("li.assistant")
    assert answers.count() == 1 and len(answers.first.inner_text()) > 100
    # Stopped half-way, what is there stays, and the conversation goes on. This model would be done too soon.
    page.route("**/v1/chat/completions", _ask_for_more)
    page.fill("#text", "again")
    page.click("#send")
    expect(answers.nth(1)).to_have_text(re.compile(".{6}", re.DOTALL))
    page.click("#stop")
    expect(page.locator("#status")).to_contain_text("stopped")
    assert len(answers.nth(1).inner_text()) > 5
    assert page.locator("#send").is_visible() and page.locator("li.error").count() == 0
    assert said == []


def test_the_page_follows_an_answer_whose_time_is_up(chromium: Any, open_url: str) -> None:
    from playwright.sync_api import expect

    page = chromium.new_page()
    asked: list[dict[str, Any]] = []

    def cut_twice(route: Any) -> None:
        asked.append(json.loads(route.request.post_data))
        count = len(asked)
        choice = {"delta": {"content": f"part {count} "}, "finish_reason": "length"}
        usage = {"completion_tokens": 10 * count}
        events: list[dict[str, Any]] = [{"choices": [choice]}, {"choices": [], "usage": usage}]
        if count < 3:
            events[0]["resume"] = f"cursor {count}"
        body = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
        route.fulfill(body=f"{body}data: [DONE]\n\n", content_type="text/event-stream")

    page.route("**/v1/chat/completions", cut_twice)
    page.goto(open_url)
    page.fill("#text", "the sea")
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_contain_text("30 tokens, cut off")
    assert page.locator("li.assistant").inner_text() == "part 1 part 2 part 3 "
    assert [each.pop("resume", None) for each in asked] == [None, "cursor 1", "cursor 2"]
    assert asked[0] == asked[1] == asked[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_on_the_page(chromium: Any, open_url: str, scheme: str) -> None:
    from axe_playwright_python.sync_playwright import Axe
    from playwright.sync_api import expect

    page = chromium.new_page(color_scheme=scheme, bypass_csp=True)
    page.goto(open_url)
    page.fill("#text", "x")
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_contain_text("tok/s", timeout=60_000)
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


def test_the_page_asks_for_a_key(chromium: Any, keyed_url: str) -> None:
    from playwright.sync_api import expect

    page = chromium.new_page()
    page.goto(keyed_url)
    page.wait_for_selector("#key", state="visible")
    page.fill("#key", "other")
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_have_text("ready")
    assert not page.locator("#key").is_visible()
