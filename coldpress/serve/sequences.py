"""Which sequence of the KV cache belongs to whom, and what of earlier prompts it still holds.

Only whole chunks of prompts are kept: a later prompt that begins with them would be cut there too, so
its answer is the same, bit for bit, as if it had been read from its beginning.
"""

from heapq import heappop, heappush

from coldpress.serve.generation import Generation
from coldpress.serve.model import CHUNK_TOKENS, Context
from coldpress.serve.prefix import State
from coldpress.serve.speculation import n_common


class Sequences:
    """A context's sequences.

    Args:
        keeps: whether the model's memory can keep the first part of what it has read.
        prefix: the state that was shipped with the model.
    """

    def __init__(self, context: Context, count: int, *, keeps: bool, prefix: State | None) -> None:
        self._context = context
        self._keeps = keeps
        self._prefix = prefix
        self._free = list(range(count))
        self._cached: list[list[int]] = [[] for _ in range(count)]
        """Of each sequence, the prompt's whole chunks that are in the cache."""

    @property
    def n_free(self) -> int:
        """Sequences that nobody has."""
        return len(self._free)

    def take(self, generation: Generation) -> bool:
        """Give a generation the lowest free sequence, with what is known of its prompt.

        llama.cpp decodes neighbouring sequences together and others one after the other.

        Returns false if llama.cpp refuses the shipped state; it is not tried again.
        """
        sequence = generation.sequence = heappop(self._free)
        prompt = generation.tokens[: generation.prompt_tokens]
        source, keep = self._longest(prompt, sequence)
        shipped, end = self._prefix.shipped.start(prompt) if self._prefix else (0, 0)
        accepted = True
        if self._prefix and shipped > keep:
            self._context.forget(sequence)
            accepted = self._context.restore(sequence, self._prefix.buffer, shipped)
            if accepted:
                generation.skip(shipped, end)
            else:
                self._prefix = None
        else:
            if source != sequence:
                self._context.copy(source, sequence)
            self._context.forget(sequence, keep)
            generation.skip(keep)
        self.note(generation)
        return accepted

    def note(self, generation: Generation) -> None:
        """A generation has read more of its prompt."""
        if self._keeps:
            read = min(generation.position, generation.prompt_tokens)
            whole = generation.tokens[: read // CHUNK_TOKENS * CHUNK_TOKENS]
            self._cached[generation.sequence] = whole

    def give_back(self, generation: Generation, *, sound: bool = True) -> None:
        """Free a generation's sequence; ``sound``: what the cache has of its prompt can be used."""
        sequence = generation.sequence
        if not sound:
            self._cached[sequence] = []
        self._context.forget(sequence, len(self._cached[sequence]))
        heappush(self._free, sequence)

    def _longest(self, prompt: list[int], sequence: int) -> tuple[int, int]:
        """The sequence that has most of a prompt's whole chunks, and how many tokens that are.

        At least one token is left to be read.
        """
        chunks = [n_common(each, prompt[:-1]) // CHUNK_TOKENS for each in self._cached]
        source = max(range(len(chunks)), key=lambda one: (chunks[one], one == sequence))
        return source, chunks[source] * CHUNK_TOKENS
