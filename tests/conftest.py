"""What several stages' tests share: the demo model's folder, the shared data, tiny random models."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import coldpress  # noqa: F401  # Before any test module imports torch: see coldpress/__init__.py.

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the checkout; tests that need it skip by name without it."""
    if not SHARED.is_dir():
        pytest.skip("shared data is not present")
    return SHARED


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of two layers with the demo model's tokenizer: rows divisible by 256."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from coldpress import demo

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    folder = tmp_path_factory.mktemp("tiny_llama")
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    for path in demo.MODEL_DIR.glob("*token*"):
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.fixture(scope="session")
def random_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama of a million weights, not tied, with its own tokenizer."""
    from tests import tiny_models

    folder = tmp_path_factory.mktemp("random_llama")
    tiny_models.sentencepiece(folder)
    return tiny_models.save(
        folder, "llama", scale=1, intermediate_size=256, tie_word_embeddings=False
    )


@pytest.fixture(scope="session")
def random_gguf(tmp_path_factory: pytest.TempPathFactory, random_llama: Path) -> Path:
    """``random_llama`` as a bf16 GGUF, an artifact of the convert stage."""
    from coldpress.convert import ConvertOptions, convert

    out = tmp_path_factory.mktemp("random_gguf") / "convert"
    convert(random_llama, out, ConvertOptions(name="random", verify=False))
    return out


@pytest.fixture(scope="session")
def random_imatrix(tmp_path_factory: pytest.TempPathFactory, random_llama: Path) -> Path:
    """An imatrix of ``random_llama``, an artifact of the calibrate stage."""
    from coldpress.calibrate import CalibrateOptions, calibrate
    from tests import tiny_models

    folder = tmp_path_factory.mktemp("random_imatrix")
    text = folder / "text.txt"
    text.write_text(tiny_models.own_text(), encoding="utf-8")
    options = CalibrateOptions(context=64, max_tokens=1024)
    calibrate(random_llama, folder / "calibrate", options, text=text)
    return folder / "calibrate"


@pytest.fixture(scope="session")
def peers() -> Path:
    """The folder of llama.cpp's own programs, built from the runtime's source distribution."""
    from benchmarks.peers import peers as build

    return build()


@pytest.fixture(scope="session")
def demo_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model as a bf16 GGUF, made by the convert stage."""
    from coldpress import demo
    from coldpress.convert import ConvertOptions, convert

    out = tmp_path_factory.mktemp("demo") / "convert"
    convert(demo.MODEL_DIR, out, ConvertOptions(verify=False))
    return out / "model.gguf"


@pytest.fixture(scope="session")
def demo_checkpoint(tmp_path_factory: pytest.TempPathFactory, demo_gguf: Path) -> Path:
    """A checkpoint of the demo model at Q8_0, made by the quantize and checkpoint stages."""
    from coldpress.checkpoint import CheckpointOptions, checkpoint
    from coldpress.quantize import QuantizeOptions, quantize

    folder = tmp_path_factory.mktemp("demo_checkpoint")
    quantize(demo_gguf, folder / "quantize", QuantizeOptions(type="Q8_0"))
    checkpoint(folder / "quantize", folder / "checkpoint", CheckpointOptions())
    return folder / "checkpoint"


@pytest.fixture(scope="module")  # playwright keeps an event loop running for as long
def chromium() -> Iterator[Any]:
    """A browser, driven by playwright."""
    playwright = pytest.importorskip("playwright.sync_api")
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("chromium is not installed; `make test` installs it")
    playwright.expect.set_options(timeout=60_000)
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def endless_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny GGUF with room for answers that take minutes."""
    from tests import tiny_gguf

    return tiny_gguf.write(tmp_path_factory.mktemp("endless") / "model.gguf", context=1 << 20)


@pytest.fixture(scope="module")
def abused_server(endless_model: Path) -> Iterator[Any]:
    """A server that lets go of clients who stand still for two seconds."""
    from tests.abused_server import Server
    from tests.runtime_process import running

    arguments = ("--port", "0", "--quiet", "--client-seconds", "2", "--context", "600000")
    with running(endless_model, *arguments) as process:
        yield Server(process)


@pytest.fixture
def server(abused_server: Any) -> Iterator[Any]:
    """``abused_server``; after each test it must still answer."""
    yield abused_server
    abused_server.still_serves()
