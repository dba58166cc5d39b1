"""Refine the blocks of a scalar type (Q*, IQ4_*): codes by feedback and descent, scales by least squares."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from coldpress.quantize.rounding.grids import GRIDS, Block, Grid
from coldpress.quantize.rounding.refit import refit_d, refit_sub_blocks
from coldpress.quantize.rounding.walk import Walked, descend, walk

_WALKS = 2  # With refitted scales, after the first with ggml's; more gain under 2 %.
_SWEEPS = 4


@dataclass(frozen=True)
class _State:
    """Blocks in column-major fields, see ``walk`` and ``refit``, and how well they do."""

    d: Tensor
    dmin: Tensor
    scale: Tensor
    min: Tensor
    walked: Walked

    def better(self, other: "_State") -> "_State":
        """Row by row the one with the lower objective."""
        wins = other.walked.loss < self.walked.loss

        def pick(mine: Tensor, theirs: Tensor) -> Tensor:
            return torch.where(wins, theirs, mine)

        a, b = self.walked, other.walked
        return _State(
            pick(self.d, other.d),
            pick(self.dmin, other.dmin),
            pick(self.scale, other.scale),
            pick(self.min, other.min),
            Walked(pick(a.code, b.code), pick(a.Q, b.Q), pick(a.loss, b.loss)),
        )


def refine(
    W: Tensor, blocks: Tensor, U: Tensor, name: str, *, walks: bool = True
) -> tuple[Tensor, Tensor]:
    """Improve blocks of a scalar type; no row gets worse.

    Args:
        W: the weights to store, (rows, weights of a block).
        blocks: bytes to start from, (rows, bytes of a block).
        U: upper Cholesky factor of the inverse curvature of these weights, (weights, weights).
        walks: choose all codes anew by error feedback first; else only descend from the given ones.

    Returns:
        (bytes, decoded weights), both by row.
    """
    grid, block = GRIDS[name], GRIDS[name].unpack(blocks)
    S = torch.linalg.inv(U.T @ U)
    target = W.T.contiguous()
    best = _given(target, S, block, grid)
    if walks:
        state = _walk(target, U, best, grid)
        best = best.better(state)
        for turn in range(_WALKS):
            state = _walk(target, U, _refit(target, S, state, grid, turn), grid)
            best = best.better(state)
    for turn in range(_SWEEPS):
        best = best.better(_descend(target, S, best, grid))
        best = best.better(_measure(target, S, _refit(target, S, best, grid, turn), grid))
    final = Block(best.d.T, best.dmin.T, best.scale.T, best.min.T, best.walked.code.T)
    return grid.pack(final), best.walked.Q.T


def _given(W: Tensor, S: Tensor, block: Block, grid: Grid) -> _State:
    d, dmin = block.d.T.contiguous(), block.dmin.T.contiguous()
    scale, mins = block.scale.T.contiguous(), block.min.T.contiguous()
    code = block.code.T.contiguous()
    return _measure(W, S, _State(d, dmin, scale, mins, Walked(code, code, code[0])), grid)


def _walk(W: Tensor, U: Tensor, state: _State, grid: Grid) -> _State:
    walked = walk(W, U, state.d * state.scale, state.dmin * state.min, grid)
    return replace(state, walked=walked)


def _descend(W: Tensor, S: Tensor, state: _State, grid: Grid) -> _State:
    walked = descend(W, S, state.d * state.scale, state.dmin * state.min, grid, state.walked)
    return replace(state, walked=walked)


def _refit(W: Tensor, S: Tensor, state: _State, grid: Grid, turn: int) -> _State:
    """New scales for the state's codes: sub-blocks every other turn, ``d`` always."""
    level = grid.level(state.walked.code)
    scale, mins = state.scale, state.min
    if grid.scales[0] < grid.scales[1] and turn % 2 == 0:
        scale, mins = refit_sub_blocks(W, S, level, state.d, state.dmin, grid)
    A = scale.repeat_interleave(grid.sub_block, 0) * level
    B = mins.repeat_interleave(grid.sub_block, 0) if grid.has_min else None
    d, dmin = refit_d(W, S, A, B, state.d, state.dmin)
    return _State(d, dmin, scale, mins, state.walked)


def _measure(W: Tensor, S: Tensor, state: _State, grid: Grid) -> _State:
    """The state with its weights decoded and its objective computed anew."""
    size, code = grid.sub_block, state.walked.code
    Q = (state.d * state.scale).repeat_interleave(size, 0) * grid.level(code)
    if grid.has_min:
        Q = Q - (state.dmin * state.min).repeat_interleave(size, 0)
    E = W - Q
    return replace(state, walked=Walked(code, Q, (E * (S @ E)).sum(0)))
