"""Evaluate a system prompt once, as the runtime would, and write its KV state with its key.

The engine reads a prompt in chunks of 128 tokens, the state ends where the system prompt ends. That a
chunk cut there has the same bits is a property of the kernels, of this model's types on this CPU; so it
is not assumed but tried here, on the prompt itself, and where a bit differs the state ends at a
multiple of 128.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from coldpress.errors import InputError, UnsupportedModelError
from coldpress.serve import chat, prefix
from coldpress.serve.mapping import load
from coldpress.serve.model import CHUNK_TOKENS, Context, Model
from coldpress.serve.place import shards
from coldpress.serve.protocol import ApiError
from coldpress.serve.threads import usable_cpus

_MAX_BYTES = 4 << 20
# What users write begins differently; what these prompts have in common is the prefix.
_PROBES = ("0", "the", "é", "\n")


@dataclass(frozen=True)
class Prefix:
    """The state that was written: how many tokens it holds, and its files."""

    n_tokens: int
    size_bytes: int
    state: Path
    key: Path


def read_text(path: Path) -> str:
    """The system prompt in a file, without the white space around it.

    Raises:
        InputError: there is none, or it is no text, empty or very long.
    """
    try:
        raw = path.read_bytes()
        text = raw.decode().strip()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}", "give a text file") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text", "give a text file") from error
    if not text or len(raw) > _MAX_BYTES:
        raise InputError(f"{path} has {len(raw)} bytes", f"give a text of 1 to {_MAX_BYTES} bytes")
    return text


def build(gguf: Path, system_prompt: str, folder: Path) -> Prefix:
    """Write ``prefix.kv`` and ``prefix.json`` of a checkpoint's model into ``folder``.

    Raises:
        InputError: the model has no chat template, no digests, or the prompt does not fit.
        UnsupportedModelError: its memory is not a plain KV cache.
    """
    model = load(shards(gguf), str(gguf))
    if not model.metadata("coldpress.header_sha256"):
        raise InputError(f"{gguf} carries no digests", "run `coldpress checkpoint` on it")
    if not model.keeps_whole_context:
        raise UnsupportedModelError(
            "this model's memory forgets: the state of a prefix cannot be kept",
            "leave --system-prompt out",
        )
    tokens = _common_tokens(model, system_prompt)
    if len(tokens) + CHUNK_TOKENS > model.context_tokens:
        raise InputError(
            f"the system prompt has {len(tokens)} tokens, the model's context holds "
            f"{model.context_tokens}",
            "shorten it",
        )
    state = _evaluate(model, tokens)
    shipped = prefix.Shipped(
        system_prompt=system_prompt,
        tokens=tokens[: state.n_tokens],
        size_bytes=len(state.data),
        kv_sha256=hashlib.sha256(state.data).hexdigest(),
        key=prefix.key(model),
    )
    (folder / prefix.STATE_NAME).write_bytes(state.data)
    (folder / prefix.KEY_NAME).write_bytes(shipped.encode())
    return Prefix(
        state.n_tokens, len(state.data), folder / prefix.STATE_NAME, folder / prefix.KEY_NAME
    )


def _common_tokens(model: Model, system_prompt: str) -> list[int]:
    """The tokens with which every chat under this system prompt begins."""
    try:
        prompts = [
            chat.prompt_tokens(
                model, chat.with_system(({"role": "user", "content": probe},), system_prompt)
            )
            for probe in _PROBES
        ]
    except ApiError as error:
        raise InputError(
            f"the system prompt cannot be rendered: {error}", "see its template"
        ) from error
    count = 0
    while len({tuple(prompt[: count + 1]) for prompt in prompts}) == 1 and count < len(prompts[0]):
        count += 1
    return prompts[0][:count]


@dataclass(frozen=True)
class _State:
    n_tokens: int
    data: bytes


def _evaluate(model: Model, tokens: list[int]) -> _State:
    """The state of as many of the tokens as can be kept without changing a bit of what follows.

    Raises:
        InputError: of none.
    """
    count = len(tokens)
    if count % CHUNK_TOKENS < prefix.MIN_ROWS or not _cut_is_invisible(model, tokens):
        count -= count % CHUNK_TOKENS
    if count == 0:
        raise InputError(
            f"the system prompt has {len(tokens)} tokens", "too few to keep; leave it out"
        )
    whole = list(range(CHUNK_TOKENS, count, CHUNK_TOKENS))
    return _State(count, _read(model, tokens[:count], [*whole, count])[0])


def _cut_is_invisible(model: Model, tokens: list[int]) -> bool:
    """Whether chunks as the engine cuts them after the tokens have the bits of whole ones.

    It cuts at the end of the tokens, or a few before it; and goes on to the chunk's end or past it.
    """
    count = len(tokens)
    border = count + CHUNK_TOKENS - count % CHUNK_TOKENS
    end = border + prefix.MIN_ROWS
    filled = (tokens * (end // count + 1))[:end]
    whole = [*range(CHUNK_TOKENS, border, CHUNK_TOKENS)]
    late = border - prefix.MIN_ROWS
    expected = _read(model, filled, [*whole, border, end])
    others = ([min(count, late), border, end], [late, border, end], [count, end])
    return all(_read(model, filled, [*whole, *cuts]) == expected for cuts in others)


def _read(model: Model, tokens: list[int], ends: list[int]) -> tuple[bytes, bytes]:
    """Read tokens in chunks that end at ``ends``; the KV state and the last logits."""
    context = Context(model, cells=len(tokens), sequences=1, threads=usable_cpus())
    try:
        start = row = 0
        for end in ends:
            row = context.add(tokens[start:end], start, 0, wanted=end == ends[-1])
            context.decode()
            start = end
        return context.state(0), context.logits(row)
    finally:
        context.close()
