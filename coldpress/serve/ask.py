"""Ask a checkpoint one question as its first user would meet it: by a runtime started cold."""

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any

from coldpress import artifact, libllama
from coldpress.errors import PromptTooLongError, ToolError, UsageError
from coldpress.serve import sse
from coldpress.serve.cold_runtime import ColdRuntime, post, started
from coldpress.serve.load.address import Address, is_address


@dataclass(frozen=True)
class AskOptions:
    """What to ask and how to serve; 0 leaves context and threads to the runtime."""

    prompt: str
    max_tokens: int = 64
    temperature: float = 0.0
    seed: int = 0
    context: int = 0
    threads: int = 0

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise UsageError("the prompt is empty", "ask something")
        if self.max_tokens < 1:
            raise UsageError(f"max_tokens is {self.max_tokens}", "choose 1 or more")


@dataclass(frozen=True)
class Answer:
    """The answer and what it took; times are the client's, ``trace_s`` is the runtime's account."""

    path: str
    prompt: str
    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    cold_start_to_first_token_s: float
    """From the start of the process to the first text."""
    tok_per_s: float
    """Tokens after the first per second."""
    trace_s: dict[str, float]
    timeline: dict[str, tuple[float, float]]
    """What the runtime did from when to when, in seconds since its start."""
    cpu_variant: str
    weights_bytes: int


def plan(
    checkpoint: Path | str, _out: Path, options: AskOptions
) -> tuple[dict[str, Path], dict[str, object]]:
    """The inputs and options that identify the answer; an address is an option."""
    if is_address(str(checkpoint)):
        return {}, {"checkpoint": str(Address(str(checkpoint))), **asdict(options)}
    return {"checkpoint": Path(checkpoint)}, asdict(options)


def ask(checkpoint: Path | str, out: Path, options: AskOptions) -> Answer:
    """Start the runtime in a fresh process, ask, stop it, write ``answer.json``.

    A model without a chat template is given the prompt to continue.

    Raises:
        ToolError: the runtime does not start or does not answer.
        PromptTooLongError: the prompt does not fit the context.
    """
    inputs, plain = plan(checkpoint, out, options)
    tools = {"llama-cpp-python": libllama.version()}
    with artifact.create(out, "serve", inputs=inputs, options=plain, tools=tools) as draft:
        with started(checkpoint, _arguments(options)) as runtime:
            try:
                answer = _ask(runtime, out, options)
            except (OSError, HTTPException) as error:
                raise ToolError(f"the runtime broke off: {error!r}", "try again") from error
        text = json.dumps(asdict(answer), indent=1, ensure_ascii=False)
        (draft.folder / "answer.json").write_text(text + "\n", encoding="utf-8")
    return answer


def _arguments(options: AskOptions) -> list[str]:
    return [
        *("--parallel", "1"),
        *("--context", str(options.context)),
        *("--threads", str(options.threads)),
    ]


def _ask(runtime: ColdRuntime, out: Path, options: AskOptions) -> Answer:
    port = runtime.event("listening")["port"]
    text, reason, first_s, last_s = "", "", 0.0, 0.0
    usage: dict[str, int] = {}
    for chunk in _stream(runtime, port, options):
        usage = chunk.get("usage") or usage
        for choice in chunk["choices"]:
            if piece := choice.get("text") or choice.get("delta", {}).get("content"):
                last_s = time.monotonic()
                first_s = first_s or last_s
                text += piece
            reason = choice["finish_reason"] or reason
    cold = runtime.event("cold_start")
    count = usage.get("completion_tokens", 0)
    return Answer(
        path=str(out),
        prompt=options.prompt,
        text=text.strip(),
        finish_reason=reason,
        prompt_tokens=usage.get("prompt_tokens", 0),
        completion_tokens=count,
        cold_start_to_first_token_s=round(max(first_s - runtime.started_s, 0.0), 4),
        tok_per_s=round((count - 1) / (last_s - first_s), 2) if last_s > first_s else 0.0,
        trace_s={name: seconds for name, seconds in cold.items() if name.endswith("_s")},
        timeline={name: (began, ended) for name, (began, ended) in cold["timeline"].items()},
        cpu_variant=cold["cpu_variant"],
        weights_bytes=cold["weights_bytes"],
    )


def _stream(runtime: ColdRuntime, port: int, options: AskOptions) -> Iterator[dict[str, Any]]:
    """The answer's chunks as they arrive."""
    shared: dict[str, Any] = {
        "max_tokens": options.max_tokens,
        "temperature": options.temperature,
        "seed": options.seed,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    messages = [{"role": "user", "content": options.prompt}]
    with post(runtime, port, "/v1/chat/completions", {"messages": messages, **shared}) as response:
        error = _error(response)
        if error is None:
            yield from sse.chunks(response)
            return
    if error["code"] == "no_chat_template":
        asked = {"prompt": options.prompt, **shared}
        with post(runtime, port, "/v1/completions", asked) as response:
            error = _error(response)
            if error is None:
                yield from sse.chunks(response)
                return
    if error["code"] == "context_length_exceeded":
        raise PromptTooLongError(error["message"], "shorten the prompt, or raise the context")
    raise ToolError(f"the runtime refuses the prompt: {error['message']}", "change the prompt")


def _error(response: HTTPResponse) -> dict[str, Any] | None:
    if response.status == 200:
        return None
    error: dict[str, Any] = json.loads(response.read())["error"]
    return error
