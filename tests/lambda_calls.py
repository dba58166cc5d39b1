"""Invocations of a runtime in tests: what it answered, and when each piece came."""

import json
import time
from dataclasses import dataclass
from email.message import Message
from typing import Any

from coldpress.serve.aws.runtime_api import FunctionError
from coldpress.serve.aws.runtime_server import Call, Cut, RuntimeServer


@dataclass(frozen=True)
class Answer:
    """A call's whole answer; the chunks with seconds since the epoch."""

    headers: Message
    chunks: list[tuple[float, bytes]]
    failure: FunctionError | None

    @property
    def body(self) -> bytes:
        """All of it."""
        return b"".join(data for _, data in self.chunks)


def send(api: RuntimeServer, event: Any, seconds: float = 60, cut: Cut | None = None) -> Call:
    """Queue an event."""
    return api.send(event if isinstance(event, bytes) else json.dumps(event).encode(), seconds, cut)


def collect(call: Call) -> Answer:
    """Wait for what the runtime makes of it."""
    chunks = [(time.time(), piece) for piece in call.pieces()]
    return Answer(call.headers, chunks, call.failure)


def invoke(api: RuntimeServer, event: Any, seconds: float = 60, cut: Cut | None = None) -> Answer:
    """Send an event and wait for the answer."""
    return collect(send(api, event, seconds, cut))
