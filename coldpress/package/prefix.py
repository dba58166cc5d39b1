"""Evaluate a system prompt once, as the runtime would, and write its KV state with its key.

An image runs on CPUs that are not this one. Kernels of another instruction set may round otherwise,
so each backend that this CPU can run evaluates the prompt too, and the key lists those whose state
has the same bits: with quantized weights, usually all that have AVX-512.
"""

import hashlib
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coldpress import libllama, tools
from coldpress.errors import InputError, ToolError, UnsupportedModelError
from coldpress.package import prefix_state
from coldpress.package.prefix_state import State
from coldpress.serve import prefix
from coldpress.serve.api import template
from coldpress.serve.api.fields import ApiError
from coldpress.serve.load.mapping import load
from coldpress.serve.load.place import shards
from coldpress.serve.model import CHUNK_TOKENS, Model
from coldpress.serve.options import DEFAULT_CONTEXT

_MAX_BYTES = 4 << 20
_TIMEOUT_S = 3600
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
    limit = min(DEFAULT_CONTEXT, model.context_tokens)
    if len(tokens) + CHUNK_TOKENS > limit:
        raise InputError(
            f"the system prompt has {len(tokens)} tokens, the context holds {limit}", "shorten it"
        )
    state = prefix_state.evaluate(model, tokens)
    shipped = prefix.Shipped(
        system_prompt=system_prompt,
        tokens=tokens[: state.n_tokens],
        size_bytes=len(state.data),
        kv_sha256=hashlib.sha256(state.data).hexdigest(),
        key=prefix.key(model) | {"cpus": _cpus(gguf, tokens, model, state)},
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
            template.prompt_tokens(
                model, template.with_system(({"role": "user", "content": probe},), system_prompt)
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


def _cpus(gguf: Path, tokens: list[int], model: Model, state: State) -> list[dict[str, str]]:
    """The CPU backends, ours first, that give the same state bit for bit, tried on this CPU."""
    found = [prefix.cpu()]
    probe = prefix_state.probe(model, tokens)
    for backend in libllama.backends():
        if not backend.stem.endswith(f"-{found[0]['variant']}"):
            tried = _try(backend, gguf, tokens, probe)
            found += [tried["cpu"]] if tried.get("digest") == state.digest else []
    return found


def _try(backend: Path, gguf: Path, tokens: list[int], probe: str) -> dict[str, Any]:
    """What a backend makes of the tokens; nothing where it differs or does not run on this CPU."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(tokens, file)
        file.flush()
        worker = [sys.executable, "-m", "coldpress.package.prefix_worker"]
        try:
            said = tools.run([*worker, backend, gguf, file.name, probe], timeout_s=_TIMEOUT_S)
        except ToolError:  # it announces instructions that this machine does not have
            return {}
    found: dict[str, Any] = json.loads(said or "{}")
    return found
