"""Every file we write is an ordinary GGUF: llama.cpp's own programs load it and read the same from it."""

from pathlib import Path

import pytest

from benchmarks import peers
from coldpress import artifact, demo
from coldpress.checkpoint import CheckpointOptions, checkpoint
from coldpress.evaluate import perplexity
from coldpress.evaluate.session import open_context, open_model
from coldpress.quantize import QuantizeOptions, quantize

CHUNKS = 6
SMALL = ("Q8_0", "Q5_K", "Q4_K_M", "IQ4_XS", "Q3_K", "IQ3_S", "IQ3_XXS", "Q2_K", "IQ2_S", "Q4_0")


@pytest.fixture(scope="session")
def demo_imatrix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from coldpress.calibrate import CalibrateOptions, calibrate

    out = tmp_path_factory.mktemp("imatrix") / "calibrate"
    options = CalibrateOptions(max_tokens=4096)
    calibrate(demo.MODEL_DIR, out, options, text=demo.CALIBRATION_TEXT)
    return out


def llama_perplexity(gguf: Path) -> float:
    return peers.perplexity(gguf, demo.HELDOUT_TEXT, "-c", 512, "--chunks", CHUNKS, "-t", 2)[0]


def our_perplexity(gguf: Path) -> float:
    text = demo.HELDOUT_TEXT.read_text(encoding="utf-8")
    with open_model(gguf) as model, open_context(model, n_cells=512, threads=2) as context:
        chunks = perplexity.chunks(model, text, 512, CHUNKS)
        scored = perplexity.score(model, context, chunks, base=None, top_k=8, profile="exact")
    return scored.perplexity.value


@pytest.mark.slow
@pytest.mark.parametrize("kind", SMALL)
def test_a_checkpoint_of_each_type_reads_the_same_in_stock_llama_cpp(
    tmp_path: Path, demo_gguf: Path, demo_imatrix: Path, kind: str
) -> None:
    quantize(
        demo_gguf,
        tmp_path / "q",
        QuantizeOptions(type=kind, rounding="imatrix"),
        calibration=demo_imatrix,
    )
    checkpoint(tmp_path / "q", tmp_path / "c", CheckpointOptions())
    artifact.verify(tmp_path / "c")
    gguf = tmp_path / "c" / "model.gguf"
    assert our_perplexity(gguf) == pytest.approx(llama_perplexity(gguf), rel=0.005)


@pytest.mark.slow
def test_the_converted_file_reads_the_same_in_stock_llama_cpp(demo_gguf: Path) -> None:
    assert our_perplexity(demo_gguf) == pytest.approx(llama_perplexity(demo_gguf), rel=0.005)
