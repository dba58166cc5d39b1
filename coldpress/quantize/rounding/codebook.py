"""Refine super-blocks of ggml's vector-codebook types with error feedback inside the block.

ggml chooses entries and scales as if the columns were independent. Here a row's objective is e S eᵀ, where
S is what is left of the curvature once all later columns have answered. First a walk: octet by octet the
error moves onto the columns not yet rounded, each run of 16 or 32 weights tries the levels near ggml's,
and the best few roundings of the columns so far are kept. Then sweeps: fit d by least squares, round
each octet again given all others, and each run again with the levels next to its own.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from coldpress.quantize.rounding import codebook_format as layout
from coldpress.quantize.rounding.codebook_format import FORMATS, OCTET, Codes
from coldpress.quantize.rounding.codebook_nearest import (
    Codebook,
    Octet,
    codebook,
    diagonal,
    octets,
    round_run,
    schur,
    spread,
)
from coldpress.quantize.types import GgmlType

_REACH = 4  # levels that the walk tries on each side of ggml's
# float32 numbers that one search holds; on a CPU they had best stay in the cache
_SCORES = {"cpu": 1 << 21, "cuda": 1 << 29}
_LESS = 1 - 1e-6  # float32 noise is no improvement
_TINY = 2.0**-24  # the smallest fp16 number; a scale of 0 could never be left again


@dataclass(frozen=True)
class _Runs:
    """Runs of ``width`` columns, to be rounded given all other columns: ``S`` (runs, width, width),
    its inverse, and the octets of each run.
    """

    width: int
    S: Tensor
    inverse: Tensor
    octets: list[list[Octet]]


@dataclass(frozen=True)
class _Task:
    """What all rows share: S in two precisions, and the columns as the walk and the sweeps see them.

    ``walk`` has the octets of each run given the columns after them, ``feedback`` (run, later) what
    a run's error takes off the later columns; ``sweeps`` are over octets and over runs.
    """

    kind: str
    book: Codebook
    S: Tensor
    S64: Tensor
    walk: list[list[Octet]]
    feedback: list[Tensor]
    sweeps: tuple[_Runs, _Runs]


def refine(
    W: Tensor, blocks: Tensor, U: Tensor, kind: GgmlType, effort: int = 1
) -> tuple[Tensor, Tensor]:
    """Find better codes for one super-block of every row.

    Args:
        W: weights, (rows, 256) float32, with the errors of earlier columns moved onto them.
        blocks: an encoding of them to start from, uint8 (rows, block_bytes).
        U: the rows and columns of these 256 in the upper Cholesky factor of the inverse curvature
            of all columns not yet rounded, (256, 256); S = (Uᵀ U)⁻¹.
        effort: how many roundings the walk keeps, and how many sweeps follow it.

    Returns:
        Blocks, and their decoded weights, (rows, 256) float32. No row's e S eᵀ is above its start's;
        a row that did not improve keeps its bytes.

    Source: Frantar et al. 2022, arXiv:2210.17323, Algorithm 1, by groups as Tseng et al. 2024,
    arXiv:2402.04396; the kept roundings: Egiazarian et al. 2024, arXiv:2401.06118; the
    sweeps: Nair and Suggala 2024, arXiv:2406.17542.
    """
    task = _prepare(U.double(), kind.name)
    scores = len(task.book.entries) * (2 * _REACH + 1) * effort
    rows = max(1, _SCORES[W.device.type] // scores)
    parts = [
        _refine(W[start : start + rows], blocks[start : start + rows], task, effort)
        for start in range(0, len(W), rows)
    ]
    new, Q = zip(*parts, strict=True)
    return torch.cat(new), torch.cat(Q)


def _prepare(U: Tensor, kind: str) -> _Task:
    book, run = codebook(kind, U.device), FORMATS[kind].run
    S = schur(U)
    walk = octets(diagonal(U, run), book)
    sweeps = (_runs(S, OCTET, book), _runs(S, run, book))
    return _Task(kind, book, S.float(), S, walk, spread(U, run), sweeps)


def _runs(S: Tensor, width: int, book: Codebook) -> _Runs:
    blocks = diagonal(S, width)
    inverse = torch.linalg.inv(blocks)
    factors = torch.linalg.cholesky(inverse, upper=True)
    return _Runs(width, blocks.float(), inverse.float(), octets(factors, book))


def _refine(W: Tensor, blocks: Tensor, task: _Task, effort: int) -> tuple[Tensor, Tensor]:
    start = layout.unpack(blocks, task.kind)
    codes = _best(W, _walk(W, start, task, effort), start, task)
    for _ in range(effort):
        for runs, reach in zip(task.sweeps, (0, 1), strict=True):
            codes = _sweep(W, _fit(W, codes, task), runs, reach, task)
    codes = _best(W, _fit(W, codes, task), start, task)
    Q = layout.decode(codes, task.kind)
    return layout.pack(codes, task.kind), Q


def _best(W: Tensor, new: Codes, old: Codes, task: _Task) -> Codes:
    """The rows of ``new`` that are better than those of ``old``."""
    costs = []
    for codes in (new, old):
        E = (W - layout.decode(codes, task.kind)).double()
        costs.append(((E @ task.S64) * E).sum(1))
    better = (costs[0] < costs[1])[:, None]
    return Codes(
        torch.where(better[:, 0], new.d, old.d),
        torch.where(better, new.level, old.level),
        torch.where(better, new.values, old.values),
    )


def _walk(W: Tensor, start: Codes, task: _Task, beam: int) -> Codes:
    """Round run by run from the left; of the roundings so far, each times the levels tried for the next
    run, the ``beam`` best are kept. Their dimension is the second one of ``T`` and what it became.
    """
    d, width = start.d.clamp(min=_TINY), FORMATS[task.kind].run
    T, cost = W[:, None], torch.zeros_like(W[:, :1])
    values, level = torch.empty_like(T), torch.empty_like(start.level[:, None])
    for r, run in enumerate(task.walk):
        columns = slice(r * width, (r + 1) * width)
        tried, found, more = _try(T[..., columns], d, start.level[:, r], run, _REACH, False, task)
        total = (cost[..., None] + more).flatten(1)
        cost, kept = total.topk(min(beam, total.shape[1]), 1, largest=False)
        T, values, level = (_pick(part, kept // tried.shape[1]) for part in (T, values, level))
        values[..., columns] = _pick(found.flatten(1, 2), kept)
        level[..., r] = tried.gather(1, kept % tried.shape[1])
        q = layout.weights(d[:, None, None], level[..., r, None], values[..., columns], task.kind)
        T[..., columns.stop :] -= (T[..., columns] - q) @ task.feedback[r]
    return Codes(d, level[:, 0], values[:, 0])


def _pick(part: Tensor, kept: Tensor) -> Tensor:
    """Rows ``kept`` (n, k) of each ``part`` (n, h, ...): (n, k, ...)."""
    return part[torch.arange(len(part), device=part.device)[:, None], kept]


def _try(
    T: Tensor, d: Tensor, level: Tensor, run: list[Octet], reach: int, flips: bool, task: _Task
) -> tuple[Tensor, Tensor, Tensor]:
    """Round a run at each level at most ``reach`` from ``level``.

    Args:
        T: targets, (n, h, width); ``d`` and ``level``: (n,), the same for the h of a row.

    Returns:
        Levels (n, k), values (n, h, k, width), and their costs (n, h, k).
    """
    last = FORMATS[task.kind].levels - 1
    reach = min(reach, last // 2)
    around = torch.arange(-reach, reach + 1, device=T.device)
    levels = level.clamp(reach, last - reach)[:, None] + around
    step = layout.scales(d[:, None], levels, task.kind)
    X = T[:, :, None] / step[:, None, :, None]
    X = X - layout.grid(task.kind, T.device).shifts[levels][:, None, :, None]
    values, cost = round_run(X.flatten(0, 2), run, task.book, flips)
    return levels, values.view_as(X), cost.view(X.shape[:3]) * step[:, None] ** 2


def _fit(W: Tensor, codes: Codes, task: _Task) -> Codes:
    """The d of each row that its codes want: least squares under S, as an fp16 number."""
    P = layout.decode(replace(codes, d=torch.ones_like(codes.d)), task.kind)
    PS = P @ task.S
    d = ((PS * W).sum(1) / (PS * P).sum(1)).half().float()
    return replace(codes, d=torch.where((d > 0) & d.isfinite(), d, codes.d))


def _sweep(W: Tensor, codes: Codes, runs: _Runs, reach: int, task: _Task) -> Codes:
    """Round each run again, given all other columns, at its level and at most ``reach`` from it; it
    changes where that lowers the objective.
    """
    level, values = codes.level.clone(), codes.values.clone()
    Q = layout.decode(codes, task.kind)
    R = (W - Q) @ task.S
    for k, run in enumerate(runs.octets):
        columns = slice(k * runs.width, (k + 1) * runs.width)
        r = columns.start // FORMATS[task.kind].run
        away = R[:, columns] @ runs.inverse[k]
        T = (Q[:, columns] + away)[:, None]
        tried, found, costs = _try(T, codes.d, level[:, r], run, reach, reach == 0, task)
        cost, best = costs[:, 0].min(1, keepdim=True)
        better = cost < (away * R[:, columns]).sum(1, keepdim=True) * _LESS
        values[:, columns] = torch.where(better, _pick(found[:, 0], best)[:, 0], values[:, columns])
        level[:, r] = torch.where(better, tried.gather(1, best), level[:, r, None])[:, 0]
        q = layout.weights(codes.d[:, None], level[:, r, None], values[:, columns], task.kind)
        R[:, columns.stop :] -= (q - Q[:, columns]) @ task.S[columns, columns.stop :]
    return Codes(codes.d, level, values)
