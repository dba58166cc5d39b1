"""``quantize --teach``: a file is taught as it is stored, keeps its size, and answers more like its teacher."""

import json
from pathlib import Path
from typing import Any

import pytest

from coldpress import artifact, demo
from coldpress.calibrate import CalibrateOptions, calibrate
from coldpress.convert import ConvertOptions, convert
from coldpress.demo import training_text
from coldpress.errors import InputError, UsageError
from coldpress.evaluate import EvaluateOptions, evaluate
from coldpress.quantize import QuantizeOptions, quantize


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The demo model converted and calibrated, and some lessons."""
    folder = tmp_path_factory.mktemp("teach")
    convert(demo.MODEL_DIR, folder / "gguf", ConvertOptions(verify=False))
    options = CalibrateOptions(max_tokens=8192)
    calibrate(demo.MODEL_DIR, folder / "cal", options, text=demo.CALIBRATION_TEXT)
    training_text.write(folder / "lessons.jsonl", 6000)
    return {
        "gguf": folder / "gguf",
        "given": {"calibration": folder / "cal", "model": demo.MODEL_DIR},
        "text": folder / "lessons.jsonl",
    }


def test_teaching_halves_the_divergence_of_two_bits(made: dict[str, Any], tmp_path: Path) -> None:
    given = made["given"]
    plain = QuantizeOptions(type="Q2_K", rounding="compensated")
    quantize(made["gguf"], tmp_path / "plain", plain, **given)
    quantize(made["gguf"], tmp_path / "rtn", QuantizeOptions(type="Q2_K"))
    taught = QuantizeOptions(type="Q2_K", rounding="compensated", teach="160k")
    more = {"text": made["text"], "against": [demo.HELDOUT_TEXT]}
    done = quantize(made["gguf"], tmp_path / "taught", taught, **given, **more)
    assert done.trained
    sizes = [(tmp_path / each / "model.gguf").stat().st_size for each in ("plain", "taught")]
    assert sizes[0] == sizes[1]
    asked = EvaluateOptions(profile="fast", speed=False, n_chunks=12)
    base = tmp_path / "e" / "base"
    text = {"questions": None, "text": demo.HELDOUT_TEXT}
    evaluate(made["gguf"], base, asked, base=None, **text)
    kl = {}
    for name in ("rtn", "plain", "taught"):
        out = tmp_path / "e" / name
        evaluate(tmp_path / name, out, asked, base=base, **text)
        kl[name] = json.loads((out / "evaluation.json").read_text())["kl"]["mean"]
    assert kl["taught"] < 0.5 * kl["rtn"]
    assert kl["taught"] < 0.9 * kl["plain"]
    assert json.loads((tmp_path / "e" / "taught" / "evaluation.json").read_text())["method"]


@pytest.mark.parametrize(
    ("options", "given", "error", "words"),
    [
        ({"teach": "1M"}, {}, UsageError, "both a number of tokens and a text"),
        ({}, {"text": True}, UsageError, "both a number of tokens and a text"),
        ({"teach": "1M"}, {"text": True, "against": True}, InputError, "share"),
    ],
)
def test_what_teaching_needs(
    made: dict[str, Any],
    tmp_path: Path,
    options: dict[str, Any],
    given: dict[str, Any],
    error: type[Exception],
    words: str,
) -> None:
    more = {"text": made["text"]} if given.get("text") else {}
    if given.get("against"):
        more["against"] = [made["text"]]
    asked = QuantizeOptions(type="Q8_0", rounding="compensated", **options)
    with pytest.raises(error, match=words):
        quantize(made["gguf"], tmp_path / "out", asked, **made["given"], **more)
    assert not (tmp_path / "out" / artifact.MANIFEST).exists()


def test_healing_and_teaching_are_one_or_the_other() -> None:
    with pytest.raises(UsageError, match="healing is teaching"):
        QuantizeOptions(type="Q2_K", heal=True, teach="1M")
    with pytest.raises(UsageError, match="count"):
        QuantizeOptions(type="Q2_K", teach="some")
