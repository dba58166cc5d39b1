"""Keep lm-eval's and datasets' advice about their own command lines, and their bars, off the screen."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partialmethod
from unittest.mock import patch

_LOGGERS = ("lm_eval", "datasets", "huggingface_hub")


@contextmanager
def quiet() -> Iterator[None]:
    """Only errors are logged inside, and no bar is drawn."""
    from datasets.utils.logging import (
        disable_progress_bar,
        enable_progress_bar,
        is_progress_bar_enabled,
    )
    from tqdm import tqdm

    drawn = is_progress_bar_enabled()
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    disable_progress_bar()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    # tqdm reads its switch from the environment when it is imported, which has happened.
    silent = patch.object(tqdm, "__init__", partialmethod(tqdm.__init__, disable=True))
    try:
        with silent:
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if drawn:
            enable_progress_bar()
