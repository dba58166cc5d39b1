"""Train what a quantized file stores, towards a teacher; its size stays the same.

Norms and biases are stored in float32 and block scales in half precision, so they can take any value; codes
can take their neighbours' (see ``heal_weights``). The loss is KL(teacher ‖ quantized). Without lessons the
teacher is the model that the file was made from, on the calibration text and on text that it writes itself; with
lessons it is whoever gave them, for example the model that this one was pruned from. What is kept is the state
with the lowest KL on held-out sequences, as the file stores it. If none is below the start's, the start is kept.

Source: distillation of a quantized network, Polino et al. 2018, arXiv:1802.05668; from text that the model
itself writes, Liu et al. 2023, arXiv:2305.17888.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import gguf
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.func import functional_call

from coldpress.distill import cpu
from coldpress.distill.lessons import Lessons
from coldpress.distill.loss import Target, divergence
from coldpress.distill.train import batch
from coldpress.progress import task
from coldpress.quantize import heal_text
from coldpress.quantize.heal_weights import Trainable
from coldpress.quantize.network import Network
from coldpress.quantize.source import Floats
from coldpress.quantize.types import GgmlType

Bytes = npt.NDArray[np.uint8]
Tensors = Mapping[str, tuple[GgmlType, Bytes]]

_BETAS = (0.9, 0.99)
_WARM_UP = 0.05  # of all steps
_EVALUATION_TOKENS = 8192


@dataclass(frozen=True)
class HealOptions:
    """How long and how fast to train.

    Args:
        steps: how many, with a rate that falls to zero.
        batch_tokens: tokens of a step.
        own_tokens: tokens for the model to write, more text than the calibration's.
        rate: Adam's rate for codes and scales, in distances between codes.
        vector_rate: its rate for norms and biases, times √KL of the start in nats: Adam's steps are as
            long as its rate, so that a small error needs a small one.
        codes: whether codes are trained too, or only scales, norms and biases.
        autocast: compute products in bf16.
    """

    steps: int = 200
    batch_tokens: int = 1024
    own_tokens: int = 1 << 17
    rate: float = 3e-3
    vector_rate: float = 2e-3
    codes: bool = True
    autocast: bool = False
    evaluate_every: int = 20
    seed: int = 0


@dataclass(frozen=True)
class Step:
    """Mean KL on the training text since the last evaluation, and KL on the held-out sequences."""

    step: int
    train_kl_nats: float
    held_kl_nats: float


@dataclass(frozen=True)
class Healed:
    """The tensors' new bytes and the norms' and biases' new values, by GGUF name.

    ``step`` is the one kept, 0 if none was better than the start: then the bytes are those given and there are
    no values.
    """

    tensors: dict[str, Bytes]
    norms: dict[str, Floats]
    kl_before_nats: float
    kl_after_nats: float
    step: int
    history: tuple[Step, ...]

    @property
    def healed(self) -> bool:
        """Whether anything is better than it was."""
        return self.step > 0


def heal(
    network: Network, tensors: Tensors, options: HealOptions, lessons: Lessons | None = None
) -> Healed:
    """Train encoded tensors and the model's norms and biases; see the module.

    It takes some 40 bytes of memory per weight.

    Args:
        network: knows the calibration's tokens; without lessons the held-out ones become what it measures on.
        tensors: GGUF name → type and bytes, (rows, bytes of a row).
        lessons: a teacher's answers, to be taught instead of the model's own.
    """
    course: _Course = (
        _Own(network, options) if lessons is None else _Given(network, lessons, options)
    )
    kept = _File({name: data for name, (_, data) in tensors.items()}, {})
    lowest = before = course.kl(_decoded(tensors, kept))
    state = _State(network, tensors, before, options)
    history: list[Step] = []
    losses: list[float] = []
    best = 0
    with task("healing", options.steps) as advance, cpu.training():
        for step, (tokens, target) in enumerate(course.batches(), start=1):
            losses.append(state.train(tokens, target))
            advance(1)
            if step % options.evaluate_every and step < options.steps:
                continue
            now = state.file()
            history.append(Step(step, float(np.mean(losses)), course.kl(_decoded(tensors, now))))
            losses.clear()
            if history[-1].held_kl_nats < lowest:
                lowest, best, kept = history[-1].held_kl_nats, step, now
    return Healed(kept.data, kept.vectors, before, lowest, best, tuple(history))


@dataclass(frozen=True)
class _File:
    """What would be written: bytes by matrix, values by norm or bias."""

    data: dict[str, Bytes]
    vectors: dict[str, Floats]


def _decoded(tensors: Tensors, file: _File) -> dict[str, Floats]:
    """What the bytes decode to, and the vectors."""
    rows = {
        name: gguf.quants.dequantize(data, gguf.GGMLQuantizationType(tensors[name][0].ggml_id))
        for name, data in file.data.items()
    }
    return {**rows, **file.vectors}


class _State:
    """The student in training; ``kl`` is where it starts."""

    def __init__(self, network: Network, tensors: Tensors, kl: float, options: HealOptions) -> None:
        self._network, self._options = network, options
        self._matrices = {
            name: Trainable(data, kind, network.unchanged(name) if options.codes else None)
            for name, (kind, data) in tensors.items()
        }
        self._vectors = {
            name: network.unchanged(name).requires_grad_() for name in sorted(network.vectors)
        }
        trained = [each for matrix in self._matrices.values() for each in matrix.trained]
        groups = [
            {"params": trained, "lr": options.rate},
            {"params": list(self._vectors.values()), "lr": options.vector_rate * math.sqrt(kl)},
        ]
        self._adam = torch.optim.Adam(groups, betas=_BETAS)
        self._rate = torch.optim.lr_scheduler.LambdaLR(self._adam, self._factor)

    def train(self, tokens: Tensor, target: Target) -> float:
        """One step; returns the mean KL before it, in nats per token."""
        student = {name: each.weights() for name, each in self._matrices.items()}
        parameters = self._network.parameters({**student, **self._vectors})
        with _products(self._options):
            out = functional_call(self._network.model, parameters, (tokens,), {"use_cache": False})
        loss = divergence(out.logits, target, "forward", 1.0).mean()
        self._adam.zero_grad()
        torch.autograd.backward(loss)
        self._adam.step()
        self._rate.step()
        for each in self._matrices.values():
            each.round()
        return float(loss.detach())

    def file(self) -> _File:
        """The present state as a file stores it."""
        return _File(
            {name: each.data() for name, each in self._matrices.items()},
            {name: each.detach().numpy().copy() for name, each in self._vectors.items()},
        )

    def _factor(self, step: int) -> float:
        """Warm-up, then a cosine to zero."""
        steps = self._options.steps
        rise = (step + 1) / max(1, _WARM_UP * steps)
        return min(1.0, rise) * (1 + math.cos(math.pi * step / steps)) / 2


class _Own:
    """The model's own answers, on the calibration text and on what it writes itself."""

    def __init__(self, network: Network, options: HealOptions) -> None:
        self._network, self._options = network, options
        known = network.statistics
        network.measure_on(known.tokens[list(known.held)])

    def kl(self, changes: Mapping[str, Floats]) -> float:
        """KL on the held-out sequences."""
        return self._network.kl(changes)

    def batches(self) -> Iterator[tuple[Tensor, Target]]:
        """Batches of sequences, (sequences, context), in a random order, as often as needed."""
        known, options = self._network.statistics, self._options
        fit = np.delete(known.tokens, list(known.held), axis=0)
        own_tokens = min(options.own_tokens, options.steps * options.batch_tokens)
        own = heal_text.write(self._network.model, fit, own_tokens, options.seed)
        sequences = np.concatenate([fit, own])
        lessons = Lessons(sequences, 1.0, (), teacher=self._network.model)
        yield from _batches(lessons, options)


class _Given:
    """Another teacher's answers."""

    def __init__(self, network: Network, lessons: Lessons, options: HealOptions) -> None:
        self._network, self._lessons, self._options = network, lessons, options

    def kl(self, changes: Mapping[str, Floats]) -> float:
        """KL on the windows that are not taught."""
        held = self._lessons.held
        size = max(1, _EVALUATION_TOKENS // self._lessons.tokens.shape[1])
        total = 0.0
        with self._network.replaced(changes), torch.inference_mode(), _products(self._options):
            for at in range(0, len(held), size):
                tokens, target = self._lessons.ask(held[at : at + size])
                logits = self._network.model(tokens, use_cache=False).logits
                total += float(divergence(logits, target, "forward", 1.0).sum())
        return total / (len(held) * int(self._lessons.tokens.shape[1]))

    def batches(self) -> Iterator[tuple[Tensor, Target]]:
        """Batches of windows, (windows, context), in a random order, as often as needed."""
        yield from _batches(self._lessons, self._options)


_Course = _Own | _Given


def _batches(lessons: Lessons, options: HealOptions) -> Iterator[tuple[Tensor, Target]]:
    size = max(1, options.batch_tokens // lessons.tokens.shape[1])
    for step in range(options.steps):
        yield lessons.ask(batch(lessons.taught, size, options.seed, step))


def _products(options: HealOptions) -> AbstractContextManager[object]:
    """How matrix products are computed."""
    return torch.autocast("cpu", torch.bfloat16) if options.autocast else nullcontext()
