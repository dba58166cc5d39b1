"""Embeddings of texts, by models that say how theirs are pooled."""

import ctypes
import math
from concurrent.futures import Future

from coldpress.errors import PromptTooLongError, UnsupportedModelError
from coldpress.serve.model import DecodeError, Model, context_params

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
        UnsupportedModelError: no memory for it.
    """

    def __init__(self, model: Model, *, cells: int, threads: int) -> None:
        self._model = model
        self._lib = lib = model.lib
        self._cells = cells
        params = context_params(lib)
        params.embeddings = True
        # Pooling sees what is in one batch.
        params.n_ctx = params.n_batch = params.n_ubatch = cells
        params.n_threads = params.n_threads_batch = threads
        self._handle = lib.llama_init_from_model(model.handle, params)
        if not self._handle:
            raise UnsupportedModelError(f"no memory for texts of {cells} tokens", "lower --context")
        self._batch = lib.llama_batch_init(cells, 0, 1)

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
        lib, batch = self._lib, self._batch
        lib.llama_memory_clear(lib.llama_get_memory(self._handle), False)
        for row, token in enumerate(tokens):
            batch.token[row], batch.pos[row], batch.logits[row] = token, row, 1
            batch.n_seq_id[row], batch.seq_id[row][0] = 1, 0
        batch.n_tokens = len(tokens)
        if (status := lib.llama_decode(self._handle, batch)) != 0:
            raise DecodeError(f"llama_decode returned {status}", "try again")
        found = lib.llama_get_embeddings_seq(self._handle, 0)
        values = ctypes.cast(found, ctypes.POINTER(ctypes.c_float))
        made: list[float] = values[: lib.llama_model_n_embd_out(self._model.handle)]
        length = math.sqrt(math.fsum(each * each for each in made)) or 1.0
        return [each / length for each in made]

    def close(self) -> None:
        """Free the context."""
        self._lib.llama_batch_free(self._batch)
        self._lib.llama_free(self._handle)
