"""A runtime started cold in a process of its own, and a client for it."""

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

from coldpress.errors import ToolError

_START_S = 300
"""So long a runtime may take until it answers."""
_STOP_S = 30
_POLL_S = 0.01


class ColdRuntime:
    """A runtime process and the JSON lines that it writes on stderr.

    ``started_s`` is its start on ``time.monotonic``'s clock.
    """

    def __init__(self, checkpoint: Path | str, arguments: list[str]) -> None:
        argv = [sys.executable, "-m", "coldpress.serve", str(checkpoint)]
        argv += ["--host", "127.0.0.1", "--port", "0", *arguments]
        self.started_s = time.monotonic()
        self.process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        self._events: dict[str, dict[str, Any]] = {}
        self._lines: list[str] = []
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def event(self, name: str) -> dict[str, Any]:
        """Wait for an event.

        Raises:
            ToolError: the process ended, or took too long.
        """
        while name not in self._events:
            self.check()
            time.sleep(_POLL_S)
        return self._events[name]

    def check(self) -> None:
        """Raise a ``ToolError`` if it ended or takes too long."""
        if self.process.poll() is not None:
            self.reader.join()
            last = " | ".join(self._lines[-2:])
            raise ToolError(f"the runtime stopped ({self.process.returncode}): {last}", "see above")
        if time.monotonic() - self.started_s > _START_S:
            raise ToolError(f"the runtime gave no answer in {_START_S} s", "try a smaller model")

    def _read(self) -> None:
        if self.process.stderr is None:
            return
        with self.process.stderr as stream:
            for line in stream:
                text = line.decode(errors="replace").strip()
                if text.startswith("{"):
                    event = json.loads(text)
                    self._events[event["event"]] = event
                else:
                    self._lines.append(text)


@contextlib.contextmanager
def started(checkpoint: Path | str, arguments: list[str]) -> Iterator[ColdRuntime]:
    """Start a runtime now, and stop it at the end."""
    runtime = ColdRuntime(checkpoint, arguments)
    try:
        yield runtime
    finally:
        runtime.process.terminate()
        try:
            runtime.process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            runtime.process.kill()
            runtime.process.wait()
        runtime.reader.join()


@contextlib.contextmanager
def post(
    runtime: ColdRuntime, port: int, path: str, body: dict[str, Any]
) -> Iterator[HTTPResponse]:
    """Ask until the runtime is ready; its answer, of which only the head is read."""
    while True:
        runtime.check()
        connection = HTTPConnection("127.0.0.1", port, timeout=_START_S)
        with contextlib.closing(connection):
            try:
                connection.request("POST", path, json.dumps(body))
                response = connection.getresponse()
            except OSError:  # it is ending: ``check`` says why
                time.sleep(_POLL_S)
                continue
            with response:
                if response.status != 503:
                    yield response
                    return
        time.sleep(_POLL_S)
