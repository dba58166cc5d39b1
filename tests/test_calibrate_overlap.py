"""The guard against calibrating on evaluation text: the estimate is the truth; what it refuses."""

import random
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coldpress import demo
from coldpress.calibrate import CalibrateOptions, calibrate, overlap
from coldpress.errors import InputError
from tests import tiny_models

OPTIONS = CalibrateOptions(context=32, max_tokens=64)


def runs(text: str) -> set[tuple[str, ...]]:
    """The oracle: every run of 13 words."""
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[at : at + 13]) for at in range(len(words) - 12)}


def made_up(words: int, seed: int) -> str:
    choose = random.Random(seed)
    return " ".join(str(choose.randrange(2000)) for _ in range(words))


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 60))
def test_the_share_is_that_of_the_smaller_texts_runs(first: int, both: int, second: int) -> None:
    shared = made_up(both, 0)
    texts = (f"{made_up(first, 1)} {shared}", f"{shared} {made_up(second, 2)}")
    found = overlap.shared_fraction(*map(overlap.sketch, texts))
    left, right = map(runs, texts)
    smaller = min(len(left), len(right))
    assert found == pytest.approx(len(left & right) / smaller if smaller else 0)


def test_full_sketches_estimate_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlap, "SKETCH_SIZE", 1000)
    shared = made_up(8000, 0)
    small, large = f"{shared} {made_up(2000, 1)}", f"{shared} {made_up(30000, 2)}"
    left, right = overlap.sketch(small), overlap.sketch(large)
    assert len(left) == len(right) == 1000
    for found in (overlap.shared_fraction(left, right), overlap.shared_fraction(right, left)):
        # Among 10,000 and 38,000 runs a thousandth part and some are seen: 3 standard deviations.
        assert found == pytest.approx(0.8, abs=0.08)


def test_spelling_of_words_alone_does_not_count() -> None:
    plain = made_up(20, 0) + " and so on"
    changed = plain.replace(" ", ",\n").upper()
    assert overlap.sketch(plain).tolist() == overlap.sketch(changed).tolist()


def test_scripts_without_spaces_have_words_too() -> None:
    assert len(overlap.sketch("日本語の文章には空白がありませんので")) == 6  # 18 characters


def test_the_hashes_stay_what_artifacts_hold() -> None:
    text = " ".join(str(each) for each in range(14))
    assert overlap.sketch(text).tolist() == GOLDEN
    assert overlap.sketch(text).dtype == np.uint64


def test_the_demo_texts_are_apart() -> None:
    calibration = overlap.sketch(demo.CALIBRATION_TEXT.read_text(encoding="utf-8"))
    for other in (demo.HELDOUT_TEXT, demo.QUESTIONS_DIR):
        overlap.refuse(calibration, demo.CALIBRATION_TEXT, other)


@pytest.mark.parametrize("as_folder", [False, True])
def test_evaluation_text_is_refused_and_named(
    tmp_path: Path, random_llama: Path, as_folder: bool
) -> None:
    content = tiny_models.own_text()
    corpus, folder = tmp_path / "corpus.txt", tmp_path / "evaluation"
    folder.mkdir()
    judge = folder / "judge.txt"
    corpus.write_text(made_up(2000, 0) + content[:3000], encoding="utf-8")
    judge.write_text(content, encoding="utf-8")
    given = folder if as_folder else judge
    with pytest.raises(InputError) as caught:
        calibrate(random_llama, tmp_path / "out", OPTIONS, text=corpus, against=[given])
    assert str(corpus) in caught.value.message
    assert str(given) in caught.value.message
    assert not (tmp_path / "out").exists()


def test_a_missing_evaluation_text_is_refused(tmp_path: Path, random_llama: Path) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text(tiny_models.own_text(), encoding="utf-8")
    with pytest.raises(InputError, match="does not exist"):
        calibrate(random_llama, tmp_path / "out", OPTIONS, text=corpus, against=[tmp_path / "no"])


def test_the_artifact_keeps_the_sketch(tmp_path: Path, random_llama: Path) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text(tiny_models.own_text(), encoding="utf-8")
    calibrate(random_llama, tmp_path / "out", OPTIONS, text=corpus)
    kept = overlap.read(tmp_path / "out")
    assert kept.tolist() == overlap.sketch(tiny_models.own_text()).tolist()
    with pytest.raises(InputError, match="share 100%"):
        overlap.refuse(kept, corpus, corpus)
    with pytest.raises(InputError, match="ngrams"):
        overlap.read(tmp_path)


# Of the numbers 0 to 13: two runs.
GOLDEN = [2793368278080482449, 3063664364720116431]
