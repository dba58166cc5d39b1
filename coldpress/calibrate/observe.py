"""See the input of every matrix product of a model, whatever module makes it."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from coldpress.calibrate.moments import Accumulator


class Observer(TorchFunctionMode):
    """While active, adds up the moments of what each known matrix multiplies.

    Parameters that multiply the very same input are seen once, under the first one's name.
    """

    def __init__(self, parameters: Mapping[str, torch.Tensor], device: torch.device) -> None:
        """Watch ``parameters``: matrices, (out, in), and stacks of them, (experts, out, in)."""
        super().__init__()
        self.held = False  # Whether what is run now is held out.
        self._parameters, self._device = parameters, device
        self._known = {each.data_ptr(): name for name, each in parameters.items()}
        self._leader: dict[str, str] = {}  # Parameter → the first one with the same input.
        self._found: dict[str, Accumulator] = {}
        self._last: tuple[str, torch.Tensor] | None = None

    def found(self) -> Iterator[tuple[tuple[str, ...], Accumulator]]:
        """The parameters that share an input, and what was added up of it."""
        for first, found in self._found.items():
            yield tuple(name for name, each in self._leader.items() if each == first), found

    def unseen(self) -> list[str]:
        """The parameters that nothing was multiplied by."""
        return [name for name in self._parameters if name not in self._leader]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.linear and (found := self._find(args[1])) is not None:
            self._see(*found, args[0])
        return func(*args, **(kwargs or {}))

    def _find(self, weight: torch.Tensor) -> tuple[str, int] | None:
        """The parameter, and the expert in it, that a weight is or is a view of."""
        place = weight.data_ptr()
        if (name := self._known.get(place)) and self._parameters[name].shape == weight.shape:
            return name, 0
        for name, stack in self._parameters.items():
            offset = place - stack.data_ptr()
            if stack.ndim == 3 and 0 <= offset < stack.nbytes and weight.shape == stack.shape[1:]:
                return name, offset // (stack.nbytes // len(stack))
        return None

    def _see(self, name: str, expert: int, X: torch.Tensor) -> None:
        if name not in self._leader:
            self._leader[name] = self._same_as_last(X) or name
        if self._leader[name] != name:
            return
        if name not in self._found:
            shape = self._parameters[name].shape
            experts = shape[0] if len(shape) == 3 else 1
            self._found[name] = Accumulator(experts, shape[-1], self._device)
        self._found[name].add(expert, X.reshape(-1, X.shape[-1]), self.held)
        self._last = (name, X)  # Held, so that no other tensor takes its place in memory.

    def _same_as_last(self, X: torch.Tensor) -> str | None:
        if self._last is None:
            return None
        name, last = self._last
        return name if X.data_ptr() == last.data_ptr() and X.shape == last.shape else None
