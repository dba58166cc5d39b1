"""Where the rows of a GGUF's tensors lie in the Hugging Face model.

Converting reorders rows (RoPE), stacks experts and splits fused projections; columns stay. The order is
found by comparing the rows themselves, so that no architecture needs to be known here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from coldpress.calibrate import names
from coldpress.calibrate.names import Place
from coldpress.errors import InputError
from coldpress.quantize.source import row_length

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Part:
    """Consecutive rows of a GGUF tensor, (rows, ``inputs``): row i of them is row ``order[i]`` of ``place``."""

    place: Place
    order: Tensor
    inputs: int

    def of(self, parameter: Tensor) -> Tensor:
        """The rows in the parameter that are meant, a view, in the parameter's order."""
        whole = parameter if self.place.expert is None else parameter[self.place.expert]
        part = whole if self.place.rows is None else whole[self.place.rows]
        return part[: len(self.order), : self.inputs]


@dataclass(frozen=True)
class Placement:
    """A GGUF tensor's parts, one after the other, all in one parameter."""

    parts: tuple[Part, ...]

    @property
    def parameter(self) -> str:
        """The parameter's name."""
        return self.parts[0].place.parameter

    def read(self, parameter: Tensor) -> Tensor:
        """The tensor's rows, (rows, inputs) in the GGUF's order."""
        return torch.cat([part.of(parameter)[part.order] for part in self.parts])

    def write(self, parameter: Tensor, rows: Tensor) -> None:
        """Put rows, (rows, inputs) in the GGUF's order, into the parameter; autograd follows."""
        for part, given in zip(
            self.parts, torch.split(rows, [len(each.order) for each in self.parts]), strict=True
        ):
            part.of(parameter)[part.order] = given


@dataclass(frozen=True)
class Vector:
    """A GGUF vector, a norm's weight or a bias: ``parameter[order] + offset``.

    The offset is 1 where a norm multiplies by 1 + its parameter (Gemma) and the GGUF stores the sum.
    """

    parameter: str
    order: Tensor
    offset: float

    def read(self, parameter: Tensor) -> Tensor:
        """The vector as the GGUF has it."""
        return parameter[self.order] + self.offset

    def write(self, parameter: Tensor, values: Tensor) -> None:
        """Put the GGUF's values into the parameter; autograd follows."""
        parameter[self.order] = values - self.offset


def vectors(
    model: Any, tensors: Mapping[str, Any], known: Mapping[str, Placement]
) -> dict[str, Vector]:
    """The GGUF's float32 vectors that are parameters of the model; others are left out.

    Args:
        known: the matrices; a bias is in the order of its matrix's rows.
    """
    layers, found = names.tensor_names(model.config), {}
    for path, value in model.named_parameters():
        layer, _, kind = path.rpartition(".")
        name = f"{layers.get_name(layer)}.{kind}"
        if value.ndim != 1 or name not in tensors or tensors[name].data.dtype != np.float32:
            continue
        matrix = known.get(f"{layers.get_name(layer)}.weight")
        orders = [
            torch.arange(len(value)),
            *(part.order for part in (matrix.parts if matrix else ())),
        ]
        for vector in (Vector(path, order, offset) for order in orders for offset in (0.0, 1.0)):
            if np.array_equal(vector.read(value.detach()).numpy(), tensors[name].data):
                found[name] = vector
                break
    return found


def find(tensor: Any, places: Sequence[Place], parameter: Tensor) -> Placement:
    """Match the rows of a GGUF tensor that is not quantized with those of a parameter.

    Rows that are equal keep their order. Rows and columns at the end of a parameter that the GGUF leaves out,
    as in a padded vocabulary or where neurons were pruned, are left alone.

    Raises:
        InputError: the rows are not the same.
    """
    stored = _bytes(tensor.data.reshape(-1, tensor.data.shape[-1]))
    parts, start = [], 0
    for place in places:
        inputs = row_length(tensor)
        whole = Part(place, torch.arange(len(stored) // len(places)), inputs).of(parameter)
        rows = stored[start : start + len(whole)]
        given = np.ascontiguousarray(whole.numpy())
        order = _order(rows, _bytes(gguf.quants.quantize(given, tensor.tensor_type)))
        if order is None or whole.shape[1] != inputs:
            raise InputError(
                f"the rows of {tensor.name} are not those of {place.parameter}",
                "convert and calibrate this very model folder",
            )
        parts.append(Part(place, torch.from_numpy(order), inputs))
        start += len(rows)
    return Placement(tuple(parts))


def _bytes(rows: npt.NDArray[Any]) -> Bytes:
    return np.ascontiguousarray(rows).view(np.uint8)


def _order(wanted: Bytes, given: Bytes) -> npt.NDArray[np.int64] | None:
    """The order with ``given[order] == wanted``; None if there is none."""
    if wanted.shape != given.shape:
        return None
    if np.array_equal(wanted, given):
        return np.arange(len(wanted))
    sorted_wanted, sorted_given = (_sorted(each) for each in (wanted, given))
    order = np.empty(len(wanted), np.int64)
    order[sorted_wanted] = sorted_given
    return order if np.array_equal(given[order], wanted) else None


def _sorted(rows: Bytes) -> npt.NDArray[np.int64]:
    """Row numbers such that equal rows are neighbours, in the same sequence for any order of rows."""
    hashes = np.array([hash(row.tobytes()) for row in rows], np.int64)
    return np.argsort(hashes, kind="stable")
