"""Windows of tokens and what the teacher says of each next one, on disk and read as needed.

``tokens.npy``  int32 (windows, context)
``ids.npy``     the teacher's likeliest tokens, (windows, context, k)
``log_p.npy``   float16 (windows, context, k + 1), their log-probabilities and that of all others together

They are computed once for every student of the same teacher and text. ``done`` is how many windows are
answered: what was interrupted goes on from there.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from coldpress.distill import loss
from coldpress.distill.loss import Target
from coldpress.errors import InputError
from coldpress.progress import task

Tokens = npt.NDArray[np.int32]

_BATCH_TOKENS = 4096
_MOST_HELD_TOKENS = 32768
FEWEST = 32  # windows, of which one is held back


@dataclass(frozen=True)
class Lessons:
    """What to learn: ``tokens`` (windows, context), of which those in ``held`` are only judged on.

    ``ids`` and ``log_p`` are the teacher's answers if they are kept, else ``teacher`` is asked again.
    """

    tokens: Tokens
    temperature: float
    held: Sequence[int]
    ids: Any = None
    log_p: Any = None
    teacher: Any = None

    @property
    def taught(self) -> Tokens:
        """The windows that are trained on."""
        return np.setdiff1d(np.arange(len(self.tokens), dtype=np.int32), self.held)

    def ask(self, rows: Sequence[int] | Tokens, device: Any = "cpu") -> tuple[Tensor, Target]:
        """Tokens of some windows, (rows, context), and what the teacher says."""
        rows = np.asarray(rows)
        tokens = torch.from_numpy(self.tokens[rows].astype(np.int64)).to(device)
        if self.log_p is None:
            with torch.inference_mode():
                logits = self.teacher(tokens, use_cache=False).logits
            return tokens, loss.target(logits, self.temperature, 0)
        ids = torch.from_numpy(self.ids[rows].astype(np.int64)).to(device)
        return tokens, Target(torch.from_numpy(self.log_p[rows]).to(device), ids)


def windows(tokenizer: Any, documents: Iterable[str], context: int, most: int) -> Tokens:
    """Documents one after the other as windows of ``context`` tokens, at most ``most`` tokens in all.

    Each begins as the tokenizer begins a text and ends with its end-of-text token, if it has them.

    Raises:
        InputError: they do not fill the windows that it takes to hold one back.
    """
    wanted, ids = most // context * context, list[int]()
    end = tokenizer.eos_token_id
    with task("reading text", wanted) as advance:
        for document in documents:
            before = len(ids)
            ids += tokenizer(document)["input_ids"]
            if end is not None and ids[-1:] != [end]:
                ids.append(end)
            advance(len(ids) - before)
            if len(ids) >= wanted:
                break
    count = min(len(ids), wanted) // context
    if count < FEWEST:
        raise InputError(
            f"the text has {len(ids)} tokens, fewer than {FEWEST} windows of {context}",
            "give more text, or a smaller context",
        )
    return np.array(ids[: count * context], np.int32).reshape(count, context)


def answer(
    folder: Path, teacher: Any, tokens: Tokens, temperature: float, top_k: int, device: Any = "cpu"
) -> None:
    """Write the teacher's answers into ``folder``, going on from those that are there."""
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "tokens.npy", tokens)
    vocabulary = teacher.config.get_text_config().vocab_size
    ids_type = np.uint16 if vocabulary <= 1 << 16 else np.uint32
    ids = _array(folder / "ids.npy", ids_type, (*tokens.shape, top_k))
    log_p = _array(folder / "log_p.npy", np.float16, (*tokens.shape, top_k + 1))
    step, done = max(1, _BATCH_TOKENS // tokens.shape[1]), _done(folder)
    with task("asking the teacher", tokens.size) as advance, torch.inference_mode():
        advance(done * tokens.shape[1])
        for at in range(done, len(tokens), step):
            rows = tokens[at : at + step]
            given = torch.from_numpy(rows.astype(np.int64)).to(device)
            said = loss.target(teacher(given, use_cache=False).logits, temperature, top_k)
            ids[at : at + step] = said.ids.cpu().numpy()  # type: ignore[union-attr]  # top_k > 0
            log_p[at : at + step] = said.log_p.cpu().numpy()
            for each in (ids, log_p):
                each.flush()
            _write_done(folder, at + len(rows))
            advance(rows.size)


def is_answered(folder: Path) -> bool:
    """Whether every window has its answers."""
    path = folder / "tokens.npy"
    return path.is_file() and _done(folder) == len(np.load(path, mmap_mode="r"))


def read(folder: Path, temperature: float) -> Lessons:
    """Open what ``answer`` wrote."""
    tokens: Tokens = np.load(folder / "tokens.npy")
    opened = (np.load(folder / name, mmap_mode="r") for name in ("ids.npy", "log_p.npy"))
    return Lessons(tokens, temperature, held_out(tokens), *opened)


def held_out(tokens: Tokens) -> tuple[int, ...]:
    """Which windows are not trained on: every 32nd, but no more than it takes to judge."""
    most = max(1, _MOST_HELD_TOKENS // tokens.shape[1])
    return tuple(range(FEWEST - 1, len(tokens), FEWEST))[:most]


def kept_bytes(tokens: int, vocabulary: int, top_k: int) -> int:
    """What the answers to so many tokens take on disk."""
    return tokens * (top_k * (2 if vocabulary <= 1 << 16 else 4) + 2 * (top_k + 1))


def _array(path: Path, dtype: Any, shape: tuple[int, ...]) -> Any:
    if path.is_file():
        return np.lib.format.open_memmap(path, "r+")
    return np.lib.format.open_memmap(path, "w+", dtype, shape)


def _done(folder: Path) -> int:
    path = folder / "done.json"
    return int(json.loads(path.read_text())) if path.is_file() else 0


def _write_done(folder: Path, count: int) -> None:
    partial = folder / "done.partial"
    partial.write_text(json.dumps(count))
    partial.replace(folder / "done.json")
