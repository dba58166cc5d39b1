"""``--fit lambda:3008MB``: what an instance's memory leaves for the file, by ``coldpress.memory``."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from coldpress import memory
from coldpress.errors import TooLargeError, UsageError
from coldpress.package import limits
from coldpress.platforms import Target, table
from coldpress.quantize.budget import format_size, parse_size

# The image without weights has 52 MB (README, 2026-11-21); a larger base wants some room.
_IMAGE_BYTES = 200_000_000
# A checkpoint is its GGUF with tensors at pages, and digests of every chunk in it and beside it.
_PAGES_BYTES, _DIGESTS_SHARE = 1 << 20, 1 / 16384
_HINT = "--fit lambda:3008MB or --fit cloudrun:2GiB"


@dataclass(frozen=True)
class Fitted:
    """An instance's memory, split; ``weights_bytes`` is what is left for the file."""

    target: Target
    memory_bytes: int
    beside: memory.Memory
    weights_bytes: int


def fit(text: str, fields: Mapping[str, Any], context: int | None = None) -> Fitted:
    """Split an instance's memory.

    Args:
        text: platform and memory; on Lambda MB means MiB, as it does in AWS's own settings.
        fields: the model's GGUF metadata, key → value.
        context: tokens per sequence; by default what ``serve`` takes.

    Raises:
        UsageError: no such platform, or nothing is left for weights.
        TooLargeError: the platform has no instance of this size.
    """
    target, size = parse(text)
    if size > (most := table().targets[target].most_mib) * memory.MIB:
        raise TooLargeError(f"{target} has up to {most} MiB, not {text}", _HINT)
    shape = memory.Shape.read(fields)
    beside = memory.account(shape, context, table().targets[target].parallel)
    layout = _PAGES_BYTES + math.ceil(size * _DIGESTS_SHARE)
    weights = size - beside.needed_bytes - layout
    # Only images hold the weights themselves.
    if (image := limits.image_bytes(target)) is not None and target == "lambda":
        weights = min(weights, image - _IMAGE_BYTES)
    if weights <= 0:
        needed = format_size(beside.needed_bytes)
        raise UsageError(
            f"{text} leaves no memory for weights: a context of {beside.context} tokens needs {needed}",
            "more memory, or a shorter --context",
        )
    return Fitted(target, size, beside, weights)


def parse(text: str) -> tuple[Target, int]:
    """A platform and the bytes of an instance.

    Raises:
        UsageError: not such a text.
    """
    name, _, amount = text.strip().partition(":")
    target: Target | None = next((t for t in get_args(Target) if t == name), None)
    if target is None or not amount:
        raise UsageError(f"{text!r} is not a platform and its memory", _HINT)
    size = parse_size(amount)
    if target.startswith("lambda") and amount.strip().upper().endswith("MB"):
        size = math.floor(float(amount.strip()[:-2]) * memory.MIB)
    return target, size
