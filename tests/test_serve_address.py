"""Addresses: what is requested for each scheme, and what must never be said or sent."""

import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from coldpress.errors import InputError, RemoteError, ToolError, UsageError
from coldpress.serve.load.address import Address, Target, follow, is_address
from coldpress.serve.load.place import locate
from tests import loading
from tests.range_server import State, serving

NAME = "model.gguf"


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLDPRESS_CACHE_BYTES", "0")
    monkeypatch.delenv("COLDPRESS_FETCH_TOKEN", raising=False)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return loading.made(tmp_path_factory.mktemp("checkpoint"))


@pytest.mark.parametrize(
    ("text", "name", "shown", "requested"),
    [
        ("https://h/a", NAME, "https://h/a/model.gguf", "/a/model.gguf"),
        ("https://h/a/", NAME, "https://h/a/model.gguf", "/a/model.gguf"),
        ("http://h:81/x.gguf?s=1", None, "http://h:81/x.gguf", "/x.gguf?s=1"),
        ("https://h/x.gguf?s=1", "y.json", "https://h/y.json", "/y.json?s=1"),
        ("https://h", NAME, "https://h/model.gguf", "/model.gguf"),
        ("https://[::1]:8/a b", NAME, "https://[::1]:8/a%20b/model.gguf", "/a%20b/model.gguf"),
        ("HTTPS://H/a", NAME, "https://h/a/model.gguf", "/a/model.gguf"),
        ("https://h/a%2Fb", NAME, "https://h/a%2Fb/model.gguf", "/a%2Fb/model.gguf"),
    ],
)
def test_what_is_requested(text: str, name: str | None, shown: str, requested: str) -> None:
    target = Address(text).target(name)
    assert (str(target), target.request_path) == (shown, requested)


@pytest.mark.parametrize(
    "text", ["http://", "https:///x", "http://user:pw@h/x", "http://h:0x1/x", "s3:///key", "gs://"]
)
def test_what_cannot_be_fetched_from_is_refused_at_once(text: str) -> None:
    assert is_address(text)
    with pytest.raises(UsageError) as caught:
        locate(text)
    assert "pw" not in caught.value.message + caught.value.hint


def test_a_path_is_no_address() -> None:
    assert not any(map(is_address, ["models/x", "/models/x.gguf", "C:\\x", "ftp://h/x", "s3:/x"]))


def test_secrets_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLDPRESS_FETCH_TOKEN", "t0ken")
    address = Address("https://h/x.gguf?X-Amz-Signature=abc")
    target = address.target()
    assert target.headers == {"Authorization": "Bearer t0ken"}
    for shown in (repr(address), str(address), repr(target), str(target)):
        assert "abc" not in shown
        assert "t0ken" not in shown
    monkeypatch.setenv("COLDPRESS_FETCH_TOKEN", "t0ken\r\nX: 1")
    with pytest.raises(UsageError, match="unprintable"):
        address.target()


def test_a_token_does_not_travel_unencrypted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLDPRESS_FETCH_TOKEN", "t0ken")
    with pytest.raises(UsageError, match="unencrypted"):
        locate("http://models.example/x")
    assert Address("http://localhost/x").target().headers
    monkeypatch.delenv("COLDPRESS_FETCH_TOKEN")
    assert not Address("http://models.example/x").target().headers


def test_redirects_are_relative_or_of_the_same_scheme() -> None:
    target = Target("https", "h", 443, "/a", headers={"Authorization": "x"})
    assert str(follow(target, "/b?c")) == "https://h/b"
    assert follow(target, "https://h/b").headers
    assert not follow(target, "https://other/b").headers
    assert not follow(target, "https://h:444/b").headers
    assert str(follow(target, "//other/b")) == "https://other/b"
    for wrong in ("http://h/b", "file:///etc/passwd", "ftp://h/b"):
        with pytest.raises((InputError, UsageError)):
            follow(target, wrong)


def test_s3_is_asked_through_boto3(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    with serving(checkpoint) as (address, state):

        class Client:
            def generate_presigned_url(
                self, _verb: str, Params: dict[str, str], ExpiresIn: int
            ) -> str:
                asked.append((Params["Bucket"], Params["Key"], ExpiresIn))
                return f"{address}/{Params['Key']}?X-Amz-Signature=abc"

        boto3, core, errors = (ModuleType(name) for name in ("boto3", "botocore", "exceptions"))
        boto3.client = lambda _service: Client()  # type: ignore[attr-defined]
        errors.BotoCoreError = OSError  # type: ignore[attr-defined]
        for name, module in (("boto3", boto3), ("botocore", core), ("botocore.exceptions", errors)):
            monkeypatch.setitem(sys.modules, name, module)
        expected = loading.logits(checkpoint)
        assert loading.logits("s3://bucket/deep/folder/") == expected
    assert asked == [("bucket", f"deep/folder/{n}", 3600) for n in ("model.index.json", NAME)]
    assert all(path.endswith("?X-Amz-Signature=abc") for path, _ in state.requests)
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(ToolError, match="boto3"):
        loading.logits("s3://bucket/folder")


@pytest.fixture
def metadata(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Google's metadata server."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_arguments: Any) -> None:
            pass

        def do_GET(self) -> None:
            known = self.headers.get("Metadata-Flavor") == "Google"
            self.send_response(200 if known and self.path.endswith("/token") else 403)
            self.end_headers()
            self.wfile.write(b'{"access_token": "from-metadata", "expires_in": 3599}')

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    monkeypatch.setenv("GCE_METADATA_HOST", f"127.0.0.1:{server.server_port}")
    yield
    server.shutdown()
    thread.join()
    server.server_close()


def _google(served: tuple[str, State], monkeypatch: pytest.MonkeyPatch) -> State:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", served[0])
    return served[1]


@pytest.mark.usefixtures("metadata")
def test_google_storage_takes_the_machines_token(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = loading.logits(checkpoint)
    with serving(checkpoint, token="from-metadata") as served:
        state = _google(served, monkeypatch)
        assert loading.logits("gs://bucket/folder") == expected
        assert {path for path, _ in state.requests} == {
            "/bucket/folder/model.index.json",
            "/bucket/folder/model.gguf",
        }
        monkeypatch.setenv("COLDPRESS_FETCH_TOKEN", "another")
        with pytest.raises(RemoteError, match="forbidden"):
            loading.logits("gs://bucket/folder")


def test_google_storage_without_a_token_must_be_public(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GCE_METADATA_HOST", "127.0.0.1:9")
    expected = loading.logits(checkpoint)
    with serving(checkpoint) as served:
        _google(served, monkeypatch)
        assert loading.logits("gs://bucket/folder/model.gguf") == expected
