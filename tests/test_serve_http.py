"""The HTTP front as a process of its own, used by the openai client and abused by plain sockets."""

import asyncio
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from coldpress.serve.api.protocol import MAX_BODY_BYTES
from coldpress.serve.engine import Engine
from coldpress.serve.options import EngineOptions
from coldpress.serve.trace import Trace
from tests import tiny_gguf
from tests.runtime_process import RuntimeProcess, running

HELLO: Any = [{"role": "user", "content": "the sea"}]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_gguf.write(folder / "model.gguf", context=1 << 20)
    return folder


@pytest.fixture(scope="module")
def url(model: Path) -> Iterator[str]:
    with running(model, "--port", "0") as process:
        yield process.ready_url()


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as made:
        yield made


def _stream(client: openai.OpenAI, prompt: str, max_tokens: int = 50) -> str:
    chunks = client.completions.create(
        model="tiny", prompt=prompt, temperature=0, max_tokens=max_tokens, stream=True
    )
    return "".join(chunk.choices[0].text for chunk in chunks)


def test_the_openai_client_chats(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny", messages=HELLO, temperature=0, max_tokens=30
    )
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].message.role == "assistant"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 30
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 30
    assert [model.id for model in client.models.list()] == ["tiny"]


def test_a_stream_adds_up_to_the_whole_answer(client: openai.OpenAI) -> None:
    asked: Any = {"model": "tiny", "messages": HELLO, "temperature": 0, "max_tokens": 900}
    whole = client.chat.completions.create(**asked)
    chunks = list(
        client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == whole.choices[0].message.content
    assert len([piece for piece in pieces if piece]) > 1
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].usage == whole.usage


def test_the_chat_template_is_applied(client: openai.OpenAI) -> None:
    chat = client.chat.completions.create(
        model="tiny", messages=HELLO, temperature=0, max_tokens=30
    )
    by_hand = client.completions.create(
        model="tiny", prompt="<user>the sea\n<assistant>", temperature=0, max_tokens=30
    )
    assert by_hand.choices[0].text == chat.choices[0].message.content
    assert by_hand.usage == chat.usage  # so BOS was added once


def test_concurrent_streams_equal_their_solo_runs(client: openai.OpenAI) -> None:
    prompts = ["the sea", "in at", "日本", "of on the"]
    alone = [_stream(client, prompt) for prompt in prompts]
    together: dict[str, str] = {}

    def ask(prompt: str) -> None:
        together[prompt] = _stream(client, prompt)

    threads = [threading.Thread(target=ask, args=(prompt,)) for prompt in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[prompt] for prompt in prompts] == alone


def test_errors_are_openai_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model="tiny", messages=HELLO, temperature=3)
    assert bad.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model="tiny", prompt="x" * 9000)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="the user speaks first"):
        client.chat.completions.create(
            model="tiny", messages=[{"role": "assistant", "content": "I know"}]
        )
    with pytest.raises(openai.NotFoundError):
        client.moderations.create(input="x")
    assert _stream(client, "the")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"\xff\xfe\xfd", 400),
        (b'{"prompt": "\\ud800"}', 400),
        (b'{"prompt": "x", "max_tokens": -5}', 400),
        (b'{"prompt": "x", "temperature": NaN}', 400),
        (b'{"prompt": null}', 400),
        (b" " * (MAX_BODY_BYTES + 1), 413),
    ],
)
def test_abuse_gets_the_right_status_and_the_next_is_served(
    url: str, body: bytes, status: int
) -> None:
    response = httpx.post(f"{url}/v1/completions", content=body)
    assert response.status_code == status
    assert response.json()["error"]["message"]
    asked = {"prompt": "the", "max_tokens": 3}
    assert httpx.post(f"{url}/v1/completions", json=asked).status_code == 200


def test_other_routes_and_methods(url: str) -> None:
    assert httpx.get(f"{url}/healthz").json() == {"status": "ok"}
    assert httpx.get(f"{url}/v1/completions").status_code == 405
    assert httpx.get(f"{url}/../etc/passwd").json()["error"]["code"] == "no_such_route"


def test_a_queue_that_is_full_answers_429(model: Path) -> None:
    endless = {"prompt": "the", "max_tokens": 100_000, "stream": True, "temperature": 0}
    arguments = ("--port", "0", "--parallel", "1", "--queue", "0", "--context", "200000")
    with running(model, *arguments) as process:
        url = process.ready_url()
        with httpx.stream("POST", f"{url}/v1/completions", json=endless) as first:
            chunks = first.iter_bytes()  # dropped, it would close the response
            next(chunks)
            second = httpx.post(f"{url}/v1/completions", json=endless)
            assert (second.status_code, second.headers["Retry-After"]) == (429, "1")


@pytest.mark.parametrize("stream", [True, False])
def test_a_disconnect_cancels_the_generation(model: Path, stream: bool) -> None:
    """Alone, the abandoned answer would take minutes; there is one sequence only."""
    endless = {"prompt": "the", "max_tokens": 500_000, "stream": stream, "temperature": 0}
    arguments = ("--port", "0", "--parallel", "1", "--context", "600000")
    with running(model, *arguments) as process:
        url = process.ready_url()
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as raw:
            body = json.dumps(endless).encode()
            head = (
                f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
            )
            raw.sendall(head.encode() + body)
            process.event("cold_start")
        asked = {"prompt": "the", "max_tokens": 3}
        response = httpx.post(f"{url}/v1/completions", json=asked, timeout=20)
        assert response.status_code == 200


def test_sigterm_finishes_the_stream(model: Path) -> None:
    process = RuntimeProcess(model, "--port", "0")
    url = process.ready_url()
    asked = {"prompt": "the", "max_tokens": 3000, "stream": True, "temperature": 0}
    asked |= {"stream_options": {"include_usage": True}}
    with httpx.stream("POST", f"{url}/v1/completions", json=asked, timeout=60) as response:
        lines = response.iter_lines()
        next(lines)
        process.process.terminate()
        rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]"
    assert json.loads(rest[-2][6:])["usage"]["completion_tokens"] == 3000
    assert json.loads(rest[-3][6:])["choices"][0]["finish_reason"] == "length"
    assert process.wait() == 0


def test_the_trace_is_one_line_with_rising_times(model: Path) -> None:
    with running(model, "--port", "0") as process:
        url = process.ready_url()
        for _ in range(2):
            httpx.post(f"{url}/v1/completions", json={"prompt": "the", "max_tokens": 2})
        trace = process.event("cold_start")
    times = [trace[f"{name}_s"] for name in ("import", "load", "ready", "first_token")]
    assert times == sorted(times)
    assert 0 < times[0] < times[-1] < 60
    assert trace["weights_bytes"] > 100_000
    assert trace["cpu_variant"]
    events = [json.loads(line)["event"] for line in process.lines]
    assert sorted(events) == ["cold_start", "listening", "loader"]


def test_before_the_model_is_loaded_it_lives_and_answers_503(model: Path) -> None:
    from coldpress.serve.api.http import HttpOptions, build_app
    from coldpress.serve.api.timed import Closing

    engine = Engine(model / "model.gguf", EngineOptions(), Trace())  # not started

    async def statuses() -> list[int]:
        transport = httpx.ASGITransport(app=build_app(engine, HttpOptions(), Closing()))
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            answers = [await client.get(path) for path in ("/healthz", "/readyz", "/v1/models")]
            answers.append(await client.post("/v1/completions", json={"prompt": "x"}))
        assert all("Retry-After" in answer.headers for answer in answers[1:])
        return [answer.status_code for answer in answers]

    # The browser of other tests has a loop in this thread.
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: asyncio.run(statuses())).result() == [200, 503, 503, 503]


def test_a_port_in_use_is_two_lines_and_17(model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        process = RuntimeProcess(model, "--port", str(taken.getsockname()[1]))
        assert process.wait() == 17
    assert [line[:6] for line in process.lines] == ["error:", " hint:"]


def test_a_broken_model_is_two_lines_and_12(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes((model / "model.gguf").read_bytes()[:-5000])
    process = RuntimeProcess(path, "--port", "0")
    assert process.wait() == 12
    words = [line[:6] for line in process.lines if not line.startswith("{")]
    assert words == ["error:", " hint:"]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(("missing.gguf",), 5), ((__file__,), 5), ((__file__, "--port", "99999"), 2)],
)
def test_a_wrong_command_line_is_two_lines(arguments: tuple[str, ...], code: int) -> None:
    process = RuntimeProcess(Path(arguments[0]), *arguments[1:])
    assert process.wait() == code
    assert [line[:6] for line in process.lines] == ["error:", " hint:"]


def _modules(statement: str) -> set[str]:
    program = f"import sys; {statement}; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    return set(done.stdout.split())


def test_the_runtime_imports_nothing_heavy() -> None:
    heavy = {"torch", "transformers", "pydantic", "typer", "rich", "gguf", "scipy", "fastapi"}
    http = _modules(
        "import coldpress.serve.__main__, coldpress.serve.api.http, coldpress.libllama as l; l.load()"
    )
    assert not http & heavy
    assert {"starlette", "uvicorn", "llama_cpp"} <= http
    function = _modules(
        "import coldpress.serve.__main__, coldpress.serve.aws.front, coldpress.libllama as l; "
        "l.load()"
    )
    assert not function & (heavy | {"starlette", "uvicorn", "anyio", "boto3"})
    light = _modules("import coldpress.serve.aws.front, coldpress.serve.__main__")
    standard = set(sys.stdlib_module_names) | {"__main__", "coldpress"}
    assert {name for name in light - standard if not name.startswith("__editable__")} <= {
        "_distutils_hack",
        "sitecustomize",
    }
