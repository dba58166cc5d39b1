"""A GGUF opened by libllama: a model, and a context that decodes batches on it.

Both free what they own when their ``with`` block ends. Nothing here knows about scores.
"""

import ctypes
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, assert_never

import numpy as np
from numpy.typing import NDArray

from coldpress import libllama
from coldpress.errors import ColdpressError, InputError

Profile = Literal["exact", "fast"]
Ids = NDArray[np.int32]
Rows = NDArray[np.float32]

# llama.cpp's LLAMA_MAX_SEQ: the most sequences one context can tell apart.
MAX_SEQUENCES = 256
_MAX_ROWS_BYTES = 256 << 20
_NO_KV_SLOT = 1
_GGML_TYPE_F32 = 0


@dataclass(frozen=True)
class Batch:
    """Tokens for one decode, in an order where every token follows the ones it sees.

    ``token``, ``position``: (n,). ``first_sequence`` and ``n_sequences``: (n,), the range of
    sequence ids that share the token. ``wanted``: (n,) bool, whose logits are to be computed.
    """

    token: Ids
    position: Ids
    first_sequence: Ids
    n_sequences: Ids
    wanted: NDArray[np.bool_]

    @classmethod
    def of_sequence(cls, tokens: Ids, *, start: int, wanted: NDArray[np.bool_]) -> "Batch":
        """Sequence 0 alone, its first token at position ``start``."""
        n = len(tokens)
        position = np.arange(start, start + n, dtype=np.int32)
        zeros, ones = np.zeros(n, np.int32), np.ones(n, np.int32)
        return cls(np.ascontiguousarray(tokens, np.int32), position, zeros, ones, wanted)


class Model:
    """The weights and the vocabulary of a GGUF."""

    def __init__(self, handle: Any, path: Path) -> None:
        self._C = libllama.load()
        self.handle = handle
        self.path = path
        self.vocab = self._C.llama_model_get_vocab(handle)
        self.n_vocab = int(self._C.llama_vocab_n_tokens(self.vocab))
        self.n_ctx_train = int(self._C.llama_model_n_ctx_train(handle))
        self.n_params = int(self._C.llama_model_n_params(handle))
        self.bos = int(self._C.llama_vocab_bos(self.vocab))
        self.eos = int(self._C.llama_vocab_eos(self.vocab))
        self.add_bos = bool(self._C.llama_vocab_get_add_bos(self.vocab))
        template = self._C.llama_model_chat_template(handle, None)
        self.chat_template: str | None = template.decode() if template else None

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Text to token ids; ``add_special`` adds BOS where the file's metadata asks for it."""
        data = text.encode()
        room = len(data) + 8
        ids = (self._C.llama_token * room)()
        n = self._C.llama_tokenize(
            self.vocab, data, len(data), ids, room, add_special, parse_special
        )
        return list(ids[:n])

    def piece(self, token: int) -> bytes:
        """The bytes a token stands for; none for a control token."""
        buffer = ctypes.create_string_buffer(512)
        n = self._C.llama_token_to_piece(self.vocab, token, buffer, len(buffer), 0, False)
        return buffer.raw[: max(n, 0)]

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of a run of tokens, without control tokens; bytes that are no UTF-8 are replaced.

        As with transformers, a vocabulary that puts a space before every text drops it again.
        """
        ids = (self._C.llama_token * len(tokens))(*tokens)
        room = 64 + 16 * len(tokens)
        while True:
            buffer = ctypes.create_string_buffer(room)
            n = self._C.llama_detokenize(self.vocab, ids, len(tokens), buffer, room, True, False)
            if n >= 0:
                return buffer.raw[:n].decode(errors="replace")
            room = -n

    def name(self, token: int) -> str:
        """A token's text in the vocabulary, control tokens included, for example ``<s>``."""
        return str(self._C.llama_vocab_get_text(self.vocab, token).decode())

    def vocabulary_digest(self) -> str:
        """Sha256 over every token's bytes, in order, and what is added before a text."""
        digest = hashlib.sha256(f"{self.bos} {self.eos} {self.add_bos} ".encode())
        for token in range(self.n_vocab):
            text = self._C.llama_vocab_get_text(self.vocab, token) or b""
            digest.update(len(text).to_bytes(4, "little") + text)
        return digest.hexdigest()

    def is_end(self, token: int) -> bool:
        """Whether the token ends a generation."""
        return bool(self._C.llama_vocab_is_eog(self.vocab, token))

    def file_type(self) -> str:
        """The file's ``general.file_type`` as llama.cpp names it, for example ``Q4_K_M``."""
        number = self._C.llama_model_ftype(self.handle)
        constants: dict[str, object] = vars(self._C)
        for name, value in constants.items():
            if name.startswith("LLAMA_FTYPE_") and value == number:
                return (
                    name.removeprefix("LLAMA_FTYPE_").removeprefix("MOSTLY_").removeprefix("ALL_")
                )
        return "mixed"


@contextmanager
def open_model(path: Path) -> Iterator[Model]:
    """Load a GGUF.

    Raises:
        InputError: there is no such file, or llama.cpp cannot load it.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist", "give a GGUF file or an artifact folder")
    C = libllama.load()
    params = C.llama_model_default_params()
    # The file's own layout, as it is served: repacked copies double the memory and the load time,
    # and the AMX ones die of SIGILL on some virtual machines.
    params.use_extra_bufts = False
    handle = C.llama_model_load_from_file(str(path).encode(), params)
    if not handle:
        raise InputError(f"llama.cpp cannot load {path}", "build the GGUF again")
    try:
        yield Model(handle, path)
    finally:
        C.llama_model_free(handle)


class Context:
    """A KV cache of ``n_cells`` tokens shared by up to ``n_sequences`` sequences."""

    def __init__(self, model: Model, handle: Any, n_batch: int) -> None:
        self._C = libllama.load()
        self._handle = handle
        self._memory = self._C.llama_get_memory(handle)
        self._n_batch = n_batch
        self._sequence_ids = np.arange(MAX_SEQUENCES, dtype=np.int32)
        self.n_vocab = model.n_vocab
        self.n_cells = int(self._C.llama_n_ctx(handle))
        self.n_decoded = 0

    def decode(self, batch: Batch) -> Iterator[tuple[NDArray[np.intp], Rows]]:
        """Decode a batch; yield, piece by piece, the wanted tokens' indices and logits.

        The logits, (wanted, n_vocab), live in libllama's buffer: use them before the next piece.
        """
        most_rows = max(1, _MAX_ROWS_BYTES // (4 * self.n_vocab))
        seen = np.cumsum(batch.wanted)
        start = 0
        while start < len(batch.token):
            before = seen[start - 1] if start else 0
            stop = int(np.searchsorted(seen, before + most_rows, side="right"))
            stop = min(stop, start + self._n_batch)
            self._decode_piece(batch, start, stop)
            wanted = np.flatnonzero(batch.wanted[start:stop]) + start
            if len(wanted):
                yield wanted, self._rows(len(wanted))
            start = stop

    def run(self, batch: Batch) -> None:
        """Decode a batch for its effect on the KV cache alone."""
        for _ in self.decode(batch):
            pass

    def share(self, n_tokens: int, sequence: int) -> None:
        """Let ``sequence`` begin with the first ``n_tokens`` of sequence 0; nothing is copied."""
        self._C.llama_memory_seq_cp(self._memory, 0, sequence, 0, n_tokens)

    def forget(self, sequence: int, from_position: int = 0) -> None:
        """Drop a sequence's tokens from a position on."""
        self._C.llama_memory_seq_rm(self._memory, sequence, from_position, -1)

    def clear(self) -> None:
        """Empty the KV cache."""
        self._C.llama_memory_clear(self._memory, False)

    def _decode_piece(self, batch: Batch, start: int, stop: int) -> None:
        C, n = self._C, stop - start
        # Sequence ids are ranges, so each token's list is a pointer into one 0, 1, 2, … array.
        base = self._sequence_ids.ctypes.data
        lists = base + 4 * batch.first_sequence[start:stop].astype(np.uint64)
        wanted = batch.wanted[start:stop].astype(np.int8)
        columns = (batch.token[start:stop], batch.position[start:stop])
        n_sequences = batch.n_sequences[start:stop]
        status = C.llama_decode(
            self._handle,
            C.llama_batch(
                n_tokens=n,
                token=columns[0].ctypes.data_as(ctypes.POINTER(C.llama_token)),
                embd=None,
                pos=columns[1].ctypes.data_as(ctypes.POINTER(C.llama_pos)),
                n_seq_id=n_sequences.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
                seq_id=lists.ctypes.data_as(ctypes.POINTER(ctypes.POINTER(C.llama_seq_id))),
                logits=wanted.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
            ),
        )
        self.n_decoded += n
        if status == _NO_KV_SLOT:
            raise ColdpressError(
                f"{n} tokens do not fit into the KV cache of {self.n_cells}", "raise the context"
            )
        if status != 0:
            raise ColdpressError(f"llama_decode failed with {status}", "check the GGUF")

    def _rows(self, n: int) -> Rows:
        logits = self._C.llama_get_logits(self._handle)
        return np.ctypeslib.as_array(logits, shape=(n, self.n_vocab))


@contextmanager
def open_context(
    model: Model,
    *,
    n_cells: int,
    threads: int,
    profile: Profile = "exact",
    n_sequences: int = 1,
    n_batch: int = 2048,
) -> Iterator[Context]:
    """Make a context.

    ``exact`` computes attention without flash attention and keeps K and V in float32, which agrees
    with transformers' float32 to 1e-6; ``fast`` takes llama.cpp's defaults.
    """
    C = libllama.load()
    params = C.llama_context_default_params()
    params.n_ctx = n_cells
    params.n_batch = min(n_batch, n_cells)
    params.n_seq_max = n_sequences
    params.n_threads = params.n_threads_batch = threads
    params.kv_unified = True
    params.no_perf = True
    match profile:
        case "exact":
            params.flash_attn_type = C.LLAMA_FLASH_ATTN_TYPE_DISABLED
            params.type_k = params.type_v = _GGML_TYPE_F32
        case "fast":
            pass
        case _:
            assert_never(profile)
    handle = C.llama_init_from_model(model.handle, params)
    if not handle:
        raise ColdpressError(
            f"no context of {n_cells} tokens for {model.path}", "lower the context"
        )
    try:
        yield Context(model, handle, params.n_batch)
    finally:
        C.llama_free(handle)
