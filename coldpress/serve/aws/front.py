"""The Lambda front: events in, OpenAI's answers out, in pieces where the caller can take them.

The model loads in the background from the first moment, so that the init phase is short and its
limit of 10 s is never met; the first invocation waits for the rest of the load. A caller who takes
pieces gets a comment every few seconds while it does, so that nothing on the way gives up.

Four callers are known by their events: a function URL (streams), API Gateway's HTTP API (cannot), its
WebSocket API (pieces are sent to the connection) and a direct invocation, whose event is the request
body itself (streams with ``"stream": true``).
"""

import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any, Literal, assert_never

from coldpress.serve.api.fields import ApiError
from coldpress.serve.api.protocol import parse
from coldpress.serve.api.reply import (
    ROUTES,
    Reply,
    check_ready,
    models,
    to_event,
    to_json,
)
from coldpress.serve.aws.conversation import converse
from coldpress.serve.aws.deadline import left_s, replying
from coldpress.serve.aws.event import at, body_of
from coldpress.serve.aws.runtime_api import FunctionError, Invocation, ResponseStream, RuntimeApi
from coldpress.serve.engine import Engine
from coldpress.serve.generation import Event, Failed

_HEARTBEAT_S = 5.0
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
    started = os.environ.get("AWS_LAMBDA_INITIALIZATION_TYPE", "on-demand")
    if started != "on-demand":
        # Provisioned or to be snapshotted: nobody waits, and what is loaded now stays loaded.
        engine.wait()
    if engine.failure is not None:
        api.fail_init(FunctionError("Coldpress.load_failed", engine.failure.message))
    elif started == "snap-start":
        # Seeds, ids and keys come from the kernel when they are needed, so that copies of this
        # process draw different ones; Python's own generator is a part of the copy.
        api.restored()
        random.seed()
    while engine.failure is None:
        invocation = api.next()
        try:
            _handle(engine, api, invocation)
        except (OSError, HTTPException):
            # The caller is gone, so Lambda closed the connection under the answer.
            api.reset()
    raise engine.failure


def _handle(engine: Engine, api: RuntimeApi, invocation: Invocation) -> None:
    if isinstance(connection := at(invocation.event, "requestContext", "connectionId"), str):
        converse(engine, api, invocation, connection)
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
            engine.wait(left_s(invocation))
            _answer(engine, call, invocation, output)
            return
        engine.wait(left_s(invocation))
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
    if isinstance(http := at(event, "requestContext", "http"), dict):
        domain = str(at(event, "requestContext", "domainName"))
        buffered = os.environ.get("COLDPRESS_INVOKE_MODE") == "BUFFERED"
        return Call(
            caller="function_url" if ".lambda-url." in domain and not buffered else "http_api",
            method=str(http.get("method")),
            path=str(event.get("rawPath")),
            body=body_of(event),
        )
    for field, path in (("messages", "/v1/chat/completions"), ("prompt", "/v1/completions")):
        if field in event:
            return Call("direct", "POST", path, to_json(event))
    raise ApiError(400, "the event has no requestContext, messages or prompt", "bad_event")


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
    with replying(engine, ROUTES[call.path], call.body, invocation) as (reply, events):
        if reply.request.stream:
            output.pieces(events, reply)
            return
        for event in events:
            if (body := reply.collect(event)) is not None:
                output.whole(200, _JSON, body)


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
            while not engine.settled and left_s(self._invocation):
                engine.wait(min(_HEARTBEAT_S, left_s(self._invocation)))
                if not engine.settled:
                    stream.write(b": loading\n\n")
            kind = ROUTES[call.path]
            with replying(engine, kind, call.body, self._invocation) as (reply, events):
                failed = _copy(events, reply, stream)
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
        stream.close(_copy(events, reply, stream))


def _copy(events: Iterator[Event], reply: Reply, stream: ResponseStream) -> FunctionError | None:
    stream.write(reply.opening())
    for event in events:
        stream.write(reply.chunk(event))
        if isinstance(event, Failed):
            return FunctionError("Coldpress.engine_failed", event.message)
    return None
