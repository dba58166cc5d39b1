"""An encoded tensor as something to train: its block scales, and its codes through latent weights.

A weight of any ggml type is ``d·unit·(value + shift) − dmin·min``. A block stores ``d`` and ``dmin`` in half
precision; a run of its weights shares the integers behind ``unit``, ``shift`` and ``min``, which stay; ``value``
is a level of a scalar type or part of an entry of a codebook. A latent weight lies near each value: the value
is what is nearest to it, and takes its gradient.

Source: the straight-through estimator, Bengio et al. 2013, arXiv:1308.3432; rounding trained in this way,
Nagel et al. 2020, arXiv:2004.10568.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from coldpress.quantize.rounding import codebook_format as codebook
from coldpress.quantize.rounding.codebook_format import FORMATS, OCTET, Codes
from coldpress.quantize.rounding.grids import GRIDS, Grid, halves
from coldpress.quantize.types import GgmlType

Bytes = npt.NDArray[np.uint8]

_HALVINGS = 4
_SCORES = 1 << 24  # float32 numbers that a search may hold
_REFRESH = 8  # steps between two searches of a codebook


@dataclass(frozen=True)
class _Layout:
    """n blocks taken apart, for runs of equal ``unit``.

    ``scales`` are d and, if the type has one, dmin, (n, 1) each; ``unit``, ``shift`` and ``min`` (n, runs);
    ``values`` (n, runs, width). ``nearest`` finds the values next to latent weights, in cells of ``cell``
    neighbours; ``gap`` is the usual distance between two values. ``pack`` makes bytes of scales and values.
    """

    scales: list[Tensor]
    unit: Tensor
    shift: Tensor
    min: Tensor
    values: Tensor
    cell: int
    gap: float
    nearest: Callable[[Tensor], Tensor]
    pack: Callable[[list[Tensor], Tensor], Tensor]


class _Through(torch.autograd.Function):
    """Gives the second, and its gradient to the first."""

    @staticmethod
    def forward(_ctx: Any, _latent: Tensor, values: Tensor) -> Tensor:
        """The values."""
        return values.clone()

    @staticmethod
    def backward(_ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """The gradient, for the latent weights."""
        return grad, None


def _through(latent: Tensor, values: Tensor) -> Tensor:
    out: Tensor = _Through.apply(latent, values)  # type: ignore[no-untyped-call]
    return out


class Trainable:
    """An encoded tensor.

    ``scales`` are trained, and ``latent`` weights; both in gaps, the scales' at the largest value.
    """

    def __init__(self, data: Bytes, kind: GgmlType, W: Tensor | None) -> None:
        """Take ``data``, (rows, bytes of a row), apart.

        Args:
            W: the weights that it stands for, (rows, inputs); None if its values shall stay.
        """
        self._rows = len(data)
        raw = torch.from_numpy(data.reshape(-1, kind.block_bytes))
        scalar = kind.name in GRIDS
        self._layout = _scalar(raw, GRIDS[kind.name]) if scalar else _codebook(raw, kind.name)
        self._refresh, self._age = (1 if scalar else _REFRESH), 0
        self._values = self._layout.values
        largest = (self._values + self._layout.shift[..., None]).abs().max()
        self.reach = self._layout.gap / max(float(largest), self._layout.gap)
        self.scales = [torch.zeros_like(each, requires_grad=True) for each in self._layout.scales]
        self.latent = None if W is None else self._near(W).requires_grad_()

    @property
    def trained(self) -> list[Tensor]:
        """What autograd reaches."""
        return self.scales if self.latent is None else [*self.scales, self.latent]

    def weights(self) -> Tensor:
        """The rows, (rows, inputs), as the present state decodes; autograd reaches what is trained."""
        at, scales = self._layout, self._stored()
        values = self._values
        if self.latent is not None:
            values = _through(self.latent * at.gap, values)
        W = (scales[0] * at.unit)[..., None] * (values + at.shift[..., None])
        if len(scales) > 1:
            W = W - (scales[1] * at.min)[..., None]
        return W.reshape(self._rows, -1)

    def round(self, *, at_once: bool = False) -> None:
        """Take the values nearest to the latent weights; a codebook is searched every few calls only."""
        self._age += 1
        if self.latent is not None and (at_once or self._age % self._refresh == 0):
            self._values = self._layout.nearest(self.latent.detach() * self._layout.gap)

    def data(self) -> Bytes:
        """The present bytes, (rows, bytes of a row)."""
        with torch.no_grad():
            raw = self._layout.pack(self._stored(), self._values)
        packed: Bytes = raw.numpy().reshape(self._rows, -1)
        return packed

    def _stored(self) -> list[Tensor]:
        """The scales as half precision stores them."""
        pairs = zip(self._layout.scales, self.scales, strict=True)
        exact = [start * (1 + self.reach * change) for start, change in pairs]
        return [_through(each, halves(each.detach())) for each in exact]

    def _near(self, W: Tensor) -> Tensor:
        """W in gaps, each cell drawn to its values until they are the nearest."""
        at = self._layout
        scales = [*at.scales, torch.zeros_like(at.scales[0])]
        offset = (scales[1] * at.min)[..., None]
        wanted = (W.reshape(at.values.shape) + offset) / (scales[0] * at.unit)[..., None]
        off = (wanted - at.shift[..., None] - at.values).nan_to_num_(0, 0, 0)
        off.clamp_(-at.gap, at.gap)
        for _ in range(_HALVINGS):
            off *= torch.where(self._is_near(off), 1, 0.5)
        off *= self._is_near(off)
        return (at.values + off) / at.gap

    def _is_near(self, off: Tensor) -> Tensor:
        """Whether the values are the nearest to themselves and ``off``, by cell, (n, runs, width)."""
        at = self._layout
        same = (at.nearest(at.values + off) == at.values).view(-1, at.cell).all(1)
        return same.repeat_interleave(at.cell).view_as(off)


def _scalar(raw: Tensor, grid: Grid) -> _Layout:
    block = grid.unpack(raw)
    level = grid.level(block.code)

    def pack(scales: list[Tensor], values: Tensor) -> Tensor:
        changed = replace(block, d=scales[0], code=grid.code(values.flatten(1)))
        return grid.pack(replace(changed, dmin=scales[1]) if grid.has_min else changed)

    return _Layout(
        scales=[block.d, block.dmin] if grid.has_min else [block.d],
        unit=block.scale,
        shift=torch.zeros_like(block.scale),
        min=block.min,
        values=level.view(len(raw), -1, grid.sub_block),
        cell=1,
        gap=_power_of_two(1 if grid.levels is None else float(np.diff(grid.levels).mean())),
        nearest=lambda latent: grid.level(grid.code(latent)),
        pack=pack,
    )


def _codebook(raw: Tensor, kind: str) -> _Layout:
    codes, constants = codebook.unpack(raw, kind), codebook.grid(kind, raw.device)
    values = codes.values.view(len(raw), -1, FORMATS[kind].run)
    digits = constants.digits
    return _Layout(
        scales=[codes.d[:, None]],
        unit=constants.steps[codes.level],
        shift=constants.shifts[codes.level],
        min=torch.zeros_like(codes.level, dtype=torch.float32),
        values=values,
        cell=OCTET,
        gap=_power_of_two(float((digits[-1] - digits[0]) / (len(digits) - 1))),
        nearest=lambda latent: _entries(latent.reshape(-1, OCTET), kind).view_as(latent),
        pack=lambda scales, values: codebook.pack(
            Codes(scales[0][:, 0], codes.level, values.flatten(1)), kind
        ),
    )


def _entries(x: Tensor, kind: str) -> Tensor:
    """Signed entries near octets of latent weights, (N, 8)."""
    layout, entries = FORMATS[kind], codebook.grid(kind, x.device).entries
    signs = torch.ones_like(x)
    if layout.signs != "none":
        signs = signs.copysign(x)
    if layout.signs == "even":
        odd = signs.prod(1) < 0
        signs[odd] = signs[odd].scatter(
            1, least := x[odd].abs().argmin(1, keepdim=True), -signs[odd].gather(1, least)
        )
    groups = (x * signs).view(-1, layout.group)
    linear, squares = -2 * entries.T, entries.square().sum(1)
    step = max(1, _SCORES // len(entries))
    best = [
        torch.addmm(squares, groups[at : at + step], linear).argmin(1)
        for at in range(0, len(groups), step)
    ]
    return entries[torch.cat(best)].view_as(x) * signs


def _power_of_two(gap: float) -> float:
    """The next one, so that dividing by a gap and multiplying again is exact."""
    return 2.0 ** round(math.log2(gap))
