"""Find text that calibration and evaluation share, by hashed runs of words.

A text's sketch is the smallest of its hashes: the same runs survive in every text, so two sketches
compare as the texts would, and one of a calibration can be kept beside it. Source: Broder 1997, "On
the resemblance and containment of documents"; runs of 13 words as in Brown et al. 2020,
arXiv:2005.14165, appendix C.
"""

import hashlib
import re
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from coldpress.errors import InputError

Sketch = npt.NDArray[np.uint64]

RUN_WORDS = 13
SKETCH_SIZE = 1 << 16
_FILE = "ngrams.npy"
# A word, or one character of a script that puts no spaces between words.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")
# Measured: two parts of one generated corpus share up to 0.7 % of their runs, natural texts none.
_MAX_SHARED = 0.01
_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # Odd, from the golden ratio.


def sketch(text: str) -> Sketch:
    """The ``SKETCH_SIZE`` smallest hashes of a text's runs of 13 words, sorted, each once.

    Case, punctuation and white space do not count.
    """
    words = np.fromiter((_hash(found[0]) for found in _WORD.finditer(text.lower())), np.uint64)
    runs = np.zeros(max(0, len(words) - RUN_WORDS + 1), np.uint64)
    for offset in range(RUN_WORDS):
        runs = runs * _FACTOR + words[offset : offset + len(runs)]
    return np.unique(_mixed(runs))[:SKETCH_SIZE]


def shared_fraction(calibration: Sketch, evaluation: Sketch) -> float:
    """The share of the smaller text's runs that the other has too, 0 to 1, estimated.

    Args:
        calibration: sketch of one text.
        evaluation: sketch of the other; the order does not matter.
    """
    # A full sketch tells nothing of runs beyond its largest hash.
    last = min((each[-1] for each in (calibration, evaluation) if _is_full(each)), default=None)
    if last is not None:
        calibration, evaluation = (each[each <= last] for each in (calibration, evaluation))
    smaller = min(len(calibration), len(evaluation))
    if smaller == 0:
        return 0.0
    return len(np.intersect1d(calibration, evaluation, assume_unique=True)) / smaller


def write(folder: Path, sketch: Sketch) -> None:
    """Keep a calibration text's sketch in its artifact, for evaluations to come."""
    np.save(folder / _FILE, sketch)


def read(folder: Path) -> Sketch:
    """The sketch of the text that an artifact of calibrate was made on.

    Raises:
        InputError: there is none.
    """
    try:
        found: Sketch = np.load(folder / _FILE)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{folder} has no {_FILE}", "give a folder that `coldpress calibrate` wrote"
        ) from error
    return found


def refuse(calibration: Sketch, text: Path, evaluation: Path) -> None:
    """Refuse a text to calibrate on that an evaluation shares.

    Args:
        calibration: sketch of ``text``.
        evaluation: a text file, or a folder of them.

    Raises:
        InputError: they share more than 1 % of the smaller one's runs; naming both.
    """
    share = shared_fraction(calibration, sketch(_content(evaluation)))
    if share > _MAX_SHARED:
        raise InputError(
            f"{text} and {evaluation} share {share:.0%} of their text",
            "calibrate on other text: what a model was calibrated on cannot judge it",
        )


def _content(path: Path) -> str:
    """The text of a file, or of every file below a folder."""
    files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
    if not path.exists():
        raise InputError(f"{path} does not exist", "give the texts to evaluate on, or leave it out")
    return "\n".join(each.read_bytes().decode("utf-8", errors="replace") for each in files)


def _is_full(sketch: Sketch) -> bool:
    return len(sketch) >= SKETCH_SIZE


@lru_cache(maxsize=1 << 16)
def _hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")


def _mixed(values: Sketch) -> Sketch:
    """Spread the values evenly, so that the smallest are a fair sample. Source: splitmix64."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
