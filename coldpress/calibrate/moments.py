"""Second moments of every linear layer's input, by forward hooks.

The sum of x² over tokens is the diagonal of the sum of x xᵀ: another ``Moment`` gives the matrix.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from coldpress.progress import task

Moment = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Moments:
    """Per layer the summed moment in float64 and the number of tokens it is over."""

    sums: dict[str, torch.Tensor]
    counts: dict[str, int]


def sum_of_squares(X: torch.Tensor) -> torch.Tensor:
    """Σ x² over tokens: (tokens, inputs) → (inputs,), added up in float64: the diagonal of Xᵀ X."""
    return X.square().sum(0, dtype=torch.float64)


def collect(
    model: Any, layers: Mapping[str, str], blocks: Sequence[Sequence[int]], moment: Moment
) -> Moments:
    """Run token blocks through a model and add up a moment of each layer's input.

    Args:
        layers: module name → the name to collect under; modules that share a name are added up.
        blocks: token ids, one sequence each.
        moment: (tokens, inputs) → a tensor that adds up over tokens.
    """
    sums: dict[str, torch.Tensor] = {}
    counts: dict[str, int] = {}

    def hook_for(name: str) -> Callable[[Any, tuple[torch.Tensor, ...]], None]:
        def add(_module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            X = inputs[0].reshape(-1, inputs[0].shape[-1])  # (tokens, inputs)
            new = moment(X)
            sums[name] = sums[name] + new if name in sums else new
            counts[name] = counts.get(name, 0) + len(X)

        return add

    hooks = [
        model.get_submodule(module).register_forward_pre_hook(hook_for(name))
        for module, name in layers.items()
    ]
    try:
        with torch.inference_mode(), task("calibrating", len(blocks)) as advance:
            for block in blocks:
                model(torch.tensor([list(block)]), use_cache=False)
                advance(1)
    finally:
        for hook in hooks:
            hook.remove()
    return Moments(sums, counts)
