"""Embeddings of texts, by models that say how theirs are pooled."""

import math
from concurrent.futures import Future

from coldpress.errors import PromptTooLongError, UnsupportedModelError
from coldpress.serve.model import Context, Model

_POOLINGS = {"1", "2", "3"}
"""Mean, first token, last token, as ``ARCHITECTURE.pooling_type`` says them; a reranker's is another."""


class Text:
    """Tokens on their way to an embedding."""

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = tokens
        self.done: Future[list[float]] = Future()


def check(model: Model) -> None:
    """Make sure that a model was trained for embeddings.

    Raises:
        UnsupportedModelError: it does not say so.
    """
    architecture = model.metadata("general.architecture")
    if model.metadata(f"{architecture}.pooling_type") not in _POOLINGS:
        raise UnsupportedModelError(
            "this model makes no embeddings: it names no pooling", "serve an embedding model"
        )


class Embedder:
    """A context of its own, for one text at a time.

    Args:
        cells: tokens of the longest text.

    Raises:
        ColdpressError: no memory for it.
    """

    def __init__(self, model: Model, *, cells: int, threads: int) -> None:
        self._cells = cells
        self._context = Context(model, cells=cells, sequences=1, threads=threads, embeds=True)

    def embed(self, tokens: list[int]) -> list[float]:
        """A text's embedding, of length 1.

        Raises:
            PromptTooLongError: it does not fit.
            DecodeError: llama.cpp could not compute it.
        """
        if not 0 < len(tokens) <= self._cells:
            raise PromptTooLongError(
                f"a text has {len(tokens)} tokens, the context holds {self._cells}", "shorten it"
            )
        self._context.forget(0)
        self._context.add(tokens, 0, 0, wanted=len(tokens))
        self._context.decode()
        made = self._context.embedding(0)
        length = math.hypot(*made) or 1.0
        return [each / length for each in made]

    def close(self) -> None:
        """Free the context."""
        self._context.close()
