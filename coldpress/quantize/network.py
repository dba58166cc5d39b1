"""The Hugging Face model with weights replaceable by a GGUF's, and its KL from what it was.

The present state's hidden states after every block are kept, so that a change is run from the first
block on that it touches.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.linalg import vecdot

from coldpress.calibrate import blocks
from coldpress.calibrate.names import Place
from coldpress.calibrate.statistics import Statistics
from coldpress.convert import reference
from coldpress.errors import UnsupportedModelError
from coldpress.quantize import placement
from coldpress.quantize.placement import Placement, Vector
from coldpress.quantize.source import Floats, is_quantizable, rows

Tokens = npt.NDArray[np.int32]

_BATCH_TOKENS = 1024
_BATCH_LOGITS = 1 << 24
_HINT = "choose a type for the whole model instead of a budget"


class Network:
    """A model in float32 whose weights can be replaced, by GGUF name and in the GGUF's row order.

    ``model`` is transformers' own; without changes it holds the values of the GGUF. ``matrices`` are what
    can be quantized, ``vectors`` norms and biases; ``statistics`` are the calibration's.
    """

    def __init__(
        self, model: Any, reader: Any, statistics: Statistics, matrices: Mapping[str, Placement]
    ) -> None:
        """See ``load``."""
        self.statistics = statistics
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        self.model, self.matrices = model, matrices
        self.vectors = placement.vectors(model, self._tensors, matrices)
        self._places: Mapping[str, Placement | Vector] = {**matrices, **self.vectors}
        self._prefix, self._layers = blocks.find(model)
        self._changed: set[str] = set()
        self._tokens = torch.empty(0, 0, dtype=torch.int64)
        self._logits = torch.empty(0, 0, 0)
        self._hidden: list[Tensor] = []  # Per block what it returns, (sequences, context, width).
        for name in matrices:
            self._restore(name)

    @classmethod
    def load(cls, model_dir: Path, statistics: Statistics, reader: Any) -> "Network":
        """Load a model folder and find the tensors of its GGUF in it.

        Args:
            reader: gguf.GGUFReader of the GGUF to quantize.

        Raises:
            InputError: the GGUF was made from another model.
            UnsupportedModelError: a matrix of the GGUF is nowhere in the model.
        """
        model = reference.load_model(model_dir).requires_grad_(False)
        found = {}
        for tensor in filter(is_quantizable, reader.tensors):
            places = _places(model, statistics, tensor.name)
            parameter = model.get_parameter(places[0].parameter)
            found[tensor.name] = placement.find(tensor, places, parameter)
        return cls(model, reader, statistics, found)

    def measure_on(self, tokens: Tokens) -> None:
        """Run the unchanged model on tokens, (sequences, context), and keep its logits."""
        self._tokens = torch.from_numpy(tokens.astype(np.int64))
        self._set({})
        shape = (*tokens.shape, self.model.config.get_text_config().vocab_size)
        # In a file, which the system may drop from memory: tokens times vocabulary can be gigabytes.
        with tempfile.TemporaryFile() as file:
            self._logits = torch.from_numpy(np.memmap(file, np.float32, "w+", shape=shape))
        for batch, logits in self._forward(0, keep=True):
            self._logits[batch] = logits

    def unchanged(self, name: str) -> Tensor:
        """A tensor of the unchanged model, (rows, inputs), or a vector."""
        tensor = self._tensors[name]
        values = torch.tensor(rows(tensor, 0, tensor.n_elements))
        return values.view(-1) if name in self.vectors else values

    def parameters(self, changes: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The model's parameters that hold these tensors, changed; autograd follows."""
        changed: dict[str, Tensor] = {}
        for name, values in changes.items():
            place = self._places[name]
            if place.parameter not in changed:
                changed[place.parameter] = self._parameter(name).clone()
            place.write(changed[place.parameter], values)
        return changed

    def reset(self) -> None:
        """Put the unchanged model's values back."""
        self._set({})

    def rebase(self, changes: Mapping[str, Floats]) -> None:
        """Take the unchanged model with these rows replaced as the present state."""
        self._set(changes)
        for _ in self._forward(0, keep=True):
            pass

    def kl(self, changes: Mapping[str, Floats]) -> float:
        """KL(unchanged ‖ present state with these replaced too), mean over positions, in nats."""
        first = min(map(self._first_block, changes), default=len(self._layers))
        total = 0.0
        with self.replaced(changes), torch.inference_mode():
            for batch, logits in self._forward(first):
                total += float(divergence(self._logits[batch], logits).sum())
        return total / self._tokens.numel()

    def _set(self, changes: Mapping[str, Floats]) -> None:
        for name in self._changed - set(changes):
            self._restore(name)
        for name, values in changes.items():
            self._write(name, torch.from_numpy(values))
        self._changed = set(changes)

    @contextmanager
    def replaced(self, changes: Mapping[str, Floats]) -> Iterator[None]:
        """The present state with these rows replaced too."""
        saved = {name: self._places[name].read(self._parameter(name)) for name in changes}
        for name, values in changes.items():
            self._write(name, torch.from_numpy(values))
        try:
            yield
        finally:
            for name, before in saved.items():
                self._write(name, before)

    def _restore(self, name: str) -> None:
        self._write(name, self.unchanged(name))

    def _write(self, name: str, values: Tensor) -> None:
        self._places[name].write(self._parameter(name), values)

    def _parameter(self, name: str) -> Tensor:
        parameter: Tensor = self.model.get_parameter(self._places[name].parameter)
        return parameter

    def _first_block(self, name: str) -> int:
        """The first block that sees the tensor; the number of blocks for what follows them."""
        parameter = self._parameter(name)
        path = self._places[name].parameter
        if path.startswith(f"{self._prefix}."):
            return int(path.removeprefix(f"{self._prefix}.").partition(".")[0])
        head = self.model.get_output_embeddings().weight
        tied = head is self.model.get_input_embeddings().weight
        return len(self._layers) if parameter is head and not tied else 0

    def _forward(self, first: int, keep: bool = False) -> Iterator[tuple[slice, Tensor]]:
        """Batch by batch of sequences the logits, (sequences, context, vocabulary).

        Args:
            first: the first block that is run; before it are the present state's hidden states.
            keep: make what is run the present state's.
        """
        if keep:
            shape = (*self._tokens.shape, self.model.config.get_text_config().hidden_size)
            self._hidden = [torch.empty(shape) for _ in self._layers]
        for batch in _batches(len(self._tokens), self._tokens.shape[1], self._logits.shape[-1]):
            with torch.inference_mode(), self._from_block(first, batch, keep):
                yield batch, self.model(self._tokens[batch], use_cache=False).logits

    @contextmanager
    def _from_block(self, first: int, batch: slice, keep: bool) -> Iterator[None]:
        """The model starts at block ``first`` with the kept states; the blocks' own are kept after."""

        def keep_output(_block: Any, _args: Any, output: Tensor) -> None:
            outputs.append(output)

        outputs: list[Tensor] = []
        hooks = [each.register_forward_hook(keep_output) for each in self._layers if keep]
        for index, layer in enumerate(self._layers[:first]):
            layer.forward = _constant(self._hidden[index][batch] if index == first - 1 else None)
        try:
            yield
        finally:
            for layer in self._layers[:first]:
                del layer.forward
            for hook in hooks:
                hook.remove()
        for index, output in enumerate(outputs):
            self._hidden[index][batch] = output


def divergence(base: Tensor, logits: Tensor) -> Tensor:
    """KL(softmax(base) ‖ softmax(logits)) per position: (…, vocabulary) → (…), in float64.

    With d = logits − base it is log Σ p·exp d − Σ p·d. Shifted so that Σ p·d is about zero both terms are
    small where d is, and a KL of 1e-9 is still told apart from none.
    """
    p = base.softmax(-1)
    d = logits - base
    d -= vecdot(p, d)[..., None]
    shift = vecdot(p, d).double()
    kl: Tensor = vecdot(p, d.expm1_()).double().log1p() - shift
    return kl


def _places(model: Any, statistics: Statistics, name: str) -> Sequence[Place]:
    """Where a GGUF tensor is; the embeddings of an untied model are in no statistics."""
    if name in statistics.names:
        return statistics.places(name)
    if name != "token_embd.weight":
        raise UnsupportedModelError(f"{name} was not found in the Hugging Face model", _HINT)
    embeddings = model.get_input_embeddings()
    path = next(path for path, each in model.named_modules() if each is embeddings)
    return (Place(f"{path}.weight"),)


def _constant(value: Tensor | None) -> Any:
    """A block's forward that returns a value; without one, what it is given."""
    return lambda hidden, *_args, **_kwargs: hidden if value is None else value


def _batches(sequences: int, context: int, vocabulary: int) -> Iterator[slice]:
    """Slices of sequences, small enough for the caches and the logits for memory."""
    tokens = min(_BATCH_TOKENS, _BATCH_LOGITS // vocabulary)
    step = max(1, tokens // context)
    for start in range(0, sequences, step):
        yield slice(start, min(start + step, sequences))
