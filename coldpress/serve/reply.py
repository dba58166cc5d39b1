"""One answer in OpenAI's shapes, whole or in chunks: what both fronts share."""

import json
import os
import time
from typing import Any

from coldpress.errors import ColdpressError, PromptTooLongError
from coldpress.serve import chat
from coldpress.serve.engine import Engine, QueueFullError
from coldpress.serve.generation import Delta, Done, Emit, Event, Failed, Generation
from coldpress.serve.protocol import ApiError, Kind, Request, parse

ROUTES: dict[str, Kind] = {"/v1/chat/completions": "chat", "/v1/completions": "completion"}
END_OF_STREAM = b"data: [DONE]\n\n"


def to_json(value: object) -> bytes:
    """Compact UTF-8 JSON."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def check_ready(engine: Engine) -> None:
    """Raise an ``ApiError``, 503, unless the engine answers."""
    if engine.failure is not None:
        raise ApiError(503, f"the model cannot be loaded: {engine.failure.message}", "load_failed")
    if not engine.ready:
        raise ApiError(503, "the model is being loaded", "loading", retry_after_s=1)


def models(engine: Engine) -> dict[str, Any]:
    """The body of GET /v1/models."""
    check_ready(engine)
    entry = {"id": engine.model.name, "object": "model", "created": 0, "owned_by": "coldpress"}
    return {"object": "list", "data": [entry]}


class Reply:
    """An answer under way.

    Args:
        emit: receives the engine's events, in the engine's thread.

    Raises:
        ApiError: 503 not ready, 400 or 413 a bad body, 400 too long a prompt, 429 a full queue.
    """

    def __init__(self, engine: Engine, kind: Kind, body: bytes, emit: Emit) -> None:
        check_ready(engine)
        self.request = parse(kind, body)
        self._id = f"{'chatcmpl' if kind == 'chat' else 'cmpl'}-{os.urandom(12).hex()}"
        self._created = int(time.time())
        self._model = engine.model.name
        self._text = ""
        self._generation = _submit(engine, self.request, emit)

    def cancel(self) -> None:
        """Stop generating; nothing happens if it is done already."""
        self._generation.cancel()

    def cut(self) -> Done:
        """Stop generating and end the answer here, as if it had reached its length."""
        self.cancel()
        generation = self._generation
        return Done("length", generation.prompt_tokens, generation.completion_tokens)

    def opening(self) -> bytes:
        """The first chunk of a stream: a chat's says who speaks."""
        if self.request.kind == "completion":
            return b""
        return self._chunk({"delta": {"role": "assistant", "content": ""}}, None)

    def chunk(self, event: Event) -> bytes:
        """An event as server-sent events; after ``Done`` or ``Failed`` the stream is complete."""
        chat = self.request.kind == "chat"
        match event:
            case Delta(text):
                return self._chunk({"delta": {"content": text}} if chat else {"text": text}, None)
            case Done(reason):
                last = self._chunk({"delta": {}} if chat else {"text": ""}, reason)
                usage = self._usage_chunk(event) if self.request.include_usage else b""
                return last + usage + END_OF_STREAM
            case Failed(message):
                return _event(ApiError(500, message, "engine_failed").body)

    def collect(self, event: Event) -> bytes | None:
        """Gather events; the whole body once ``Done`` is there.

        Raises:
            ApiError: 500, the engine failed.
        """
        match event:
            case Delta(text):
                self._text += text
                return None
            case Done(reason):
                return to_json(self._whole(reason, event))
            case Failed(message):
                raise ApiError(500, message, "engine_failed")

    def _whole(self, reason: str, done: Done) -> dict[str, Any]:
        if self.request.kind == "chat":
            choice: dict[str, Any] = {"message": {"role": "assistant", "content": self._text}}
        else:
            choice = {"text": self._text}
        choice |= {"index": 0, "logprobs": None, "finish_reason": reason}
        return {**self._head(chunk=False), "choices": [choice], "usage": _usage(done)}

    def _chunk(self, choice: dict[str, Any], reason: str | None) -> bytes:
        whole = {"index": 0, **choice, "logprobs": None, "finish_reason": reason}
        return _event({**self._head(chunk=True), "choices": [whole]})

    def _usage_chunk(self, done: Done) -> bytes:
        return _event({**self._head(chunk=True), "choices": [], "usage": _usage(done)})

    def _head(self, *, chunk: bool) -> dict[str, Any]:
        kind = "text_completion"
        if self.request.kind == "chat":
            kind = "chat.completion.chunk" if chunk else "chat.completion"
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._model,
        }


def _submit(engine: Engine, request: Request, emit: Emit) -> Generation:
    try:
        return engine.submit(_prompt(engine, request), request.options, emit)
    except PromptTooLongError as error:
        raise ApiError(
            400, error.message, "context_length_exceeded", param=_param(request)
        ) from error
    except QueueFullError as error:
        raise ApiError(429, error.message, "queue_full", retry_after_s=1) from error
    except ColdpressError as error:
        raise ApiError(503, error.message, "stopping", retry_after_s=1) from error


def _prompt(engine: Engine, request: Request) -> list[int]:
    if request.kind == "chat":
        messages = chat.with_system(request.messages, engine.system_prompt)
        tokens = chat.prompt_tokens(engine.model, messages)
    else:
        # What a client writes as plain text stays text: "</s>" in it is no end of text.
        tokens = engine.model.tokenize(request.prompt, add_special=True, parse_special=False)
    if not tokens:
        raise ApiError(400, "the prompt is empty", "invalid_value", param=_param(request))
    return tokens


def _param(request: Request) -> str:
    return "messages" if request.kind == "chat" else "prompt"


def _usage(done: Done) -> dict[str, int]:
    return {
        "prompt_tokens": done.prompt_tokens,
        "completion_tokens": done.completion_tokens,
        "total_tokens": done.prompt_tokens + done.completion_tokens,
    }


def _event(value: object) -> bytes:
    return b"data: " + to_json(value) + b"\n\n"
