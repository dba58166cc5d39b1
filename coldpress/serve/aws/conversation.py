"""API Gateway's WebSockets: each message is an invocation, answered by messages to its connection."""

import time
from http.client import HTTPException
from typing import Any

from coldpress.errors import ColdpressError
from coldpress.serve.api.fields import ApiError
from coldpress.serve.api.protocol import chat_body
from coldpress.serve.api.reply import to_json
from coldpress.serve.aws.connections import Connection, GoneError
from coldpress.serve.aws.deadline import left_s, replying
from coldpress.serve.aws.event import at, body_of
from coldpress.serve.aws.runtime_api import FunctionError, Invocation, RuntimeApi
from coldpress.serve.engine import Engine

_GATHER_S = 0.1
"""Text is gathered for so long between two messages: each is a request of its own."""


def converse(engine: Engine, api: RuntimeApi, invocation: Invocation, connection_id: str) -> None:
    """Answer one message; the invocation itself says only that it is done."""
    context = at(invocation.event, "requestContext")
    if at(context, "eventType") != "MESSAGE":
        api.respond(invocation, to_json({"statusCode": 200}))
        return
    try:
        client = Connection(
            str(at(context, "domainName")), str(at(context, "stage")), connection_id
        )
        try:
            _say(engine, invocation, client, body_of(invocation.event))
        finally:
            client.close()
    except GoneError:
        pass
    except (ColdpressError, ApiError, OSError, HTTPException) as error:
        api.fail(invocation, FunctionError("Coldpress.WebSocket", str(error)))
        return
    api.respond(invocation, to_json({"statusCode": 200}))


def _say(engine: Engine, invocation: Invocation, client: Connection, message: bytes) -> None:
    engine.wait(left_s(invocation))
    body = chat_body(message.decode(errors="replace"))
    out = _Gathered(client)
    try:
        with replying(engine, "chat", body, invocation) as (reply, events):
            for event in events:
                for said in reply.messages(event):
                    out.send(said)
    except ApiError as error:
        out.send({"type": "error", **error.body})


class _Gathered:
    """Sends messages, text not more often than every ``_GATHER_S``."""

    def __init__(self, client: Connection) -> None:
        self._client = client
        self._text = ""
        self._sent_s = 0.0

    def send(self, message: dict[str, Any]) -> None:
        """Send a message after the text before it; text itself may wait."""
        if message["type"] == "delta":
            self._text += message["text"]
            if time.monotonic() - self._sent_s >= _GATHER_S:
                self._flush()
            return
        self._flush()
        self._client.send(to_json(message))

    def _flush(self) -> None:
        if self._text:
            self._client.send(to_json({"type": "delta", "text": self._text}))
            self._text, self._sent_s = "", time.monotonic()
