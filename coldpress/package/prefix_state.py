"""The KV state of a system prompt, of as many tokens as leave every later bit as it would be.

The engine reads a prompt in chunks of 128 tokens; the state ends where the system prompt ends. That a
chunk cut there has the same bits is a property of the kernels, of this model's types on this CPU; so it
is not assumed but tried here, on the prompt itself, and where a bit differs the state ends at a
multiple of 128.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from coldpress.serve import prefix
from coldpress.serve.model import CHUNK_TOKENS, Context, Model
from coldpress.serve.threads import usable_cpus


@dataclass(frozen=True)
class State:
    """llama.cpp's state of a sequence after ``n_tokens``."""

    n_tokens: int
    data: bytes

    @property
    def digest(self) -> str:
        """Sha256 over both."""
        return hashlib.sha256(self.n_tokens.to_bytes(8, "little") + self.data).hexdigest()


def probe(model: Model, tokens: list[int]) -> str:
    """Digest of the state after the first few tokens: kernels that round otherwise show at once."""
    few = tokens[: 2 * prefix.MIN_ROWS]
    reader = _Reader(model, few, 0)
    try:
        return State(len(few), reader.read([len(few)])[0]).digest
    finally:
        reader.close()


def evaluate(model: Model, tokens: list[int]) -> State:
    """Read the tokens as the engine does; of few tokens none can be kept."""
    whole = len(tokens) - len(tokens) % CHUNK_TOKENS
    border, end = whole + CHUNK_TOKENS, whole + CHUNK_TOKENS + prefix.MIN_ROWS
    filled = (tokens * (end // len(tokens) + 1))[:end]
    reader = _Reader(model, filled, whole)
    try:
        count = len(tokens)
        if count - whole < prefix.MIN_ROWS or not _cut_is_invisible(reader, count, border, end):
            count = whole
        if count == 0:
            return State(0, b"")
        return State(count, reader.read([count])[0] if count > whole else reader.base)
    finally:
        reader.close()


def _cut_is_invisible(reader: "_Reader", count: int, border: int, end: int) -> bool:
    """Whether chunks as the engine cuts them after ``count`` tokens have the bits of whole ones.

    It cuts there, or a few tokens before; and goes on to the chunk's end or past it.
    """
    late = border - prefix.MIN_ROWS
    expected = reader.read([border, end])
    others = ([min(count, late), border, end], [late, border, end], [count, end])
    return all(reader.read(cuts) == expected for cuts in others)


class _Reader:
    """A context in which the first ``start`` tokens, whole chunks, are read once for all readings."""

    def __init__(self, model: Model, tokens: list[int], start: int) -> None:
        self._tokens = tokens
        self._start = start
        self._context = Context(model, cells=len(tokens), sequences=1, threads=usable_cpus())
        self.base = b""
        if start:
            self._decode(0, range(CHUNK_TOKENS, start + 1, CHUNK_TOKENS))
            self.base = self._context.state(0)

    def read(self, ends: Sequence[int]) -> tuple[bytes, bytes]:
        """Read on in chunks that end at ``ends``; the KV state and the last logits."""
        self._context.forget(0)
        if self._start:
            state = prefix.widen(bytearray(self.base), 1)
            self._context.restore(0, state, self._start)
        row = self._decode(self._start, ends)
        return self._context.state(0), self._context.logits(row).tobytes()

    def _decode(self, start: int, ends: Sequence[int]) -> int:
        row = 0
        for end in ends:
            row = self._context.add(self._tokens[start:end], start, 0, wanted=1)
            self._context.decode()
            start = end
        return row

    def close(self) -> None:
        """Free the context."""
        self._context.close()
