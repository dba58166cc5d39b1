"""A loaded model and a context of it: libllama's C API with Python's types, nothing more."""

import ctypes
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any
from weakref import finalize

from coldpress import libllama
from coldpress.errors import ColdpressError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
CHUNK_TOKENS = 128
"""So many tokens of a prompt are read at once: in a batch of 128, ending at a multiple of 128."""
# These change no bit of what is computed; pointers are not options.
_NEUTRAL = {
    *("n_ctx", "n_seq_max", "n_threads", "n_threads_batch", "no_perf"),
    *("cb_eval", "cb_eval_user_data", "abort_callback", "abort_callback_data"),
    *("samplers", "n_samplers", "ctx_other", "n_outputs_max", "n_outputs_max_per_seq"),
}


class Model:
    """Weights and vocabulary; they are unmapped when nobody refers to them any more.

    The vocabulary's methods may be called from any thread.
    """

    def __init__(self, lib: ModuleType, handle: Any, path: Path) -> None:
        self.lib = lib
        self.handle = handle
        finalize(self, lib.llama_model_free, handle).atexit = False
        self.vocab = lib.llama_model_get_vocab(handle)
        self.context_tokens: int = lib.llama_model_n_ctx_train(handle)
        """Tokens of context the model was trained with."""
        self.n_vocab: int = lib.llama_vocab_n_tokens(self.vocab)
        self.size_bytes: int = lib.llama_model_size(handle)
        self.name = self._text("general.name") or path.stem
        template = lib.llama_model_chat_template(handle, None)
        self.chat_template: str | None = template.decode() if template else None
        self.bos = self._special(lib.llama_vocab_bos(self.vocab))
        self.eos = self._special(lib.llama_vocab_eos(self.vocab))
        self._pieces: dict[int, bytes] = {}

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Text → tokens.

        Args:
            add_special: let the model add its BOS and EOS as it is configured to.
            parse_special: read special tokens written out in the text, as templates write them.
        """
        data = text.encode()
        room = len(data) + 8  # no tokenizer makes more tokens than bytes, special ones excepted
        tokens = (ctypes.c_int32 * room)()
        arguments = self.vocab, data, len(data)
        count = self.lib.llama_tokenize(*arguments, tokens, room, add_special, parse_special)
        if count < 0:
            tokens = (ctypes.c_int32 * -count)()
            count = self.lib.llama_tokenize(*arguments, tokens, -count, add_special, parse_special)
        return list(tokens[:count])

    @cached_property
    def end_tokens(self) -> list[int]:
        """Every token that ends a generation."""
        return [token for token in range(self.n_vocab) if self.is_end(token)]

    def is_end(self, token: int) -> bool:
        """Whether the token ends a generation (EOS, end of turn, …)."""
        return bool(self.lib.llama_vocab_is_eog(self.vocab, token))

    def piece(self, token: int) -> bytes:
        """The token's bytes, possibly a part of a character; empty for a control token."""
        if (known := self._pieces.get(token)) is None:
            known = self._pieces[token] = self.spelled(token, control=False)
        return known

    def spelled(self, token: int, *, control: bool = True) -> bytes:
        """The token's bytes; ``control``: of a control token too."""
        buffer = ctypes.create_string_buffer(64)
        size = self.lib.llama_token_to_piece(self.vocab, token, buffer, 64, 0, control)
        if size < 0:
            buffer = ctypes.create_string_buffer(-size)
            size = self.lib.llama_token_to_piece(self.vocab, token, buffer, -size, 0, control)
        return buffer.raw[:size]

    def _special(self, token: int) -> str:
        text = self.lib.llama_vocab_get_text(self.vocab, token) if token >= 0 else None
        return text.decode(errors="replace") if text else ""

    def metadata(self, key: str) -> str | None:
        """A metadata entry of the GGUF as text; None if it has none of this key."""
        return self._text(key) or None

    def context_options(self) -> dict[str, float]:
        """The options of every context of this model, but for those that change no bit."""
        params = context_params(self.lib)
        names = [name for name, *_ in params._fields_ if name not in _NEUTRAL]
        return {name: getattr(params, name) for name in names}

    @property
    def keeps_whole_context(self) -> bool:
        """Whether its memory is a plain KV cache, of which any first part can be kept alone."""
        lib, handle = self.lib, self.handle
        lossy = lib.llama_model_is_recurrent(handle) or lib.llama_model_is_hybrid(handle)
        return not lossy and lib.llama_model_n_swa(handle) == 0

    def _text(self, key: str) -> str:
        buffer = ctypes.create_string_buffer(256)
        size = self.lib.llama_model_meta_val_str(self.handle, key.encode(), buffer, 256)
        return buffer.value.decode(errors="replace") if size > 0 else ""


def context_params(lib: ModuleType) -> Any:
    """llama.cpp's context options as every context here has them."""
    params = lib.llama_context_default_params()
    params.n_batch = params.n_ubatch = CHUNK_TOKENS
    params.kv_unified = False
    params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_ENABLED
    return params


class DecodeError(ColdpressError):
    """llama.cpp could not decode a batch."""


class Context:
    """A KV cache for several sequences, and the batch that is about to be decoded.

    Each sequence has a cache of its own: in one shared by all, the order of additions depends on who
    else is there, and so does the answer. Where each row is computed by itself, an answer of a
    quantized model equals its solo run bit for bit, whatever else is in its batches. (Not with weights
    in bf16, F16 or IQ4_NL: of these, ggml multiplies several rows in another way than one.)

    Args:
        cells: tokens per sequence.
        embeds: for embeddings, of texts that are decoded at once.
    """

    def __init__(
        self, model: Model, *, cells: int, sequences: int, threads: int, embeds: bool = False
    ) -> None:
        self._model = model  # libllama wants it to outlive its contexts
        self._lib = lib = model.lib
        params = context_params(lib)
        if embeds:
            # What is pooled must be in one batch.
            params.embeddings, params.n_batch, params.n_ubatch = True, cells, cells
        params.n_ctx = cells * sequences
        params.n_seq_max = sequences
        params.n_threads = params.n_threads_batch = threads
        self._handle = lib.llama_init_from_model(model.handle, params)
        if not self._handle:
            raise ColdpressError(
                f"no memory for {sequences} contexts of {cells} tokens",
                "lower --context or --parallel",
            )
        self._memory = lib.llama_get_memory(self._handle)
        self._by_row = libllama.kernel_switch(self._handle)
        self._allocate(params.n_batch)

    def _allocate(self, size: int) -> None:
        """Lay out a llama_batch over ctypes arrays: a slice assignment fills many rows at once."""
        lib = self._lib
        self._tokens = (lib.llama_token * size)()
        self._positions = (lib.llama_pos * size)()
        self._sequences = (lib.llama_seq_id * size)()
        self._wanted: Any = (ctypes.c_int8 * size)()
        self._counts = (ctypes.c_int32 * size)(*[1] * size)
        pointer = ctypes.POINTER(lib.llama_seq_id)
        each = ctypes.sizeof(lib.llama_seq_id)
        first = ctypes.addressof(self._sequences)
        self._pointers = (pointer * size)(
            *[ctypes.cast(first + each * row, pointer) for row in range(size)]
        )
        self._batch = lib.llama_batch(
            n_tokens=0,
            token=self._tokens,
            pos=self._positions,
            n_seq_id=self._counts,
            seq_id=self._pointers,
            logits=self._wanted,
        )

    def add(self, tokens: list[int], position: int, sequence: int, *, wanted: int) -> int:
        """Put tokens of a sequence into the batch; the logits of the last ``wanted`` are kept.

        Returns the row of the last token.
        """
        first = self._batch.n_tokens
        end = first + len(tokens)
        self._tokens[first:end] = tokens
        self._positions[first:end] = range(position, position + len(tokens))
        self._sequences[first:end] = [sequence] * len(tokens)
        self._wanted[first:end] = [0] * (len(tokens) - wanted) + [1] * wanted
        self._batch.n_tokens = end
        return int(end) - 1

    def decode(self, *, by_row: bool = False) -> None:
        """Decode the batch and empty it.

        Args:
            by_row: compute each row by itself, so that its bits do not hang on the other rows; else
                fast, if there are many.

        Raises:
            DecodeError: llama.cpp refused it; its sequences are then of no use.
            ColdpressError: it failed to compute; the whole context is then of no use.
        """
        self._by_row(by_row)
        status = self._lib.llama_decode(self._handle, self._batch)
        self._batch.n_tokens = 0
        if status < -1:
            raise ColdpressError(f"llama_decode failed: {status}", "start it again")
        if status != 0:
            raise DecodeError(f"llama_decode returned {status}", "try again")

    def sample(self, sampler: Any, row: int) -> int:
        """Choose a token from a row's logits and tell the sampler about it."""
        return int(self._lib.llama_sampler_sample(sampler, self._handle, row))

    def logits(self, row: int) -> "NDArray[np.float32]":
        """A row's logits, (n_vocab,), in libllama's memory until the next ``decode``."""
        import numpy as np

        pointer = self._lib.llama_get_logits_ith(self._handle, row)
        return np.ctypeslib.as_array(pointer, shape=(self._model.n_vocab,))

    def embedding(self, sequence: int) -> list[float]:
        """What llama.cpp pooled of the batch's rows of a sequence."""
        found = self._lib.llama_get_embeddings_seq(self._handle, sequence)
        values = ctypes.cast(found, ctypes.POINTER(ctypes.c_float))
        pooled: list[float] = values[: self._lib.llama_model_n_embd_out(self._model.handle)]
        return pooled

    def rows_are_alike(self, token: int, position: int, sequence: int) -> bool:
        """Whether this model's weights allow that rows are computed by themselves.

        It is tried on a sequence of ``position`` tokens, which stays as it was.

        Raises:
            DecodeError: see ``decode``.
        """
        seen = []
        for tokens in ([token, token], [token]):
            row = self.add(tokens, position, sequence, wanted=len(tokens))
            self.decode(by_row=True)
            seen.append(self.logits(row + 1 - len(tokens)).tobytes())
            self.forget(sequence, position)
        return seen[0] == seen[1]

    def state(self, sequence: int) -> bytes:
        """A sequence's KV state as llama.cpp writes it.

        Raises:
            DecodeError: llama.cpp cannot write it.
        """
        size = self._lib.llama_state_seq_get_size_ext(self._handle, sequence, 0)
        buffer = (ctypes.c_uint8 * size)()
        if self._lib.llama_state_seq_get_data_ext(self._handle, buffer, size, sequence, 0) != size:
            raise DecodeError("llama.cpp cannot write the state of its KV cache", "report this")
        return bytes(buffer)

    def restore(self, sequence: int, state: Any, keep: int) -> bool:
        """Put the first ``keep`` tokens of a state into an empty sequence; false: it is refused.

        Args:
            state: a ctypes array; see ``state``.
        """
        size = len(state)
        if self._lib.llama_state_seq_set_data_ext(self._handle, state, size, sequence, 0) != size:
            self.forget(sequence)
            return False
        return bool(self._lib.llama_memory_seq_rm(self._memory, sequence, keep, -1))

    def forget(self, sequence: int, keep: int = 0) -> None:
        """Free a sequence's cells but for the first ``keep``."""
        self._lib.llama_memory_seq_rm(self._memory, sequence, keep, -1)

    def copy(self, source: int, sequence: int) -> None:
        """Make a sequence's cells those of another."""
        self._lib.llama_memory_seq_cp(self._memory, source, sequence, -1, -1)

    def close(self) -> None:
        """Free the KV cache and the buffers."""
        self._lib.llama_free(self._handle)
