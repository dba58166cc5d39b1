"""One request on its way through the engine, and what comes out of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from coldpress.serve.constraint import GrammarError
from coldpress.serve.sampling import GenerateOptions, Sampler
from coldpress.serve.speculation import Speculation
from coldpress.serve.text import TextStream

if TYPE_CHECKING:
    from coldpress.serve.model import Model


@dataclass(frozen=True)
class TokenLogprob:
    """A token's bytes and log-probability, in nats; ``top``: the likeliest tokens there."""

    piece: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...]


@dataclass(frozen=True)
class Delta:
    """The next piece of an answer's text, and its tokens' log-probabilities where asked for.

    ``completion_tokens``: those of the answer so far, this text's among them.
    """

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    completion_tokens: int = 0

    def __add__(self, later: "Delta") -> "Delta":
        """Both as one piece."""
        return Delta(
            self.text + later.text, self.logprobs + later.logprobs, later.completion_tokens
        )


@dataclass(frozen=True)
class Done:
    """The end of an answer; ``completion_tokens`` does not count the end-of-text token.

    ``reused_tokens``: those of the prompt that did not have to be read; ``begun_tokens``: those of the
    answer that were made elsewhere, before it was cut.
    """

    reason: Literal["stop", "length"]
    prompt_tokens: int
    completion_tokens: int
    reused_tokens: int = 0
    begun_tokens: int = 0

    @property
    def made_tokens(self) -> int:
        """Those of the answer that were made here."""
        return self.completion_tokens - self.begun_tokens


@dataclass(frozen=True)
class Failed:
    """The answer cannot be finished."""

    message: str


class NotResumableError(ValueError):
    """What is said to be the beginning of an answer is not."""


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
        self.tokens = list(prompt)
        """The prompt and the answer so far; others may read it while it grows."""
        self.prompt_tokens = len(prompt)
        self.max_tokens = max_tokens
        self.options = options
        self.text = TextStream(options.stop)
        self.position = 0
        """Tokens in the KV cache."""
        self.reused_tokens = 0
        """Tokens of the prompt that were in a KV cache already."""
        self.chunk_end = 0
        """Where the chunk after a restored prefix ends."""
        self.sequence = -1
        self.sampler = sampler
        self.logprobs: list[TokenLogprob] = []
        """Of tokens whose text is not out yet."""
        self.begun_tokens = 0
        """Tokens of the answer that were made elsewhere."""
        self.said = ""
        """Their text, which was emitted there."""
        self.speculation: Speculation | None = None
        self.cancelled = False
        self._spelled = frozenset(options.spelled)
        self._emit = emit

    @property
    def completion_tokens(self) -> int:
        """Tokens of the answer so far."""
        return len(self.tokens) - self.prompt_tokens

    @property
    def left(self) -> int:
        """Tokens that the answer may still have."""
        return self.max_tokens - self.completion_tokens

    @property
    def reading(self) -> bool:
        """Whether some of its prompt is not read yet, besides its last token."""
        return self.position < self.prompt_tokens and len(self.tokens) - self.position > 1

    def next_chunk(self, size: int) -> int:
        """How many tokens of the prompt to read now.

        Chunks end at multiples of ``size``, whoever else is there.
        """
        chunk = max(self.chunk_end - self.position, 0) or size - self.position % size
        return min(chunk, self.prompt_tokens - self.position)

    def skip(self, count: int, chunk_end: int = 0) -> None:
        """So many tokens of the prompt are in the KV cache already."""
        self.position = self.reused_tokens = count
        self.chunk_end = chunk_end

    def go_on_from(self, model: "Model", answered: Sequence[int]) -> None:
        """Take the beginning of the answer from elsewhere; its text counts as emitted.

        Raises:
            NotResumableError: it is not the beginning of this answer.
        """
        self.begun_tokens = len(answered)
        try:
            for token in answered:
                self.sampler.accept(token)
                self.said += self.push(model, token)
        except GrammarError as error:
            raise NotResumableError(f"the answer does not follow its form: {error}") from error
        if self.text.stopped or self.sampler.finished or self.left < 1:
            raise NotResumableError("the answer is complete")

    def push(self, model: "Model", token: int) -> str:
        """Add a token to the answer; the text that is now certain."""
        self.tokens.append(token)
        written = token in self._spelled
        return self.text.push(model.spelled(token) if written else model.piece(token))

    def done(self, reason: Literal["stop", "length"]) -> Done:
        """The end, with what was counted."""
        return Done(
            reason,
            self.prompt_tokens,
            self.completion_tokens,
            self.reused_tokens,
            self.begun_tokens,
        )

    def delta(self, text: str) -> Delta:
        """Text that is certain, with the log-probabilities of the tokens since the last."""
        done, self.logprobs = tuple(self.logprobs), []
        return Delta(text, done, self.completion_tokens)

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
