"""A text file → token blocks, guarded against files that calibrate nothing."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from coldpress.errors import InputError


def read(path: Path) -> str:
    """The text of a file.

    Raises:
        InputError: missing, empty, or not UTF-8 text.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except (FileNotFoundError, IsADirectoryError) as error:
        raise InputError(f"{path} is not a file", "give a text file to calibrate on") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text", "give plain text, not a binary") from error
    if "\0" in text:
        raise InputError(f"{path} holds zero bytes", "give plain text, not a binary")
    if not text.strip():
        raise InputError(f"{path} is empty", "give text like what the model will be asked")
    return text


def blocks(tokenizer: Any, text: str, context: int, max_tokens: int) -> npt.NDArray[np.int32]:
    """Cut text into sequences of ``context`` tokens, at most ``max_tokens`` in all.

    The sequences are spread evenly over the text, do not overlap, and the first token of each is
    replaced by BOS where the model expects one, as llama-imatrix does.

    Returns:
        (sequences, context).

    Raises:
        InputError: the text does not fill two sequences: one to fit to, one to judge with.
    """
    ids = tokenizer(text)["input_ids"]
    available = len(ids) // context
    if available < 2:
        raise InputError(
            f"the calibration text has {len(ids)} tokens, fewer than two contexts of {context}",
            "give more text, or a smaller context",
        )
    wanted = max(2, min(available, max_tokens // context))
    starts = np.linspace(0, available - 1, wanted).round().astype(int) * context
    cut = np.array([ids[start : start + context] for start in starts], np.int32)
    bos = tokenizer.bos_token_id
    if bos is not None and ids[0] == bos:
        cut[:, 0] = bos
    return cut
