"""Prove a GGUF against the model it came from: libllama's tokens and logits beside transformers'.

Both run in float32 arithmetic on the CPU (flash attention off, F32 KV cache), so what is left is
the weights' rounding to the GGUF's type and, for 16-bit types, ggml's rounding of each matrix
product's input to the same type. A wrong conversion is far above that.
"""

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from coldpress import libllama
from coldpress.convert import reference
from coldpress.errors import UnsupportedModelError

Logits = npt.NDArray[np.float32]

_MAX_TOKENS = 128
_SEED = 0


@dataclass(frozen=True)
class Parity:
    """How near libllama's logits are to transformers' float32 ones, over every position.

    ``max_logit_diff`` and ``rms_logit_diff`` are in logits; ``logit_std`` is the scale to hold them
    against. ``greedy_agreement`` is the share of positions with the same most likely token.
    """

    max_logit_diff: float
    rms_logit_diff: float
    logit_std: float
    greedy_agreement: float
    n_positions: int


@dataclass(frozen=True)
class _Model:
    """A model that libllama holds; pointers of its C interface."""

    llama: Any
    model: Any
    vocab: Any

    @property
    def vocab_size(self) -> int:
        """Number of tokens, padding included."""
        return int(self.llama.llama_vocab_n_tokens(self.vocab))

    def tokenize(self, text: str) -> list[int]:
        """Token ids with the file's own BOS/EOS rule, special tokens recognised."""
        data = text.encode()
        ids = (self.llama.llama_token * (len(data) + 8))()
        count = self.llama.llama_tokenize(self.vocab, data, len(data), ids, len(ids), True, True)
        return list(ids[:count])

    def logits(self, tokens: Sequence[int]) -> Logits:
        """Logits after every token of one sequence, (T, vocabulary)."""
        llama, count = self.llama, len(tokens)
        params = llama.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = count
        params.flash_attn_type = llama.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.type_k = params.type_v = llama.GGML_TYPE_F32
        context = llama.llama_init_from_model(self.model, params)
        if not context:
            raise UnsupportedModelError("libllama cannot run this model", "choose another model")
        batch = llama.llama_batch_init(count, 0, 1)
        try:
            _fill(batch, tokens)
            if llama.llama_decode(context, batch) != 0:
                raise UnsupportedModelError(
                    "libllama cannot decode this model", "try another model"
                )
            pointer = llama.llama_get_logits(context)
            return np.ctypeslib.as_array(pointer, shape=(count, self.vocab_size)).copy()
        finally:
            llama.llama_batch_free(batch)
            llama.llama_free(context)


@contextmanager
def load(gguf: Path) -> Iterator[_Model]:
    """Load a GGUF with libllama and free it afterwards.

    Raises:
        UnsupportedModelError: libllama refuses the file.
    """
    llama = libllama.load()
    params = llama.llama_model_default_params()
    # Weights as they are stored. Repacked ones take another path, whose AMX kernels die of an
    # illegal instruction in some virtual machines.
    params.use_extra_bufts = False
    model = llama.llama_model_load_from_file(str(gguf).encode(), params)
    if not model:
        raise UnsupportedModelError(
            "the model converts, but libllama refuses to load the result",
            "llama.cpp treats its vocabulary or sizes specially; choose another model",
        )
    try:
        yield _Model(llama, model, llama.llama_model_get_vocab(model))
    finally:
        llama.llama_model_free(model)


def first_difference(ours: Sequence[int], theirs: Sequence[int]) -> int | None:
    """The first index at which two token sequences differ, None when they are equal."""
    for index, (left, right) in enumerate(zip(ours, theirs, strict=False)):
        if left != right:
            return index
    return None if len(ours) == len(theirs) else min(len(ours), len(theirs))


def compare(candidate: Sequence[Logits], reference: Sequence[Logits]) -> Parity:
    """Compare logits of the same tokens, (T, vocabulary) each, position by position."""
    ours = np.concatenate(candidate).astype(np.float64)
    theirs = np.concatenate(reference).astype(np.float64)
    difference = ours - theirs
    return Parity(
        max_logit_diff=float(np.abs(difference).max()),
        rms_logit_diff=float(np.sqrt(np.mean(difference**2))),
        logit_std=float(theirs.std()),
        greedy_agreement=float(np.mean(ours.argmax(1) == theirs.argmax(1))),
        n_positions=len(ours),
    )


def prompts(tokenizer: Any, text: str, vocab_size: int) -> list[list[int]]:
    """Two prompts of token ids: the start of ``text``, and random ids of the whole vocabulary."""
    written = tokenizer(text)["input_ids"][:_MAX_TOKENS]
    random = np.random.default_rng(_SEED).integers(0, vocab_size, _MAX_TOKENS // 2).tolist()
    return [written, random]


def reference_logits(model_dir: Path, sequences: Sequence[Sequence[int]]) -> list[Logits]:
    """Transformers' float32 logits, (T, vocabulary) per sequence."""
    import torch

    model = reference.load_model(model_dir)
    with torch.inference_mode():
        return [model(torch.tensor([ids])).logits[0].float().numpy() for ids in sequences]


def _fill(batch: Any, tokens: Sequence[int]) -> None:
    """Put one sequence into a llama_batch and ask for the logits of every position."""
    batch.n_tokens = len(tokens)
    for index, token in enumerate(tokens):
        batch.token[index] = ctypes.c_int32(token)
        batch.pos[index] = index
        batch.n_seq_id[index] = 1
        batch.seq_id[index][0] = 0
        batch.logits[index] = 1
