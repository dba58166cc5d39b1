"""Blocks of different shapes in a uniform checkpoint: what is zeros, and no GGUF holds.

``prune --heterogeneous`` writes ``{"coldpress": {"kept": {"neurons": […], "attention": […]}}}`` into
``config.json``: of block i the first ``neurons[i]`` feed-forward neurons stay, and its attention if
``attention[i]``; all else is zeros.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from coldpress.errors import NotAModelError


@dataclass(frozen=True)
class Shapes:
    """By block the neurons that stay, and whether attention does."""

    neurons: tuple[int, ...]
    attention: tuple[bool, ...]


def of(config: Mapping[str, Any]) -> Shapes | None:
    """The shapes that a ``config.json`` tells of; None where all blocks are whole.

    Raises:
        NotAModelError: they are not those of its blocks.
    """
    given = config.get("coldpress")
    if given is None:
        return None
    try:
        kept = given["kept"]
        found = Shapes(tuple(map(int, kept["neurons"])), tuple(map(bool, kept["attention"])))
        blocks, width = int(config["num_hidden_layers"]), int(config["intermediate_size"])
    except (KeyError, TypeError, ValueError) as error:
        raise NotAModelError(
            f"config.json's `coldpress` tells of no shapes: {error!r}", "prune the model again"
        ) from error
    fits = len(found.neurons) == len(found.attention) == blocks
    if not fits or not all(0 < each <= width for each in found.neurons):
        raise NotAModelError(
            "config.json's `coldpress` tells of other blocks than the model has",
            "prune the model again",
        )
    return found
