"""The chat in the terminal: through a pipe, and on a terminal with a person's keys."""

import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests import tiny_gguf
from tests.runtime_process import running

ARGV = [sys.executable, "-c", "from coldpress.cli import main; main()", "chat"]
OPTIONS = ["--temperature", "0", "--max-tokens", "12"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf.write(tmp_path_factory.mktemp("chat") / "model.gguf", context=1 << 16)


@pytest.fixture(scope="module")
def url(model: Path) -> Iterator[str]:
    with running(model, "--port", "0", "--quiet") as process:
        yield process.ready_url()


def _answers(url: str, texts: list[str], system: str) -> list[str]:
    """What the server says when the whole conversation is sent to it each time."""
    messages = [{"role": "system", "content": system}]
    for text in texts:
        messages.append({"role": "user", "content": text})
        body = {"messages": messages, "temperature": 0, "max_tokens": 12}
        answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).json()
        messages.append(answer["choices"][0]["message"])
    return [each["content"] for each in messages if each["role"] == "assistant"]


def test_lines_of_a_pipe_are_answered_in_turn(url: str, model: Path) -> None:
    texts = ["the sea", "日本", "of the"]
    expected = _answers(url, texts, "be brief")
    assert len(set(expected)) == 3
    for where in (url, str(model)):
        argv = [*ARGV, where, *OPTIONS, "--system", "be brief"]
        done = subprocess.run(argv, input="\n".join(texts), capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == "".join(each + "\n" for each in expected)


def test_ctrl_c_stops_an_answer_and_the_chat_goes_on(url: str) -> None:
    master, slave = pty.openpty()
    argv = [*ARGV, url, "--temperature", "0", "--max-tokens", "60000"]
    process = subprocess.Popen(
        argv, stdin=slave, stdout=slave, stderr=slave, start_new_session=True
    )
    os.close(slave)
    seen = b""

    def until(pattern: bytes) -> None:
        nonlocal seen
        while not re.search(pattern, seen):
            seen += os.read(master, 4096)

    until(b"> $")
    os.write(master, b"the sea\n")
    until(rb"the sea\r\n[^>]{20}")
    process.send_signal(2)
    until(rb"\n> $")
    seen = b""
    os.write(master, b"\x04")
    assert process.wait(60) == 0
    os.close(master)


@pytest.mark.parametrize(
    ("where", "code", "said"),
    [
        ("http://127.0.0.1:9", 4, "is the server running"),
        ("ftp://x", 2, "is no address"),
        ("/no/such/model", 5, "No such file"),
    ],
)
def test_what_cannot_be_reached_is_two_lines(where: str, code: int, said: str) -> None:
    done = subprocess.run([*ARGV, where], input="hi\n", capture_output=True, text=True)
    assert done.returncode == code
    assert re.search(said, done.stderr) and "Traceback" not in done.stderr


def test_a_key_is_taken_from_the_environment(model: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("right")
    with running(model, "--port", "0", "--quiet", "--api-keys", str(keys)) as process:
        url = f"http://127.0.0.1:{process.event('listening')['port']}"
        for key, code in (("wrong", 4), ("right", 0)):
            env = {**os.environ, "COLDPRESS_API_KEY": key}
            done = subprocess.run(
                [*ARGV, url, *OPTIONS], input="hi\n", capture_output=True, text=True, env=env
            )
            assert done.returncode == code, done.stderr
        assert done.stdout.strip()
