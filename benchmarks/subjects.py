"""The models that the benchmarks compress, each with its calibration and its held-out text."""

import json
from dataclasses import dataclass
from pathlib import Path

from benchmarks import second_model
from coldpress import demo
from coldpress.cache import cache_dir
from coldpress.errors import InputError

NAMES = ("demo", "second", "babyllama361")


@dataclass(frozen=True)
class Subject:
    """A Hugging Face folder and two texts that share nothing; ``context`` is what it was trained on.

    ``heal``: whether our files are healed: minutes a file, and not needed where there is room to choose types.
    """

    name: str
    model: Path
    calibration: Path
    heldout: Path
    context: int
    questions: Path | None = None
    heal: bool = False


def subject(name: str, scratch: Path) -> Subject:
    """The subject of this name; texts that have to be cut go to ``scratch``.

    Raises:
        InputError: the second model is not trained, or the shared data are not there.
    """
    match name:
        case "demo":
            texts = demo.CALIBRATION_TEXT, demo.HELDOUT_TEXT
            return Subject(name, demo.MODEL_DIR, *texts, 512, demo.QUESTIONS_DIR)
        case "second":
            return _second(cache_dir() / "second-model")
        case "babyllama361":
            return _babyllama(scratch)
        case _:
            raise InputError(f"no model {name!r}", f"one of: {', '.join(NAMES)}")


def _second(folder: Path) -> Subject:
    if not (folder / "model").is_dir():
        raise InputError(
            f"{folder} holds no model", f"python -m benchmarks.second_model {folder} trains it"
        )
    texts = folder / "calibration.txt", folder / "heldout.txt"
    return Subject("second", folder / "model", *texts, second_model.WINDOW)


def _babyllama(scratch: Path) -> Subject:
    """A real tiny Llama whose rows, 128 and 352, fit the types of 32-weight blocks alone."""
    stories, texts = second_model.stories(), scratch / "texts"
    texts.mkdir(exist_ok=True)
    for name, part in (("calibration", stories[800:900]), ("heldout", stories[900:940])):
        (texts / f"{name}.txt").write_text("\n\n".join(part) + "\n", encoding="utf-8")
    model = second_model.SHARED / "models/babyllama361"
    window = json.loads((model / "config.json").read_text())["max_position_embeddings"]
    calibration, heldout = texts / "calibration.txt", texts / "heldout.txt"
    return Subject("babyllama361", model, calibration, heldout, window, heal=True)
