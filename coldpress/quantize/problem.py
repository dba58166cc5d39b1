"""From sensitivities to a problem to solve: one measuring pass serves every budget."""

from collections.abc import Mapping
from typing import Any

from coldpress.errors import UsageError
from coldpress.quantize.allocate import Choice, Problem
from coldpress.quantize.budget import fixed_bytes, padded
from coldpress.quantize.layout import Metadata, tensor_bytes
from coldpress.quantize.rates import Rates, read_share
from coldpress.quantize.sensitivity import Sensitivity
from coldpress.quantize.types import TYPES


def problem(
    reader: Any,
    metadata: Metadata,
    sensitivities: Mapping[str, Mapping[str, Sensitivity]],
    rates: Rates | None = None,
) -> Problem:
    """What there is to choose for each tensor of a GGUF.

    Args:
        metadata: as the file will be written with; its bytes count.
        rates: seconds per byte by type; types without one are left out. None: time is no matter.

    Raises:
        UsageError: a tensor has no type that has a rate.
    """
    share = read_share(reader)
    choices = {}
    for tensor in reader.tensors:
        if tensor.name not in sensitivities:
            continue
        known = sensitivities[tensor.name]
        kinds = [kind for kind in known if rates is None or kind in rates]
        if not kinds:
            raise UsageError(
                f"no type with a rate fits the rows of {tensor.name}", "give rates of more types"
            )
        choices[tensor.name] = tuple(
            Choice(
                type=kind,
                size_bytes=padded(size := tensor_bytes(tensor, {tensor.name: TYPES[kind]}), reader),
                kl_nats=known[kind].kl_nats,
                seconds=size * share[tensor.name] * rates[kind] if rates else 0.0,
            )
            for kind in kinds
        )
    return Problem(choices, fixed_bytes(reader, metadata, choices))
