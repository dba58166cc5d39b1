"""Train the second model of the benchmarks: another shape, another text, a head of its own.

``python benchmarks/second_model.py OUT`` writes OUT/model, OUT/calibration.txt and OUT/heldout.txt,
in 15 to 30 minutes of one core; stopped, it starts anew. Its rows are multiples of 256, so every type
fits; hidden 512, two key-value heads, untied; its channels stay as training left them. Of the stories
and of the articles, training, calibration and held-out text are different ones.
"""

import json
import math
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coldpress.errors import InputError

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
STEPS, BATCH, WINDOW, PEAK_LR, SEED = 640, 4, 512, 1.5e-3, 11
_WIKI_TRAIN_CHARS, _WIKI_CHARS = 2_400_000, 60_000


@dataclass(frozen=True)
class Texts:
    """Three parts that share no story and no article."""

    train: tuple[list[str], list[str]]  # stories, articles' paragraphs
    calibration: str
    heldout: str


def texts(shared: Path = SHARED) -> Texts:
    """Cut the stories 8 : 1 : 1; the articles are an excerpt's beginning, its end, and a test set.

    Raises:
        InputError: the shared data are not there.
    """
    tales = stories(shared)
    wiki = _read(shared / "wikitext2/train_excerpt_5k.txt")
    test = _read(shared / "wikitext2/wiki.test.raw")
    end = wiki.rindex("\n", 0, _WIKI_TRAIN_CHARS)
    return Texts(
        train=(tales[:800], wiki[:end].splitlines()),
        calibration="\n\n".join(tales[800:900]) + "\n\n" + wiki[-_WIKI_CHARS:],
        heldout="\n\n".join(tales[900:]) + "\n\n" + test[:_WIKI_CHARS],
    )


def stories(shared: Path = SHARED) -> list[str]:
    """A thousand different TinyStories."""
    found: list[str] = json.loads(_read(shared / "tinystories/corpora/tinystories_1000.json"))
    return found


def train(parts: tuple[list[str], list[str]], out: Path) -> None:
    """Train tokenizer and model, in one thread, from a fixed seed, and write them to ``out``."""
    import sentencepiece
    import torch
    import torch.nn.functional as F
    from transformers import LlamaForCausalLM

    from coldpress.demo.tokenizer import train_tokenizer

    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    torch.manual_seed(SEED)
    train_tokenizer([line for part in parts for text in part for line in text.splitlines()], out)
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(out / "tokenizer.model"))
    streams = [torch.tensor(_stream(pieces, part)) for part in parts]
    model = LlamaForCausalLM(_config())
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.05)
    random = torch.Generator().manual_seed(SEED)
    began = time.monotonic()
    for step in range(STEPS):
        rows = [_window(streams[i % 2], random) for i in range(BATCH)]
        ids = torch.stack(rows)  # (B, T + 1)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(input_ids=ids[:, :-1], use_cache=False).logits
        loss = F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = _learning_rate(step)
        optimizer.step()
        optimizer.zero_grad()
        if step % 20 == 0:
            left = (time.monotonic() - began) / (step + 1) * (STEPS - step - 1) / 60
            print(f"step {step}/{STEPS}  loss {loss:.3f}  {left:.1f} min left", file=sys.stderr)
    model.to(torch.bfloat16).save_pretrained(out)


def _config() -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=4096,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=WINDOW,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )


def _stream(pieces: Any, part: list[str]) -> list[int]:
    """All the texts' tokens, each text between <s> and </s>."""
    return [i for ids in pieces.encode(part) for i in (pieces.bos_id(), *ids, pieces.eos_id())]


def _window(stream: Any, random: Any) -> Any:
    import torch

    start = int(torch.randint(len(stream) - WINDOW - 1, (1,), generator=random))
    return stream[start : start + WINDOW + 1]


def _learning_rate(step: int) -> float:
    """Warm up for 40 steps, then fall along a cosine to a tenth."""
    fall = 0.55 + 0.45 * math.cos(math.pi * step / STEPS)
    return PEAK_LR * min(1.0, (step + 1) / 40) * fall


def _read(path: Path) -> str:
    if not path.is_file():
        raise InputError(f"{path} is missing", "the second model is trained on ../shared/data")
    return path.read_text(encoding="utf-8")


def main() -> None:
    """Write the texts, then train; ``model`` appears whole, by rename."""
    os.nice(19)
    out = Path(sys.argv[1])
    if (out / "model").is_dir():
        return
    parts = texts()
    partial = out / "model.partial"
    partial.mkdir(parents=True, exist_ok=True)
    (out / "calibration.txt").write_text(parts.calibration, encoding="utf-8")
    (out / "heldout.txt").write_text(parts.heldout, encoding="utf-8")
    train(parts.train, partial)
    partial.rename(out / "model")


if __name__ == "__main__":
    main()
