"""gptqmodel's own GPTQ on the layers of a Llama-3.2-1B, on the CPU: seconds and peak memory.

    python benchmarks/gptqmodel_peer.py install
    python benchmarks/gptqmodel_peer.py measure [--python PYTHON] [--layers 1] [--sequences 16] …

It lives in an environment of its own, which sees this one's packages: it pins another numpy, prints a
banner and changes transformers when it is imported. ``install`` takes half a minute and a C compiler.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

from coldpress import demo
from coldpress.cache import cache_dir
from coldpress.tools import run

VERSION = "7.6.0"
_PACKAGES = (
    f"gptqmodel=={VERSION}",
    "optimum==2.3.0",
    "defuser==0.0.28",
    "device-smi==0.5.7",
    "logbar==0.4.15",
    "ninja==1.13.2",
    "pypcre==0.6.4",
    "tokenicer==0.0.14",
    "torchao==0.18.0",
)
_INSIDE = Path(__file__).with_name("gptqmodel_inside.py")
_VOCAB = 4096  # The demo's tokenizer.


def interpreter() -> Path:
    """Where the peer's Python is, or would be."""
    return cache_dir() / "peers" / f"gptqmodel-{VERSION}" / "bin" / "python"


def install() -> Path:
    """Make the peer's environment unless it is there."""
    python = interpreter()
    folder = python.parents[1]
    if python.is_file():
        return python
    partial = folder.with_name(folder.name + ".partial")
    venv.create(partial, clear=True, with_pip=True)
    site = next(partial.glob("lib/python*/site-packages"))
    ours = [path for path in sys.path if path.endswith("site-packages")]
    (site / "coldpress.pth").write_text("\n".join(ours) + "\n")
    run(
        [partial / "bin" / "python", "-m", "pip", "install", "-q", "--no-deps", *_PACKAGES],
        timeout_s=1800,
        install="gptqmodel's own packages are compiled: a C compiler is needed",
    )
    partial.rename(folder)
    return python


def environment() -> dict[str, str]:
    """Variables that the peer needs, and the waiting of threads that ours has too (``libllama.load``)."""
    workers = {"GPTQMODEL_CPU_WORKERS": "2"}  # Its default fails on two cores.
    return {**os.environ, **workers, "GOMP_SPINCOUNT": "1000", "TOKENIZERS_PARALLELISM": "false"}


def make(folder: Path, layers: int) -> int:
    """Save a random bf16 model with Llama-3.2-1B's layers; returns the weights in its linear layers."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=_VOCAB,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    for path in demo.MODEL_DIR.glob("*token*"):
        (folder / path.name).write_bytes(path.read_bytes())
    return sum(weight.numel() for weight in model.model.layers.parameters() if weight.ndim == 2)


def sequences(model: Path, out: Path, count: int, context: int) -> None:
    """Save calibration sequences, int32 (count, context), as our own calibrate would cut them."""
    import numpy as np

    from coldpress.calibrate import text
    from coldpress.convert import reference

    words = demo.CALIBRATION_TEXT.read_text(encoding="utf-8")
    blocks = text.blocks(reference.load_tokenizer(model), words, context, count * context)
    np.save(out, np.array(blocks, np.int32))


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Quantize in the peer's interpreter and say what it took."""
    with tempfile.TemporaryDirectory() as scratch:
        model, tokens = Path(scratch) / "model", Path(scratch) / "tokens.npy"
        weights = make(model, arguments.layers)
        sequences(model, tokens, arguments.sequences, arguments.context)
        settings = [arguments.bits, arguments.group_size, arguments.threads]
        command = [arguments.python, _INSIDE, "quantize", model, Path(scratch) / "out", tokens]
        done = subprocess.run(
            [*map(str, command), *map(str, settings)],
            env={**environment(), "OMP_NUM_THREADS": str(arguments.threads)},
            cwd=scratch,  # It writes a log into the folder that it is started in.
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            sys.exit(f"gptqmodel failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        found = json.loads(done.stdout.strip().splitlines()[-1])
        bf16_bytes = (model / "model.safetensors").stat().st_size
    return {
        **found,
        "seconds_per_million_weights": found["seconds"] / (weights / 1e6),
        "weights": weights,
        "bf16_bytes": bf16_bytes,
        "peak_rss_over_bf16_bytes": found["peak_rss_bytes"] / bf16_bytes,
        **{key: value for key, value in vars(arguments).items() if isinstance(value, int)},
        "gptqmodel": VERSION,
    }


def main() -> None:
    """Install, or measure and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["install", "measure"])
    parser.add_argument("--python", default=str(interpreter()), help="one that imports gptqmodel")
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    print(install() if arguments.what == "install" else json.dumps(measure(arguments)))


if __name__ == "__main__":
    main()
