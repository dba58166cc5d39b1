"""The two models that serving is measured on, both at Q4_K, and prompts of so many tokens for them.

``demo`` is the embedded model: so small that everything but ggml's kernels shows. ``1b`` has random weights of
Llama-3.2-1B's dimensions (``load_model``): what a model of that size costs, whatever it says.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, assert_never

from benchmarks import load_model
from coldpress import checkpoint, convert, demo, quantize
from coldpress.cache import cache_dir

if TYPE_CHECKING:
    from coldpress.serve.model import Model

Name = Literal["demo", "1b"]
NAMES: tuple[Name, ...] = ("demo", "1b")


def folder(name: Name) -> Path:
    """The model's checkpoint, made on first use and kept in the cache."""
    match name:
        case "demo":
            return _demo()
        case "1b":
            return load_model.checkpoint()
        case _:
            assert_never(name)


def gguf(name: Name) -> Path:
    """The file that ours and the peers load: valid in stock llama.cpp."""
    return folder(name) / "model.gguf"


@cache
def vocabulary(name: Name) -> "Model":
    """The model as our runtime opens it, for its tokenizer."""
    from coldpress.serve.load.mapping import load

    return load([gguf(name)], f"the benchmark's {name} model")


def end_bias(name: Name) -> dict[str, int]:
    """A ``logit_bias`` under which no answer ends by itself: random weights may end anywhere."""
    return {str(token): -100 for token in vocabulary(name).end_tokens}


def prompts(name: Name, n_tokens: int, numbers: Sequence[int]) -> list[str]:
    """Prose of about ``n_tokens`` tokens for each number: another one for another number.

    They begin differently, so that no server has the beginning of one in its cache from another.
    """
    text = demo.HELDOUT_TEXT.read_text(encoding="utf-8")
    model = vocabulary(name)
    tokens = model.tokenize(text[: 64 << 10], add_special=False, parse_special=False)
    starts = [number * 37 % (len(tokens) - n_tokens) for number in numbers]
    cut = (tokens[start : start + n_tokens] for start in starts)
    return [b"".join(map(model.piece, each)).decode(errors="ignore").strip() for each in cut]


def with_template(model: Path, template: str, out: Path) -> Path:
    """A checkpoint again with another chat template, as one file."""
    from coldpress.checkpoint import gguf_header, source, write
    from coldpress.checkpoint.fields import Draft
    from coldpress.checkpoint.layout import place

    read = source.read(model)
    field = gguf_header.string("tokenizer.chat_template", template)
    fields = [each for each in read.fields if each.key != field.key]
    changed = out.with_suffix(".gguf")
    write.write(read, Draft((*fields, field), place(read.tensors, 4096), 4096, 8 << 20), changed)
    checkpoint.checkpoint(changed, out)
    changed.unlink()
    return out


def scratch() -> Path:
    """A folder for what a benchmark makes and throws away: images are as large as models."""
    kept = cache_dir() / "serve-bench"
    kept.mkdir(parents=True, exist_ok=True)
    return kept


def _demo() -> Path:
    kept = scratch()
    out = kept / "demo"
    if not (out / "manifest.json").is_file():
        options = convert.ConvertOptions(verify=False)
        convert.convert(demo.MODEL_DIR, kept / "convert", options)
        quantize.quantize(
            kept / "convert", kept / "quantize", quantize.QuantizeOptions(type="Q4_K")
        )
        checkpoint.checkpoint(kept / "quantize", out)
    return out
