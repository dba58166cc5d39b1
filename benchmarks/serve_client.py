"""Clients that stream, the same for every server: when the first text came, when the last, and what came.

``python -m benchmarks.serve_client`` reads ``{"port": …, "bodies": […]}`` from standard input, asks all at once,
one thread each, and prints the answers: a process of its own, so that a benchmark's work is not in its times.
"""

import json
import subprocess
import sys
import threading
import time
from contextlib import closing
from dataclasses import asdict, dataclass
from http.client import HTTPConnection, HTTPException
from typing import Any

from coldpress.serve import sse

PATH = "/v1/completions"
_TIMEOUT_S = 600
_POLL_S = 0.01


class RefusedError(Exception):
    """The server answers a request with another status than 200."""

    def __init__(self, status: int, said: bytes) -> None:
        super().__init__(f"status {status}: {said!r}")
        self.status = status


@dataclass(frozen=True)
class Answer:
    """One stream; times are ``time.monotonic``'s, the same in every process of a machine.

    ``tokens`` is what the server counted, None where it counts nothing in streams.
    """

    asked_s: float
    first_s: float
    end_s: float
    text: str
    reason: str
    tokens: int | None
    prompt_tokens: int | None


def body(prompt: str, max_tokens: int, bias: dict[str, int]) -> dict[str, Any]:
    """A request for exactly so many of the likeliest tokens, as every server understands it."""
    return {
        "prompt": prompt,
        "max_tokens": max_tokens,
        "temperature": 0,
        "logit_bias": bias,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def ask(port: int, asked: dict[str, Any]) -> Answer:
    """Ask and read to the end.

    Raises:
        OSError: nobody listens.
        RefusedError: the server refuses.
    """
    began_s = time.monotonic()
    with closing(HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_S)) as connection:
        connection.request("POST", PATH, json.dumps(asked), {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            raise RefusedError(response.status, response.read()[:300])
        first_s, text, reason = 0.0, "", ""
        usage: dict[str, int] = {}
        for chunk in sse.chunks(response):
            usage = chunk.get("usage") or usage
            for choice in chunk["choices"]:
                if choice["text"]:
                    first_s = first_s or time.monotonic()
                    text += choice["text"]
                reason = choice["finish_reason"] or reason
        end_s = time.monotonic()
    counts = usage.get("completion_tokens"), usage.get("prompt_tokens")
    return Answer(began_s, first_s or end_s, end_s, text, reason, *counts)


def until_answered(port: int, asked: dict[str, Any], server: "subprocess.Popen[bytes]") -> Answer:
    """Ask again every 10 ms until the server is there and its model is loaded.

    Raises:
        SystemExit: the process ended.
        RefusedError: it answers anything but "not yet".
    """
    while server.poll() is None:
        try:
            return ask(port, asked)
        except (OSError, HTTPException):
            pass
        except RefusedError as refused:
            if refused.status != 503:
                raise
        time.sleep(_POLL_S)
    raise SystemExit(f"{server.args!r} ended with {server.returncode}")


def together(port: int, bodies: list[dict[str, Any]]) -> list[Answer]:
    """Ask all at once from a process of their own.

    Raises:
        CalledProcessError: a request was refused.
    """
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.serve_client"],
        input=json.dumps({"port": port, "bodies": bodies}),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=_TIMEOUT_S,
    )
    return [Answer(**each) for each in json.loads(done.stdout)]


def main() -> None:
    """Ask what standard input says."""
    told = json.load(sys.stdin)
    found: list[Answer | None] = [None] * len(told["bodies"])

    def one(index: int) -> None:
        found[index] = ask(told["port"], told["bodies"][index])

    threads = [threading.Thread(target=one, args=(index,)) for index in range(len(found))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if not all(found):
        sys.exit("a request was refused")
    print(json.dumps([asdict(each) for each in found if each]))


if __name__ == "__main__":
    main()
