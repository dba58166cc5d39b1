"""Train the demo model from nothing: the one command that makes ``model/``.

    python -m coldpress.demo.train --out DIR

Writes DIR/model (the files that are shipped), DIR/checkpoint.pt (exact resume: the same command
continues) and DIR/log.jsonl. Progress and the time left go to stderr.

Two settings matter on a CPU: bf16 autocast, and flushing denormal numbers to zero, without which
a step becomes about three times slower after a few hundred steps.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from . import TRAIN_TEXT
from .batches import Batch, make_batch
from .knowledge.documents import END, Knowledge, training_questions, training_statements
from .knowledge.facts import load_relations
from .score import accuracy, score, test_questions
from .spread import spread_channels
from .tokenizer import VOCAB_SIZE, train_tokenizer

SHARDS = 2  # threads of a step; part of the result's definition, since sums are taken in this order


@dataclass
class Run:
    """Everything that changes while training, and the options that do not."""

    out: Path
    options: argparse.Namespace
    model: Any
    optimizer: torch.optim.Optimizer
    tokenizer: Any
    knowledge: Knowledge
    pool: ThreadPoolExecutor
    step: int = 0
    seconds: float = 0.0  # training time before this process, of a resumed run
    started: float = field(default_factory=time.monotonic)

    @property
    def elapsed_s(self) -> float:
        """Training time so far, over all the processes of this run."""
        return self.seconds + time.monotonic() - self.started


def model_config(end_id: int) -> LlamaConfig:
    """7.3 M parameters; every row is divisible by 256, so every K- and I-quant applies."""
    return LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=[2, end_id],
        pad_token_id=2,
    )


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Warm up for 200 steps, hold, and fall to zero as 1 - sqrt over the last 40 %."""
    fall = 0.4 * steps
    warm = min(1.0, (step + 1) / 200)
    left = min(1.0, max(0.0, (steps - step) / fall))
    return peak * warm * (1.0 - math.sqrt(1.0 - left))


def shard_loss(model: Any, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted sum of the cross-entropy of the next token, in nats; both arguments (B, T+1)."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits  # (B, T, V)
    losses = F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")
    return (losses * weights[:, 1:].flatten()).sum()


def gradients(run: Run, batch: Batch) -> float:
    """Set every ``.grad`` to that of the batch's weighted mean loss, and return the loss.

    Each shard of the batch is one thread's work, and its operations use that thread alone: on a
    shared machine, threads that meet at every operation wait for each other most of the time.
    """
    parameters = list(run.model.parameters())
    total = batch.weights[:, 1:].sum()

    def work(shard: tuple[torch.Tensor, torch.Tensor]) -> tuple[float, tuple[torch.Tensor, ...]]:
        loss = shard_loss(run.model, *shard) / total
        return float(loss.detach()), torch.autograd.grad(loss, parameters)

    shards = zip(batch.ids.chunk(SHARDS), batch.weights.chunk(SHARDS), strict=True)
    losses, grads = zip(*run.pool.map(work, shards), strict=True)
    for parameter, *parts in zip(parameters, *grads, strict=True):
        parameter.grad = sum(parts[1:], start=parts[0])
    return float(sum(losses))


def quiet_thread() -> None:
    """Set what torch keeps per thread: one thread an operation, denormals flushed to zero."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)


def train_step(run: Run) -> float:
    """Take one optimizer step and return its loss."""
    options = run.options
    batch = make_batch(
        run.knowledge,
        run.tokenizer,
        seed=options.seed,
        step=run.step,
        tokens=options.batch_tokens,
        window=options.window,
    )
    for group in run.optimizer.param_groups:
        group["lr"] = learning_rate(run.step, options.steps, options.lr)
    loss = gradients(run, batch)
    torch.nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
    run.optimizer.step()
    run.step += 1
    return loss


def train(run: Run) -> None:
    """Run until ``--steps``, logging, probing the held-out questions and saving on the way."""
    options = run.options
    mean_loss = 0.0
    first, began = run.step, time.monotonic()
    while run.step < options.steps:
        loss = train_step(run)
        mean_loss = loss if mean_loss == 0.0 else 0.98 * mean_loss + 0.02 * loss
        if run.step % 50 == 0:
            per_step = (time.monotonic() - began) / (run.step - first)
            _report(run, mean_loss, per_step * (options.steps - run.step))
        if run.step % options.probe_every == 0:
            save_checkpoint(run)
            _log(run, {"loss": mean_loss, **probe(run)})
    save_checkpoint(run)


def probe(run: Run) -> dict[str, float]:
    """Accuracy on every eighth held-out question, both ways, with the float32 weights."""
    questions = [q for group in test_questions().values() for q in group][::8]
    run.model.eval()
    result = {
        how: accuracy(run.model, run.tokenizer.encode, questions, how)
        for how in ("continuation", "letter")
    }
    run.model.train()
    return result


def save_checkpoint(run: Run) -> None:
    """Write all the state of the run, through a temporary file."""
    state = {
        "model": run.model.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "step": run.step,
        "seconds": run.elapsed_s,
    }
    partial = run.out / "checkpoint.partial"
    torch.save(state, partial)
    partial.replace(run.out / "checkpoint.pt")


def resume(run: Run) -> None:
    """Continue from ``checkpoint.pt`` where there is one."""
    path = run.out / "checkpoint.pt"
    if not path.exists():
        return
    state = torch.load(path, weights_only=True)
    run.model.load_state_dict(state["model"])
    run.optimizer.load_state_dict(state["optimizer"])
    run.step, run.seconds = state["step"], state["seconds"]


def export(run: Run) -> None:
    """Write bf16 weights, configuration and scores; the tokenizer is in the folder already."""
    folder, train_s = run.out / "model", round(run.elapsed_s)
    end_id = run.tokenizer.piece_to_id(END)
    model = LlamaForCausalLM(model_config(end_id))
    model.load_state_dict(run.model.state_dict())
    spread_channels(model, run.options.spread, run.options.seed)
    model.to(torch.bfloat16).eval()
    model.generation_config.eos_token_id = [2, end_id]
    model.save_pretrained(folder)
    table = score(model, run.tokenizer.encode)
    report = {
        "scores": table,
        "steps": run.step,
        "spread": run.options.spread,
        "tokens": run.step * run.options.batch_tokens,
        "train_s": train_s,
    }
    (run.out / "scores.json").write_text(json.dumps(report, indent=1) + "\n")
    _log(run, table["all"])


def tokenizer_lines(knowledge: Knowledge) -> list[str]:
    """The text the tokenizer is trained on: all that training can say, and the prose."""
    relations = list(dict.fromkeys(relation for relation, _ in knowledge.items))
    questions = [f"Question: {question}" for question in sorted(training_questions(relations))]
    statements = [f" {statement}" for statement in training_statements(relations)]
    answers = [f"Answer: {fact.answer}" for _, fact in knowledge.items]
    heads = ["Question: Answer: A. B. C. D."] * 50
    return questions + statements + answers + heads + list(knowledge.paragraphs)


def build(options: argparse.Namespace) -> Run:
    """Make the tokenizer where it is missing, the model and the optimizer."""
    import sentencepiece

    paragraphs = TRAIN_TEXT.read_text(encoding="utf-8").strip().split("\n\n")
    knowledge = Knowledge.build(load_relations(), paragraphs)
    folder = options.out / "model"
    if not (folder / "tokenizer.model").exists():
        train_tokenizer(tokenizer_lines(knowledge), folder)
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    torch.manual_seed(options.seed)
    model = LlamaForCausalLM(model_config(tokenizer.piece_to_id(END)))
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=options.lr, betas=(0.9, 0.95), weight_decay=0.05
    )
    pool = ThreadPoolExecutor(SHARDS, initializer=quiet_thread)
    return Run(options.out, options, model, optimizer, tokenizer, knowledge, pool)


def parse_options() -> argparse.Namespace:
    """Read the command line; the defaults made the shipped model."""
    parser = argparse.ArgumentParser(prog="python -m coldpress.demo.train")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--spread", type=float, default=0.5, help="sigma of the channel gains")
    parser.add_argument("--probe-every", type=int, default=500)
    return parser.parse_args()


def main() -> None:
    """Train, export, score."""
    options = parse_options()
    quiet_thread()
    run = build(options)
    resume(run)
    train(run)
    export(run)


def _report(run: Run, loss: float, left_s: float) -> None:
    rate = run.options.batch_tokens * run.step / run.elapsed_s
    print(
        f"step {run.step}/{run.options.steps}  loss {loss:.3f}  {rate:.0f} tok/s  "
        f"{left_s / 60:.1f} min left",
        file=sys.stderr,
        flush=True,
    )


def _log(run: Run, values: dict[str, float]) -> None:
    line = json.dumps({"step": run.step, "seconds": round(run.elapsed_s), **values})
    print(line, file=sys.stderr, flush=True)
    with (run.out / "log.jsonl").open("a") as file:
        file.write(line + "\n")


if __name__ == "__main__":
    main()
