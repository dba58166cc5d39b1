"""One request on its way through the engine, and what comes out of it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from coldpress.serve.sampling import GenerateOptions, Sampler
from coldpress.serve.text import TextStream


@dataclass(frozen=True)
class TokenLogprob:
    """A token's bytes and log-probability, in nats; ``top``: the likeliest tokens there."""

    piece: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...]


@dataclass(frozen=True)
class Delta:
    """The next piece of an answer's text, and its tokens' log-probabilities where asked for."""

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Done:
    """The end of an answer; ``completion_tokens`` does not count the end-of-text token."""

    reason: Literal["stop", "length"]
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Failed:
    """The answer cannot be finished."""

    message: str


Event = Delta | Done | Failed
Emit = Callable[[Event], None]


class Generation:
    """Only the engine's worker changes it, but for ``cancel``.

    Args:
        prompt: tokens, at least one.
        max_tokens: what is asked for, cut to what the context leaves.
        sampler: chooses its tokens.
        emit: called from the worker's thread: ``Delta``s, then one ``Done`` or ``Failed``.
    """

    def __init__(
        self,
        prompt: list[int],
        max_tokens: int,
        options: GenerateOptions,
        sampler: Sampler,
        emit: Emit,
    ) -> None:
        self.prompt_tokens = len(prompt)
        self.max_tokens = max_tokens
        self.completion_tokens = 0
        self.text = TextStream(options.stop)
        self.spelled = frozenset(options.spelled)
        self.pending = prompt
        """Tokens that are not yet in the KV cache."""
        self.position = 0
        """Tokens that are."""
        self.chunk_end = 0
        """Where the chunk after a restored prefix ends."""
        self.sequence = -1
        self.sampler = sampler
        self.logprobs: list[TokenLogprob] = []
        """Of tokens whose text is not out yet."""
        self.cancelled = False
        self._emit = emit

    @property
    def answering(self) -> bool:
        """Whether its prompt is read but for the last token."""
        return len(self.pending) == 1

    def next_chunk(self, size: int) -> int:
        """How many tokens to read now: chunks end at multiples of ``size``, whoever else is there."""
        return max(self.chunk_end - self.position, 0) or size - self.position % size

    def take(self, count: int) -> list[int]:
        """Remove and return the next tokens to decode, at most ``count``."""
        taken, self.pending = self.pending[:count], self.pending[count:]
        self.position += len(taken)
        return taken

    def delta(self, text: str) -> Delta:
        """Text that is certain, with the log-probabilities of the tokens since the last."""
        done, self.logprobs = tuple(self.logprobs), []
        return Delta(text, done)

    def cancel(self) -> None:
        """Stop before the next step; nothing more is emitted. From any thread, at any time."""
        self.cancelled = True

    def emit(self, event: Event) -> None:
        """Hand an event over; a receiver that is gone cancels the generation."""
        if self.cancelled:
            return
        try:
            self._emit(event)
        except Exception:
            # For example the front's event loop is closed: nobody is left to be told.
            self.cancelled = True
