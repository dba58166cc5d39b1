"""One answer in OpenAI's shapes, whole or in chunks: what both fronts share."""

import hashlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from coldpress.serve import cursor
from coldpress.serve.api import submit
from coldpress.serve.api.fields import ApiError
from coldpress.serve.api.protocol import Request, parse
from coldpress.serve.api.sampling_fields import Kind
from coldpress.serve.api.tools import Call
from coldpress.serve.engine import Engine
from coldpress.serve.generation import (
    Delta,
    Done,
    Emit,
    Event,
    Failed,
    TokenLogprob,
)

ROUTES: dict[str, Kind] = {"/v1/chat/completions": "chat", "/v1/completions": "completion"}
END_OF_STREAM = b"data: [DONE]\n\n"


def to_json(value: object) -> bytes:
    """Compact UTF-8 JSON."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def check_ready(engine: Engine) -> None:
    """Raise an ``ApiError``, 503, unless the engine answers."""
    if engine.failure is not None:
        raise ApiError(503, f"the model cannot answer: {engine.failure.message}", "load_failed")
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
        request, begun = self._begun(engine, parse(kind, body))
        self.request = request
        self._is_chat = kind == "chat"
        self._id = f"{'chatcmpl' if kind == 'chat' else 'cmpl'}-{os.urandom(12).hex()}"
        self._created = int(time.time())
        self._model = engine.model.name
        self._text = ""
        self._logprobs: list[TokenLogprob] = []
        self._calls = submit.call_reader(engine.model, self.request)
        self._generation = submit.submit(engine, request, emit, begun)
        self._n_delivered = len(begun)
        self._resume: str | None = None
        if self._calls:
            self._calls.push(self._generation.said)

    def _begun(self, engine: Engine, request: Request) -> tuple[Request, tuple[int, ...]]:
        """A request with the seed of the answer that it goes on with, and that answer's tokens."""
        model = engine.model
        identity = model.metadata("coldpress.header_sha256") or f"{model.name} {model.size_bytes}"
        self._bound = hashlib.sha256(identity.encode() + request.digest).digest()
        if request.resume is None:
            return request, ()
        try:
            found = cursor.unseal(request.resume, self._bound)
        except cursor.CursorError as error:
            raise ApiError(
                400, f"resume is no good cursor: {error}", "bad_cursor", param="resume"
            ) from error
        return replace(request, options=replace(request.options, seed=found.seed)), found.tokens

    def cancel(self) -> None:
        """Stop generating; nothing happens if it is done already."""
        self._generation.cancel()

    def cut(self) -> Done:
        """Stop generating and end the answer here, with a cursor from which it can go on."""
        self.cancel()
        generation, n = self._generation, self._n_delivered
        first = generation.prompt_tokens
        tokens = tuple(generation.tokens[first : first + n])
        self._resume = cursor.seal(cursor.Cursor(tokens, generation.options.seed), self._bound)
        return replace(generation.done("length"), completion_tokens=n)

    def opening(self) -> bytes:
        """The first chunk of a stream: a chat's says who speaks."""
        if not self._is_chat:
            return b""
        return self._chunk({"delta": {"role": "assistant", "content": ""}}, None)

    def chunk(self, event: Event) -> bytes:
        """An event as server-sent events; after ``Done`` or ``Failed`` the stream is complete."""
        match event:
            case Delta(text, logprobs, n_tokens):
                self._n_delivered = n_tokens
                return self._text_chunk(self._calls.push(text) if self._calls else text, logprobs)
            case Done(reason):
                rest, why = self._rest(reason)
                last = self._chunk(
                    {"delta": {}} if self._is_chat else {"text": ""}, why, more=self._cut_at()
                )
                told = self._usage_chunk(event) if self.request.include_usage else b""
                return rest + last + told + END_OF_STREAM
            case Failed(message):
                return to_event(ApiError(500, message, "engine_failed").body)

    def messages(self, event: Event) -> list[dict[str, Any]]:
        """An event as a WebSocket's messages; after ``Done`` or ``Failed`` the answer is complete."""
        match event:
            case Delta(text, _, n_tokens):
                self._n_delivered = n_tokens
                text = self._calls.push(text) if self._calls else text
                return [{"type": "delta", "text": text}] if text else []
            case Done(reason):
                tail, calls = self._held()
                said: list[dict[str, Any]] = [{"type": "delta", "text": tail}] if tail else []
                if calls:
                    called = [each.plain() for each in calls]
                    said.append({"type": "tool_calls", "tool_calls": called})
                why = "tool_calls" if calls else reason
                done = {"type": "done", "finish_reason": why, "usage": usage(event)}
                return [*said, done | self._cut_at()]
            case Failed(message):
                return [{"type": "error", **ApiError(500, message, "engine_failed").body}]

    def collect(self, event: Event) -> bytes | None:
        """Gather events; the whole body once ``Done`` is there.

        Raises:
            ApiError: 500, the engine failed.
        """
        match event:
            case Delta(text, logprobs, n_tokens):
                self._n_delivered = n_tokens
                self._text += self._calls.push(text) if self._calls else text
                self._logprobs += logprobs
                return None
            case Done(reason):
                return to_json(self._whole(reason, event))
            case Failed(message):
                raise ApiError(500, message, "engine_failed")

    def _held(self) -> tuple[str, tuple[Call, ...]]:
        """What was held back as a call: text after all, or calls."""
        return self._calls.finish() if self._calls else ("", ())

    def _rest(self, reason: str) -> tuple[bytes, str]:
        """What was held back as a call: chunks of it, and the reason why the answer ends."""
        tail, calls = self._held()
        chunks = [self._text_chunk(tail, ())] if tail else []
        for index, call in enumerate(calls):
            delta = {"tool_calls": [{"index": index, **call.plain()}]}
            chunks.append(self._chunk({"delta": delta}, None))
        return b"".join(chunks), "tool_calls" if calls else reason

    def _whole(self, reason: str, done: Done) -> dict[str, Any]:
        tail, calls = self._held()
        text = self._text + tail
        if self._is_chat:
            message: dict[str, Any] = {"role": "assistant", "content": text}
            if calls:
                message |= {"content": text or None, "tool_calls": [each.plain() for each in calls]}
                reason = "tool_calls"
            choice: dict[str, Any] = {"message": message}
        else:
            choice = {"text": text}
        choice |= {"index": 0, "logprobs": self._said(self._logprobs), "finish_reason": reason}
        whole = {**self._head(chunk=False), "choices": [choice], "usage": usage(done)}
        return whole | self._cut_at()

    def _cut_at(self) -> dict[str, Any]:
        """The cursor of an answer that was cut."""
        return {} if self._resume is None else {"resume": self._resume}

    def _text_chunk(self, text: str, logprobs: Sequence[TokenLogprob]) -> bytes:
        if not text and not logprobs:
            return b""
        choice = {"delta": {"content": text}} if self._is_chat else {"text": text}
        return self._chunk(choice, None, logprobs)

    def _chunk(
        self,
        choice: dict[str, Any],
        reason: str | None,
        logprobs: Sequence[TokenLogprob] = (),
        more: dict[str, Any] | None = None,
    ) -> bytes:
        said = self._said(logprobs) if logprobs else None
        whole = {"index": 0, **choice, "logprobs": said, "finish_reason": reason}
        return to_event({**self._head(chunk=True), "choices": [whole], **(more or {})})

    def _said(self, logprobs: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        if self.request.options.logprobs is None:
            return None
        return _logprobs_of_chat(logprobs) if self._is_chat else _logprobs(logprobs)

    def _usage_chunk(self, done: Done) -> bytes:
        return to_event({**self._head(chunk=True), "choices": [], "usage": usage(done)})

    def _head(self, *, chunk: bool) -> dict[str, Any]:
        kind = "text_completion"
        if self._is_chat:
            kind = "chat.completion.chunk" if chunk else "chat.completion"
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._model,
        }


def usage(done: Done) -> dict[str, Any]:
    """An answer's tokens as OpenAI counts them."""
    return {
        "prompt_tokens": done.prompt_tokens,
        "completion_tokens": done.completion_tokens,
        "total_tokens": done.prompt_tokens + done.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": done.reused_tokens},
    }


def to_event(value: object) -> bytes:
    """A server-sent event."""
    return b"data: " + to_json(value) + b"\n\n"


def _logprobs_of_chat(logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
    def said(piece: bytes, logprob: float) -> dict[str, Any]:
        return {"token": _readable(piece), "logprob": logprob, "bytes": list(piece)}

    content = [
        {**said(each.piece, each.logprob), "top_logprobs": [said(*one) for one in each.top]}
        for each in logprobs
    ]
    return {"content": content, "refusal": None}


def _logprobs(logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
    return {
        "tokens": [_readable(each.piece) for each in logprobs],
        "token_logprobs": [each.logprob for each in logprobs],
        "top_logprobs": [{_readable(p): log_p for p, log_p in each.top} for each in logprobs],
    }


def _readable(piece: bytes) -> str:
    return piece.decode(errors="replace")
