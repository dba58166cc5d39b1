"""API Gateway's WebSockets: signatures against botocore's, messages against a management API that checks them."""

import json
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from coldpress.serve.aws import sigv4
from coldpress.serve.aws.runtime_server import RuntimeServer, serving
from tests import tiny_gguf
from tests.lambda_calls import invoke
from tests.runtime_process import running

BY = sigv4.Credentials("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", "", "us-east-1")
CONNECTION = "L0SM9cOFvHcCIhw="


def _botocore(method: str, url: str, body: bytes, service: str, by: sigv4.Credentials) -> Any:
    from botocore.auth import SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    request = AWSRequest(method=method, url=url, data=body)
    SigV4Auth(Credentials(by.key_id, by.secret, by.token or None), service, by.region).add_auth(
        request
    )
    return request.headers


@pytest.mark.parametrize("token", ["", "session/token=="])
@pytest.mark.parametrize(
    ("method", "url", "body"),
    [
        ("GET", "https://example.amazonaws.com/", b""),
        ("POST", "https://abc.example.com/prod/%40connections/L0SM9cOFvHcCIhw%3D", b'"\xc3\xa9"'),
        ("POST", "http://127.0.0.1:8000/a%20b/c", b"x" * 1000),
    ],
)  # fmt: skip
def test_signatures_are_botocores(token: str, method: str, url: str, body: bytes) -> None:
    by = sigv4.Credentials(BY.key_id, BY.secret, token, "eu-west-1")
    expected = _botocore(method, url, body, "execute-api", by)
    now = datetime.strptime(expected["X-Amz-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    found = sigv4.headers(method, url, body, "execute-api", by, now)
    assert found["authorization"] == expected["Authorization"]
    assert found.get("x-amz-security-token", "") == token


class ManagementApi(ThreadingHTTPServer):
    """Notes messages that are rightly signed; answers with ``status``."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.status = 200

    @property
    def url(self) -> str:
        """What the function is told."""
        return f"http://127.0.0.1:{self.server_address[1]}/prod"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ManagementApi

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        url = f"http://{self.headers['Host']}{self.path}"
        moment = datetime.strptime(self.headers["X-Amz-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        by = sigv4.Credentials(BY.key_id, BY.secret, "token", "eu-west-1")
        good = sigv4.headers("POST", url, body, "execute-api", by, moment)["authorization"]
        status = self.server.status if self.headers["Authorization"] == good else 403
        if status == 200:
            assert self.path == "/prod/@connections/L0SM9cOFvHcCIhw%3D"
            self.server.messages.put(json.loads(body))
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_args: Any) -> None:
        """Say nothing."""


@contextmanager
def _managing() -> Iterator[ManagementApi]:
    server = ManagementApi()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(scope="module")
def both(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[RuntimeServer, ManagementApi]]:
    model: Path = tiny_gguf.write(tmp_path_factory.mktemp("ws") / "model.gguf", context=1 << 20)
    with _managing() as management, serving() as api:
        env = {
            "AWS_LAMBDA_RUNTIME_API": api.address,
            "COLDPRESS_CONNECTIONS_ENDPOINT": management.url,
            "AWS_ACCESS_KEY_ID": BY.key_id,
            "AWS_SECRET_ACCESS_KEY": BY.secret,
            "AWS_SESSION_TOKEN": "token",
            "AWS_REGION": "eu-west-1",
        }
        with running(model, "--context", "600000", **env):
            yield api, management


def _event(kind: str, body: str | None = None) -> dict[str, Any]:
    context = {
        "connectionId": CONNECTION,
        "eventType": kind,
        "routeKey": "$default",
        "domainName": "abc.execute-api.eu-west-1.amazonaws.com",
        "stage": "prod",
    }
    return {"requestContext": context, "body": body, "isBase64Encoded": False}


def _said(management: ManagementApi) -> tuple[str, dict[str, Any]]:
    text = ""
    while (message := management.messages.get(timeout=60))["type"] == "delta":
        text += message["text"]
    return text, message


def test_one_message_in_tokens_out(both: tuple[RuntimeServer, ManagementApi]) -> None:
    api, management = both
    asked = {
        "messages": [{"role": "user", "content": "the sea"}],
        "max_tokens": 30,
        "temperature": 0,
    }
    direct = json.loads(invoke(api, asked).body)
    for kind in ("CONNECT", "DISCONNECT"):
        assert json.loads(invoke(api, _event(kind)).body) == {"statusCode": 200}
    assert json.loads(invoke(api, _event("MESSAGE", json.dumps(asked))).body) == {"statusCode": 200}
    text, end = _said(management)
    assert text == direct["choices"][0]["message"]["content"]
    assert (end["type"], end["finish_reason"], end["usage"]) == ("done", "length", direct["usage"])
    invoke(api, _event("MESSAGE", "the sea"))
    assert _said(management)[1]["usage"]["prompt_tokens"] == direct["usage"]["prompt_tokens"]


def test_a_long_answer_comes_in_few_messages_and_ends_before_the_deadline(
    both: tuple[RuntimeServer, ManagementApi],
) -> None:
    api, management = both
    asked = {
        "messages": [{"role": "user", "content": "x"}],
        "max_tokens": 500_000,
        "temperature": 0,
    }
    invoke(api, _event("MESSAGE", json.dumps(asked)), seconds=2.5)
    messages = []
    while not messages or messages[-1]["type"] == "delta":
        messages.append(management.messages.get(timeout=60))
    tokens = messages[-1]["usage"]["completion_tokens"]
    assert messages[-1]["finish_reason"] == "length"
    assert 2 < len(messages) < 40 < tokens


def test_mistakes_are_messages_and_one_who_left_is_forgotten(
    both: tuple[RuntimeServer, ManagementApi],
) -> None:
    api, management = both
    invoke(api, _event("MESSAGE", '{"messages": []}'))
    text, end = _said(management)
    assert (text, end["error"]["param"]) == ("", "messages")
    management.status = 410
    assert json.loads(invoke(api, _event("MESSAGE", "hello")).body) == {"statusCode": 200}
    management.status = 403
    failed = invoke(api, _event("MESSAGE", "hello"))
    assert failed.failure is not None and "403" in failed.failure.message
    management.status = 200
    invoke(api, _event("MESSAGE", '{"messages": []}'))
    assert _said(management)[1]["type"] == "error"
