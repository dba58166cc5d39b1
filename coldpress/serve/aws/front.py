"""The Lambda front: events in, OpenAI's answers out, in pieces where the caller can take them.

The model loads in the background from the first moment, so that the init phase is short and its
limit of 10 s is never met; the first invocation waits for the rest of the load. A caller who takes
pieces gets a comment every few seconds while it does, so that nothing on the way gives up.

Four callers are known by their events: a function URL (streams), API Gateway's HTTP API (cannot), its
WebSocket API (pieces are sent to the connection) and a direct invocation, whose event is the request
body itself (streams with ``"stream": true``).
"""

import base64
import os
import queue
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any, Literal, assert_never

from coldpress.errors import ColdpressError
from coldpress.serve.api.fields import ApiError
from coldpress.serve.api.protocol import chat_body, parse
from coldpress.serve.api.reply import (
    ROUTES,
    Reply,
    as_message,
    check_ready,
    models,
    to_event,
    to_json,
)
from coldpress.serve.aws import emf
from coldpress.serve.aws.connections import Connection, GoneError
from coldpress.serve.aws.runtime_api import FunctionError, Invocation, ResponseStream, RuntimeApi
from coldpress.serve.engine import Engine
from coldpress.serve.generation import Delta, Done, Event, Failed

_MARGIN_S = 1.0
"""An answer ends so long before the deadline, to be delivered whole."""
_HEARTBEAT_S = 5.0
_GATHER_S = 0.1
"""Text is gathered for so long between two messages of a WebSocket: each is a request of its own."""
_JSON = {"Content-Type": "application/json"}
_EVENTS = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}

Caller = Literal["function_url", "http_api", "direct"]


@dataclass(frozen=True)
class Call:
    """An event, read."""

    caller: Caller
    method: str
    path: str
    body: bytes


def run(engine: Engine, api: RuntimeApi) -> None:
    """Answer invocations for ever.

    Raises:
        ColdpressError: the engine failed; Lambda then starts another environment.
    """
    if os.environ.get("AWS_LAMBDA_INITIALIZATION_TYPE", "on-demand") != "on-demand":
        # Provisioned or to be snapshotted: nobody waits, and what is loaded now stays loaded.
        engine.wait()
    if engine.failure is not None:
        api.fail_init(FunctionError("Coldpress.load_failed", engine.failure.message))
    while engine.failure is None:
        invocation = api.next()
        try:
            _handle(engine, api, invocation)
        except (OSError, HTTPException):
            # The caller is gone, so Lambda closed the connection under the answer.
            api.reset()
    raise engine.failure


def _handle(engine: Engine, api: RuntimeApi, invocation: Invocation) -> None:
    if isinstance(connection := _at(invocation.event, "requestContext", "connectionId"), str):
        _converse(engine, api, invocation, connection)
        return
    try:
        call = _read(invocation.event)
    except ApiError as error:
        api.fail(invocation, FunctionError("Coldpress.BadEvent", str(error)))
        return
    output = _Output(api, invocation, call.caller)
    try:
        if call.method == "POST" and call.path in ROUTES:
            if not engine.settled and _streams(call):
                output.beating(engine, call)
                return
            engine.wait(_left_s(invocation))
            _answer(engine, call, invocation, output)
            return
        engine.wait(_left_s(invocation))
        output.whole(200, _JSON, to_json(_get(engine, call)))
    except ApiError as error:
        output.refuse(error)


def _read(event: Any) -> Call:
    """Tell the callers apart.

    Raises:
        ApiError: it is none of them.
    """
    if not isinstance(event, dict):
        raise ApiError(400, "the event is not a JSON object", "bad_event")
    if isinstance(http := _at(event, "requestContext", "http"), dict):
        domain = str(_at(event, "requestContext", "domainName"))
        buffered = os.environ.get("COLDPRESS_INVOKE_MODE") == "BUFFERED"
        return Call(
            caller="function_url" if ".lambda-url." in domain and not buffered else "http_api",
            method=str(http.get("method")),
            path=str(event.get("rawPath")),
            body=_body(event),
        )
    for field, path in (("messages", "/v1/chat/completions"), ("prompt", "/v1/completions")):
        if field in event:
            return Call("direct", "POST", path, to_json(event))
    raise ApiError(400, "the event has no requestContext, messages or prompt", "bad_event")


def _body(event: dict[str, Any]) -> bytes:
    text = event.get("body") or ""
    try:
        return base64.b64decode(text) if event.get("isBase64Encoded") else text.encode()
    except (ValueError, AttributeError, TypeError) as error:
        raise ApiError(400, "the event's body cannot be read", "bad_event") from error


def _at(event: Any, *keys: str) -> Any:
    value = event
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _get(engine: Engine, call: Call) -> dict[str, Any]:
    match call.method, call.path:
        case "GET", "/v1/models":
            return models(engine)
        case "GET", "/healthz":
            return {"status": "ok"}
        case "GET", "/readyz":
            check_ready(engine)
            return {"status": "ready"}
        case _:
            raise ApiError(404, f"no such route: {call.method} {call.path}", "no_such_route")


def _streams(call: Call) -> bool:
    """Whether the caller takes pieces and asks for them; what is wrong with it is said at once.

    Raises:
        ApiError: 400, 413.
    """
    return call.caller != "http_api" and parse(ROUTES[call.path], call.body).stream


def _answer(engine: Engine, call: Call, invocation: Invocation, output: "_Output") -> None:
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    reply = Reply(engine, ROUTES[call.path], call.body, events.put)
    try:
        if reply.request.stream:
            output.pieces(_until_deadline(engine, events, reply, invocation), reply)
            return
        for event in _until_deadline(engine, events, reply, invocation):
            if (body := reply.collect(event)) is not None:
                output.whole(200, _JSON, body)
    finally:
        reply.cancel()


def _converse(engine: Engine, api: RuntimeApi, invocation: Invocation, connection_id: str) -> None:
    """Answer one message of a WebSocket, to its connection; the invocation itself says only that it is done."""
    event = invocation.event
    if _at(event, "requestContext", "eventType") != "MESSAGE":
        api.respond(invocation, to_json({"statusCode": 200}))
        return
    domain, stage = (str(_at(event, "requestContext", name)) for name in ("domainName", "stage"))
    try:
        client = Connection(domain, stage, connection_id)
        try:
            _say(engine, invocation, client, _body(event))
        finally:
            client.close()
    except GoneError:
        pass
    except (ColdpressError, ApiError, OSError, HTTPException) as error:
        api.fail(invocation, FunctionError("Coldpress.WebSocket", str(error)))
        return
    api.respond(invocation, to_json({"statusCode": 200}))


def _say(engine: Engine, invocation: Invocation, client: Connection, message: bytes) -> None:
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    try:
        engine.wait(_left_s(invocation))
        reply = Reply(engine, "chat", chat_body(message.decode(errors="replace")), events.put)
    except ApiError as error:
        client.send(to_json({"type": "error", **error.body}))
        return
    gathered, sent_s = "", 0.0
    try:
        for event in _until_deadline(engine, events, reply, invocation):
            if isinstance(event, Delta):
                gathered += event.text
            late = time.monotonic() - sent_s >= _GATHER_S
            if gathered and (late or not isinstance(event, Delta)):
                client.send(to_json(as_message(Delta(gathered))))
                gathered, sent_s = "", time.monotonic()
            if not isinstance(event, Delta):
                client.send(to_json(as_message(event)))
    finally:
        reply.cancel()


def _until_deadline(
    engine: Engine,
    events: "queue.SimpleQueue[Event]",
    reply: Reply,
    invocation: Invocation,
) -> Iterator[Event]:
    """The engine's events; short of time, an end as if the answer had reached its length."""
    watch = emf.Stopwatch()
    while True:
        try:
            event = events.get(timeout=_left_s(invocation))
        except queue.Empty:
            event = reply.cut()
        watch.text()
        yield event
        if isinstance(event, Done):
            told = (event.prompt_tokens, event.completion_tokens)
            watch.emit(engine.model.name, invocation.request_id, *told)
        if not isinstance(event, Delta):
            return


def _left_s(invocation: Invocation) -> float:
    return max(0.0, invocation.deadline_s - _MARGIN_S - time.time())


class _Output:
    """Writes an answer in the form that its caller reads."""

    def __init__(self, api: RuntimeApi, invocation: Invocation, caller: Caller) -> None:
        self._api = api
        self._invocation = invocation
        self._caller = caller

    def whole(self, status: int, headers: dict[str, str], body: bytes) -> None:
        """An answer in one piece."""
        prelude: dict[str, Any] = {"statusCode": status, "headers": headers}
        match self._caller:
            case "function_url":
                stream = self._api.stream(self._invocation, prelude)
                stream.write(body)
                stream.close()
            case "http_api":
                self._api.respond(self._invocation, to_json({**prelude, "body": body.decode()}))
            case "direct":
                self._api.respond(self._invocation, body)
            case _:
                assert_never(self._caller)

    def refuse(self, error: ApiError) -> None:
        """An error: an HTTP status where there is HTTP, else a function error."""
        if self._caller == "direct":
            code = error.body["error"]["code"]
            self._api.fail(self._invocation, FunctionError(f"Coldpress.{code}", str(error)))
        else:
            self.whole(error.status, {**_JSON, **error.headers}, to_json(error.body))

    def beating(self, engine: Engine, call: Call) -> None:
        """A stream that is begun before the model is loaded; what fails then is an event of it."""
        stream = self._open()
        failed = None
        try:
            while not engine.settled and _left_s(self._invocation):
                engine.wait(min(_HEARTBEAT_S, _left_s(self._invocation)))
                if not engine.settled:
                    stream.write(b": loading\n\n")
            events: queue.SimpleQueue[Event] = queue.SimpleQueue()
            reply = Reply(engine, ROUTES[call.path], call.body, events.put)
            try:
                stream.write(reply.opening())
                timed = _until_deadline(engine, events, reply, self._invocation)
                failed = _copy(timed, reply, stream)
            finally:
                reply.cancel()
        except ApiError as error:
            stream.write(to_event(error.body))
            failed = FunctionError(f"Coldpress.{error.body['error']['code']}", str(error))
        stream.close(failed)

    def _open(self) -> ResponseStream:
        prelude = {"statusCode": 200, "headers": _EVENTS}
        function_url = self._caller == "function_url"
        return self._api.stream(self._invocation, prelude if function_url else None)

    def pieces(self, events: Iterator[Event], reply: Reply) -> None:
        """An answer as server-sent events, each sent when it is there."""
        if self._caller == "http_api":
            body = reply.opening() + b"".join(map(reply.chunk, events))
            self.whole(200, _EVENTS, body)
            return
        stream = self._open()
        stream.write(reply.opening())
        stream.close(_copy(events, reply, stream))


def _copy(events: Iterator[Event], reply: Reply, stream: ResponseStream) -> FunctionError | None:
    for event in events:
        stream.write(reply.chunk(event))
        if isinstance(event, Failed):
            return FunctionError("Coldpress.engine_failed", event.message)
    return None
