"""Run sequences through a model one transformer block at a time, with one block's weights in memory.

The model's own forward is run once with blocks that do nothing: it tells what each block is called
with (positions, masks, whether its attention is local or global). Then each block is loaded, called
with just that on every sequence's hidden states, and freed. The states lie in a file meanwhile.
"""

import ctypes
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from coldpress.calibrate import blocks
from coldpress.calibrate.blocks import Call
from coldpress.calibrate.moments import Accumulator, Moments
from coldpress.calibrate.names import text_decoder
from coldpress.calibrate.observe import Observer
from coldpress.calibrate.states import Batch, States
from coldpress.calibrate.states import batches as split
from coldpress.calibrate.weights import Weights
from coldpress.errors import CorruptModelError, UnsupportedModelError
from coldpress.progress import Tick, task

Tokens = npt.NDArray[np.int32]

_BATCH_TOKENS = {"cpu": 512, "cuda": 8192}


@dataclass(frozen=True)
class Input:
    """The moments of one input, and the parameters that multiply it."""

    parameters: tuple[str, ...]
    moments: Moments


def collect(
    model: Any,
    source: Weights,
    parameters: Sequence[str],
    tokens: Tokens,
    held: Sequence[int],
    scratch: Path,
) -> Iterator[Input]:
    """Second moments of every input, block by block; each is forgotten once it is yielded.

    Args:
        model: without weights; see ``reference.empty_model``.
        source: where its weights are.
        parameters: what to collect for: matrices in the blocks, and the head.
        tokens: ids, (sequences, context).
        held: the sequences to hold out.
        scratch: a folder for the hidden states, in a file without a name.

    Raises:
        CorruptModelError: weights are missing or not finite, or lead to values that are not finite.
        UnsupportedModelError: the model is built in a way that cannot be streamed.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    prefix, layers = blocks.find(model)
    head = _head(model, parameters, prefix)
    order = [each for each in range(len(tokens)) if each not in held] + sorted(held)
    batches = split(len(tokens), len(held), max(1, _BATCH_TOKENS[device.type] // tokens.shape[1]))
    _load_outside(model, source, prefix, head, device)
    with (
        States(scratch, tokens.shape[1], device) as states,
        task("calibrating", len(layers) * len(batches)) as advance,
    ):
        calls = _embed(model, source, layers, states, tokens[order], batches)
        for index, layer in enumerate(layers):
            inside = [f"{prefix}.{index}.{name}" for name, _ in layer.named_parameters()]
            source.load(inside, device)
            _give_back()
            watched = {name: model.get_parameter(name) for name in inside if name in parameters}
            call = {size: each[index] for size, each in calls.items()}
            found = _run(layer, watched, states, batches, call, advance)
            del watched
            layer.to("meta")  # Nothing holds its weights now.
            _give_back()
            while found:
                yield _finish(*found.pop(0))
        yield _head_input(model, layers, states, batches, head)


@torch.no_grad()
def _run(
    layer: Any,
    parameters: Mapping[str, torch.Tensor],
    states: States,
    batches: Sequence[Batch],
    calls: Mapping[int, Call],
    advance: Tick,
) -> list[tuple[tuple[str, ...], Accumulator]]:
    """Replace all states by what a block makes of them; the moments of what its matrices multiply.

    Args:
        parameters: the block's matrices.
        calls: number of sequences → how the block is called.
    """
    observer = Observer(parameters, states.device)
    for batch in batches:
        observer.held = batch.held
        hidden, call = states.read(batch), calls[batch.stop - batch.start]
        with observer:
            out = layer(hidden, *call.args, **call.kwargs)
        if not isinstance(out, torch.Tensor) or out.shape != hidden.shape:
            raise UnsupportedModelError(
                f"{type(layer).__name__} does not return hidden states alone", blocks.HINT
            )
        states.write(batch, out)
        advance(1)
    if unseen := observer.unseen():
        raise UnsupportedModelError(
            f"calibration does not see what {unseen[0]} multiplies", blocks.HINT
        )
    return list(observer.found())


def _give_back() -> None:
    """Let the system have the memory that glibc's allocator keeps in its gaps."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _head(model: Any, parameters: Sequence[str], prefix: str) -> str:
    """The parameter of the head: the one to collect for that is in no block."""
    outside = [each for each in parameters if not each.startswith(f"{prefix}.")]
    if len(outside) != 1:
        raise UnsupportedModelError(
            f"calibration of {model.config.model_type} does not reach {', '.join(outside)}",
            blocks.HINT,
        )
    return outside[0]


def _load_outside(
    model: Any, source: Weights, prefix: str, head: str, device: torch.device
) -> None:
    """Load what is neither in a block nor a matrix of the vocabulary's size; check the head."""
    embeddings = model.get_input_embeddings().weight
    path, decoder = text_decoder(model)
    named = ((f"{path}.{name}", each) for name, each in decoder.named_parameters())
    outside = [
        name for name, each in named if not name.startswith(f"{prefix}.") and each is not embeddings
    ]
    source.load(outside, device)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
    if model.get_parameter(head) is not embeddings:
        source.rows(head, [])


@torch.no_grad()
def _embed(
    model: Any,
    source: Weights,
    layers: Any,
    states: States,
    tokens: Tokens,
    batches: Sequence[Batch],
) -> dict[int, list[Call]]:
    """Write the first block's inputs; per number of sequences, how each block is called.

    Only the rows of tokens that occur are kept of the embeddings.
    """
    embeddings = model.get_input_embeddings()
    parameter = next(name for name, each in model.named_parameters() if each is embeddings.weight)
    known, ids = np.unique(tokens, return_inverse=True)
    rows = source.rows(parameter, known).to(states.device)
    embeddings.weight, embeddings.padding_idx = torch.nn.Parameter(rows), None
    calls: dict[int, list[Call]] = {}
    for batch in batches:
        wanted = torch.from_numpy(ids.reshape(tokens.shape)[batch.start : batch.stop])
        first, seen = blocks.calls(model, layers, embeddings(wanted.to(states.device)))
        states.write(batch, first)
        calls.setdefault(batch.stop - batch.start, seen)
    embeddings.weight = torch.nn.Parameter(rows[:0])
    return calls


@torch.no_grad()
def _head_input(
    model: Any, layers: Any, states: States, batches: Sequence[Batch], head: str
) -> Input:
    """The moments of what the head multiplies: the last states after the model's own last norm."""
    found = Accumulator(1, model.get_parameter(head).shape[-1], states.device)
    for batch in batches:
        out = blocks.after(model, layers, states.read(batch))
        found.add(0, out.reshape(-1, out.shape[-1]), batch.held)
    return _finish((head,), found)


def _finish(parameters: tuple[str, ...], found: Accumulator) -> Input:
    if not found.is_finite():
        raise CorruptModelError(
            f"the input of {parameters[0]} becomes infinite or NaN",
            "the weights are damaged or overflow; fetch the model again",
        )
    return Input(parameters, found.finish())
