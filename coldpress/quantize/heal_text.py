"""Text that a model writes itself, going on from pieces of the calibration text.

Source: Liu et al. 2023, arXiv:2305.17888, section 3.1 (there each text starts from one random token).
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from coldpress.progress import task

Tokens = npt.NDArray[np.int32]

_PROMPT = 16
_BATCH = 64


def write(model: Any, known: Tokens, tokens: int, seed: int) -> Tokens:
    """Sequences as long as the known ones, drawn token by token from the model.

    The tokens that begin, end or pad a text are never drawn, so that each sequence is full.

    Args:
        known: the calibration's sequences, (sequences, context).
        tokens: how many to write in all, prompts included; a part of a sequence is left out.
    """
    count, context = tokens // known.shape[1], known.shape[1]
    numbers, random = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    prompt = min(_PROMPT, context // 2)
    rows = numbers.integers(0, len(known), count)
    starts = numbers.integers(1, context - prompt + 2, count)
    prompts = [
        np.r_[known[r, :1], known[r, s : s + prompt - 1]] for r, s in zip(rows, starts, strict=True)
    ]
    written = [np.empty((0, context), np.int32)]
    with task("writing own text", count * context) as advance, torch.inference_mode():
        for at in range(0, count, _BATCH):
            ids = torch.from_numpy(np.stack(prompts[at : at + _BATCH]).astype(np.int64))
            ids = _continue(model, ids, context, random)
            written.append(ids.numpy().astype(np.int32))
            advance(ids.numel())
    return np.concatenate(written)


def _continue(model: Any, ids: Tensor, context: int, random: torch.Generator) -> Tensor:
    """Sequences, (count, prompt), made ``context`` long."""
    never, cache, new = _never(model), None, ids
    while ids.shape[1] < context:
        out = model(new, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache, logits = out.past_key_values, out.logits[:, -1]
        logits[:, never] = -torch.inf
        new = logits.softmax(-1).multinomial(1, generator=random)
        ids = torch.cat([ids, new], 1)
    return ids


def _never(model: Any) -> list[int]:
    config = model.config.get_text_config()
    given = [config.bos_token_id, config.pad_token_id]
    ends = config.eos_token_id
    given += ends if isinstance(ends, list) else [ends]
    return sorted({each for each in given if each is not None})
