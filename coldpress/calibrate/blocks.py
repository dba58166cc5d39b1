"""A model's list of transformer blocks, and its own forward with something in their place."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from coldpress.calibrate.names import text_decoder
from coldpress.errors import UnsupportedModelError

HINT = "make the imatrix with llama-imatrix, or quantize without one"


@dataclass(frozen=True)
class Call:
    """What a block is called with beside the hidden states: positions, masks, the same for all."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def find(model: Any) -> tuple[str, Any]:
    """The path of the list of blocks in the model, and the list.

    Raises:
        UnsupportedModelError: there is none, or tokens are looked up at more than one place.
    """
    path, decoder = text_decoder(model)
    lookups = [each for each in decoder.modules() if isinstance(each, torch.nn.Embedding)]
    for name, each in decoder.named_children():
        if isinstance(each, torch.nn.ModuleList) and len(lookups) == 1:
            return f"{path}.{name}", each
    raise UnsupportedModelError(
        f"calibration cannot run {model.config.model_type} block by block", HINT
    )


def calls(model: Any, layers: Any, embedded: torch.Tensor) -> tuple[torch.Tensor, list[Call]]:
    """What the model's own forward gives the first block, and how it calls each.

    Args:
        embedded: the tokens' embeddings, (sequences, context, width).
    """
    given: list[torch.Tensor] = []
    seen: list[Call] = []

    def note(hidden: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        given.append(hidden)
        seen.append(Call(args, kwargs))
        return hidden

    with _replaced(layers, note):
        text_decoder(model)[1](inputs_embeds=embedded, use_cache=False)
    return given[0], seen


def after(model: Any, layers: Any, hidden: torch.Tensor) -> torch.Tensor:
    """What the model's own forward makes of the last block's output: the head's input."""
    with _replaced(layers, lambda *_args, **_kwargs: hidden):
        out = text_decoder(model)[1](inputs_embeds=hidden, use_cache=False)
    last: torch.Tensor = out.last_hidden_state
    return last


@contextmanager
def _replaced(layers: Any, forward: Callable[..., torch.Tensor]) -> Iterator[None]:
    for layer in layers:
        layer.forward = forward
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward
