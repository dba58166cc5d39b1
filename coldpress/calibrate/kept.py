"""What a calibration covers of a model with blocks of different shapes; see ``shapes``."""

import re
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from coldpress.calibrate.moments import Moments
from coldpress.calibrate.names import Place
from coldpress.shapes import Shapes

_PART = re.compile(r"blk\.(\d+)\.(attn_|ffn_down)")


def places(
    known: Mapping[str, tuple[Place, ...]], shapes: Shapes | None
) -> dict[str, tuple[Place, ...]]:
    """The weights without those of attention that was taken out."""
    return {name: each for name, each in known.items() if _stays(name, shapes)}


def moments(given: Moments, tensor: str, shapes: Shapes | None) -> Moments:
    """The moments of a tensor's inputs without those of neurons that were taken out."""
    found = _PART.match(tensor)
    if shapes is None or found is None or found[2] != "ffn_down":
        return given
    count = shapes.neurons[int(found[1])]
    return replace(
        given,
        sums=np.ascontiguousarray(given.sums[:, :count]),
        hessian=np.ascontiguousarray(given.hessian[:, :count, :count]),
        held=np.ascontiguousarray(given.held[:, :, :count]),
    )


def _stays(name: str, shapes: Shapes | None) -> bool:
    found = _PART.match(name)
    if shapes is None or found is None or found[2] != "attn_":
        return True
    return shapes.attention[int(found[1])]
