"""A smaller model of the same vocabulary, which guesses what the served one will choose."""

from pathlib import Path

from coldpress.errors import UnsupportedModelError
from coldpress.serve.load.mapping import load
from coldpress.serve.load.place import shards
from coldpress.serve.model import CHUNK_TOKENS, Context, DecodeError, Model
from coldpress.serve.speculation import n_common


class DraftModel:
    """Guesses the likeliest tokens. It has one sequence, which follows whichever answer runs.

    Args:
        gguf: a local file.
        model: whose tokens are guessed.
        cells: tokens of prompt and answer together.

    Raises:
        ColdpressError: it cannot be loaded, or has another vocabulary.
    """

    def __init__(self, gguf: Path, model: Model, cells: int, threads: int) -> None:
        self._model = load(shards(gguf), str(gguf))
        if _vocabulary(self._model) != _vocabulary(model):
            raise UnsupportedModelError(
                f"{gguf} has another vocabulary than the model", "give a draft model of its family"
            )
        if not self._model.keeps_whole_context:
            raise UnsupportedModelError(
                f"{gguf} cannot take back a token", "give a draft model with a plain KV cache"
            )
        self._context = Context(self._model, cells=cells, sequences=1, threads=threads)
        self._lib = self._model.lib
        self._likeliest = self._lib.llama_sampler_init_greedy()
        self._cached: list[int] = []

    def guess(self, tokens: list[int], most: int) -> list[int]:
        """See ``Guesser``."""
        guesses: list[int] = []
        try:
            row = self._read(tokens)
            while True:
                token = self._context.sample(self._likeliest, row)
                if self._model.is_end(token):
                    break
                guesses.append(token)
                if len(guesses) == most:
                    break
                row = self._decode([token])
        except DecodeError:
            self._forget(0)
        return guesses

    def _read(self, tokens: list[int]) -> int:
        """Bring the cache to these tokens; the last one's row."""
        self._forget(min(n_common(self._cached, tokens), len(tokens) - 1))
        row = 0
        while unread := tokens[len(self._cached) :]:
            row = self._decode(unread[:CHUNK_TOKENS])
        return row

    def _decode(self, tokens: list[int]) -> int:
        row = self._context.add(tokens, len(self._cached), 0, wanted=1)
        self._context.decode()
        self._cached += tokens
        return row

    def _forget(self, keep: int) -> None:
        self._context.forget(0, keep)
        del self._cached[keep:]

    def close(self) -> None:
        """Free the context."""
        self._context.close()
        self._lib.llama_sampler_free(self._likeliest)


def _vocabulary(model: Model) -> list[bytes]:
    """The tokens' texts by number."""
    return [model.lib.llama_vocab_get_text(model.vocab, token) for token in range(model.n_vocab)]
