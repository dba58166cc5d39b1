"""From a target as people say it to the most weights that may stay."""

import re
from dataclasses import dataclass
from typing import Any

from coldpress.calibrate import blocks
from coldpress.counts import parse_count
from coldpress.errors import UsageError
from coldpress.quantize.budget import parse_bits, parse_size

_SPEEDUP = re.compile(r"(\d+(?:\.\d+)?)\s*x?", re.IGNORECASE)


@dataclass(frozen=True)
class Sizes:
    """Weights of a model: ``total``, in the blocks' matrices and vectors, and those only looked up."""

    total: int
    matrices: int
    vectors: int
    looked_up: int

    @property
    def in_blocks(self) -> int:
        """Weights of the blocks."""
        return self.matrices + self.vectors


def sizes(model: Any) -> Sizes:
    """Count a model's weights; a head that shares the embeddings is counted once, and is read."""
    _, layers = blocks.find(model)
    embeddings, head = model.get_input_embeddings().weight, model.get_output_embeddings()
    tied = head is not None and head.weight is embeddings
    return Sizes(
        total=sum(each.numel() for each in model.parameters()),
        matrices=sum(each.numel() for each in layers.parameters() if each.ndim > 1),
        vectors=sum(each.numel() for each in layers.parameters() if each.ndim == 1),
        looked_up=0 if tied else embeddings.numel(),
    )


def most(model: Any, options: Any) -> int:
    """The most weights of the blocks that meet ``PruneOptions``' target.

    Raises:
        UsageError: the rest of the model alone is more.
    """
    known = sizes(model)
    rest = known.total - known.in_blocks
    if options.ratio is not None:
        matrices: int = round(known.matrices * (1 - options.ratio))
        return known.vectors + matrices
    if options.params is not None:
        wanted = parse_count(options.params)
    elif options.size is not None:
        wanted = int(8 * parse_size(options.size) / parse_bits(str(options.bpw)))
    else:
        read = known.total - known.looked_up
        wanted = int(read / parse_speedup(options.speedup)) + known.looked_up
    if wanted <= rest:
        raise UsageError(
            f"{wanted} weights may stay; embeddings, head and norms alone are {rest}",
            "ask for less, or quantize further",
        )
    return wanted - rest


def parse_speedup(text: str) -> float:
    """A factor above 1, such as ``1.5x``.

    Raises:
        UsageError: it is none.
    """
    match = _SPEEDUP.fullmatch(text.strip())
    factor = float(match[1]) if match else 0.0
    if factor <= 1:
        raise UsageError(f"{text!r} is no speed-up", "a factor above 1, such as 1.5x")
    return factor


def check(size: str | None, bpw: float | None, speedup: str | None) -> None:
    """Refuse what cannot be read as a size, bits or a factor."""
    if size is not None:
        parse_size(size)
        parse_bits(str(bpw))
    if speedup is not None:
        parse_speedup(speedup)
