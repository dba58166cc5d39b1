"""Train a student on its teacher's answers, on one process or on many.

A step's windows are a function of the seed and the step alone, and processes share them out: so a resumed run
and a run on more processes see the same batches. What is kept is the state with the lowest divergence on held-out
windows.

Source: Loshchilov & Hutter 2019, arXiv:1711.05101 (AdamW); cosine decay, arXiv:1608.03983.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from coldpress.distill import saved
from coldpress.distill.lessons import Lessons
from coldpress.distill.loss import divergence, hidden_error
from coldpress.distill.processes import products
from coldpress.distill.saved import State, Step
from coldpress.distill.stage import DistillOptions
from coldpress.errors import TrainingError
from coldpress.progress import task

Rows = npt.NDArray[np.int32]

_BETAS = (0.9, 0.95)
_LARGEST_GRADIENT = 1.0
_WARM_UP = 0.05  # of all steps
_EVALUATION_TOKENS = 8192


@dataclass
class Run:
    """A run's parts; ``folder`` holds its states, ``beside`` is the student's own folder."""

    student: Any
    lessons: Lessons
    options: DistillOptions
    accelerator: Any
    folder: Path
    beside: Path


def train(run: Run) -> State:
    """Train until the tokens are used up or held-out text no longer gains; ends with the best weights in place.

    Raises:
        TrainingError: the loss is no number; names the last good state.
    """
    options, accelerator = run.options, run.accelerator
    optimizer = torch.optim.AdamW(
        run.student.parameters(),
        lr=options.rate,
        betas=_BETAS,
        weight_decay=options.weight_decay,
        fused=True,
    )
    found = saved.last(run.folder)
    state = State() if found is None else saved.read(found, run.student, optimizer)
    model, optimizer = accelerator.prepare(run.student, optimizer)
    if found is None:
        _judge(run, model, state, None)
    steps, losses = options.steps, list[float]()
    with task("distilling", steps) as advance:
        advance(state.step)
        while state.step < steps and not _is_settled(state, options):
            for group in optimizer.param_groups:
                group["lr"] = options.rate * _factor(state.step, steps)
            losses.append(_step(run, model, optimizer, state))
            state.step += 1
            advance(1)
            if state.step % options.evaluate_every and state.step < steps:
                continue
            _judge(run, model, state, float(np.mean(losses)))
            losses.clear()
            if accelerator.is_main_process:
                unwrapped = accelerator.unwrap_model(model)
                saved.write(run.folder, unwrapped, optimizer, state, run.beside)
            accelerator.wait_for_everyone()
    with torch.no_grad():
        for name, parameter in run.student.named_parameters():
            parameter.copy_(state.best[name])
    return state


def _step(run: Run, model: Any, optimizer: Any, state: State) -> float:
    """One step of all processes; returns the mean divergence before it."""
    options, accelerator = run.options, run.accelerator
    total = torch.zeros((), device=accelerator.device)
    for rows in _shares(run, state.step):
        with accelerator.accumulate(model):
            loss = _loss(run, model, rows)
            accelerator.backward(loss)
            total += loss.detach() / options.accumulate
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), _LARGEST_GRADIENT)
            optimizer.step()
            optimizer.zero_grad()
    mean = float(accelerator.reduce(total, "mean"))
    if not math.isfinite(mean):
        _stop(run, f"the loss is {mean} at step {state.step + 1}")
    return mean


def _loss(run: Run, model: Any, rows: Rows) -> Tensor:
    options, lessons = run.options, run.lessons
    tokens, target = lessons.ask(rows, run.accelerator.device)
    with_hidden = options.hidden_weight > 0
    with products(options, run.accelerator.device):
        out = model(input_ids=tokens, use_cache=False, output_hidden_states=with_hidden)
    found = divergence(out.logits, target, options.loss, options.temperature).mean()
    if with_hidden:
        with torch.inference_mode():
            wanted = lessons.teacher(tokens, use_cache=False, output_hidden_states=True)
        last = hidden_error(out.hidden_states[-1], wanted.hidden_states[-1])
        found = found + options.hidden_weight * last
    return found


def _judge(run: Run, model: Any, state: State, train_kl: float | None) -> None:
    """Add to the history what held-out windows say, and keep the weights if they are the best.

    It is KL(teacher ‖ student) at temperature 1 where the teacher's answers allow, whatever is trained by.
    """
    options, held = run.options, run.lessons.held
    model.eval()
    size = max(1, _EVALUATION_TOKENS // run.lessons.tokens.shape[1])
    total = 0.0
    with torch.inference_mode(), products(options, run.accelerator.device):
        for at in range(0, len(held), size):
            tokens, target = run.lessons.ask(held[at : at + size], run.accelerator.device)
            logits = model(input_ids=tokens, use_cache=False).logits
            found = divergence(logits, target, "forward", options.temperature)
            total += float(found.sum()) / options.temperature**2
    model.train()
    held_kl = total / (len(held) * run.lessons.tokens.shape[1])
    if not math.isfinite(held_kl):
        _stop(run, f"held-out text has a divergence of {held_kl} at step {state.step}")
    tokens_seen = state.step * options.batch_tokens
    state.history.append(Step(state.step, tokens_seen, train_kl, held_kl))
    if held_kl < state.best_kl_nats:
        state.best_step, state.best_kl_nats = state.step, held_kl
        state.best = {
            name: parameter.detach().cpu().clone()
            for name, parameter in run.accelerator.unwrap_model(model).named_parameters()
        }


def _shares(run: Run, step: int) -> Iterator[Rows]:
    """This process's windows of one step, one array per accumulated part."""
    options, accelerator = run.options, run.accelerator
    rows = batch(run.lessons.taught, options.windows, options.seed, step)
    mine = rows[accelerator.process_index :: accelerator.num_processes]
    yield from np.split(mine, options.accumulate)


def batch(windows: Rows, size: int, seed: int, step: int) -> Rows:
    """The windows of a step: one pass after the other over all of them, each in an order of its own."""
    first = step * size
    passes = range(first // len(windows), (first + size - 1) // len(windows) + 1)
    order = np.concatenate(
        [np.random.default_rng([seed, each]).permutation(windows) for each in passes]
    )
    start = first - passes[0] * len(windows)
    return order[start : start + size]


def _factor(step: int, steps: int) -> float:
    """Warm-up, then a cosine to zero."""
    rise = (step + 1) / max(1, _WARM_UP * steps)
    return min(1.0, rise) * (1 + math.cos(math.pi * step / steps)) / 2


def _is_settled(state: State, options: DistillOptions) -> bool:
    """Whether the last evaluations have all been no better than one before them."""
    waited = (state.step - state.best_step) // options.evaluate_every
    return options.patience > 0 and waited >= options.patience


def _stop(run: Run, what: str) -> None:
    last = saved.last(run.folder)
    where = "there is no good state yet" if last is None else f"the last good state is {last}"
    raise TrainingError(f"{what}; {where}", "lower --rate; the same --student starts anew")
