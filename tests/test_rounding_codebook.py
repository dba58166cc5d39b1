"""Codebook types: bytes as gguf reads them, the walk as a slow obvious one, and never worse."""

import gguf
import numpy as np
import numpy.typing as npt
import pytest
import torch
from gguf.quants import dequantize
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from coldpress.quantize.encode import encode
from coldpress.quantize.rounding import codebook, codebook_format, codebook_nearest
from coldpress.quantize.rounding.codebook import refine
from coldpress.quantize.rounding.codebook_format import FORMATS
from coldpress.quantize.types import TYPES

Floats = npt.NDArray[np.float64]
KINDS = sorted(FORMATS)
QUICK = ("IQ2_XXS", "IQ3_XXS", "IQ3_S")


def decoded(blocks: Tensor, kind: str) -> Tensor:
    return torch.tensor(dequantize(blocks.numpy(), gguf.GGMLQuantizationType[kind]))


def curvature(seed: int, decay: float = 1.5) -> Tensor:
    """Second moments of correlated inputs, most of whose variance is in few directions."""
    made = torch.Generator().manual_seed(seed)
    Z = torch.randn(1024, 256, generator=made, dtype=torch.float64)
    A = torch.randn(256, 256, generator=made, dtype=torch.float64) / 16
    X = Z * torch.arange(1, 257) ** (-decay / 2) @ A
    S = X.T @ X / len(X)
    return S + 0.01 * S.diagonal().mean() * torch.eye(256)


def factor(S: Tensor) -> Tensor:
    return torch.linalg.cholesky(torch.linalg.inv(S), upper=True).float()


def weights(seed: int, rows: int) -> Tensor:
    return torch.randn(rows, 256, generator=torch.Generator().manual_seed(seed)) * 0.02


def objective(W: Tensor, Q: Tensor, S: Tensor) -> Tensor:
    E = (W - Q).double()
    return ((E @ S) * E).sum(1)


def started(W: Tensor, S: Tensor, kind: str) -> Tensor:
    """A start: ggml's, or one entry everywhere where ggml needs seconds to set up its search."""
    if kind in QUICK:
        return torch.tensor(encode(W.numpy(), TYPES[kind], S.diagonal().float().numpy()))
    grid = codebook_format.grid(kind, torch.device("cpu"))
    middle = len(grid.steps) // 2
    d = W.abs().amax(1) / (grid.steps[middle] * grid.entries.max())
    level = torch.full((len(W), 256 // FORMATS[kind].run), middle)
    values = grid.entries[0].repeat(len(W), 256 // FORMATS[kind].group)
    return codebook_format.pack(codebook_format.Codes(d.half().float(), level, values), kind)


@pytest.mark.parametrize("kind", KINDS)
def test_any_bytes_decode_as_in_gguf_and_are_written_back(kind: str) -> None:
    made = torch.Generator().manual_seed(1)
    shape = (400, TYPES[kind].block_bytes)
    blocks = torch.randint(0, 256, shape, generator=made, dtype=torch.uint8)
    blocks = blocks[codebook_format.unpack(blocks, kind).d.isfinite()]
    codes = codebook_format.unpack(blocks, kind)
    assert len(blocks) > 300
    assert torch.equal(codebook_format.decode(codes, kind), decoded(blocks, kind))
    assert torch.equal(codebook_format.pack(codes, kind), blocks)


@pytest.mark.parametrize("kind", KINDS)
def test_refined_blocks_are_better_and_decode_to_what_is_returned(kind: str) -> None:
    S, W = curvature(2), weights(2, 12)
    start = started(W, S, kind)
    blocks, Q = refine(W, start, factor(S), TYPES[kind], effort=1)
    assert torch.equal(Q, decoded(blocks, kind))
    before, after = objective(W, decoded(start, kind), S), objective(W, Q, S)
    assert (after <= before).all()
    assert after.sum() < 0.6 * before.sum()


@settings(max_examples=6, deadline=None)
@given(
    st.sampled_from(["IQ2_XXS", "IQ3_S"]), st.integers(0, 999), st.sampled_from([0.0, 1e-6, 1e3])
)
def test_no_row_gets_worse(kind: str, seed: int, scale: float) -> None:
    S, W = curvature(seed, decay=3), weights(seed, 4)
    W[0] *= scale
    start = started(W, S, kind)
    first, Q = refine(W, start, factor(S), TYPES[kind], effort=1)
    again, Q2 = refine(W, first, factor(S), TYPES[kind], effort=1)
    costs = [objective(W, q, S) for q in (decoded(start, kind), Q, Q2)]
    assert (costs[0] >= costs[1]).all()
    assert (costs[1] >= costs[2]).all()
    kept = costs[1] == costs[2]
    assert torch.equal(again[kept], first[kept])
    assert torch.equal(Q2, decoded(again, kind))


def slow_signed_entry(x: Floats, S: Floats, entries: Floats, signs: str, parity: int) -> Floats:
    """The entry of least (x − q)ᵀ S (x − q), of all, with the signs of x or one of them changed."""
    sign = np.where(x < 0, -1.0, 1.0) if signs != "none" else np.ones(len(x))
    if signs == "even" and (sign < 0).sum() % 2 != parity:
        sign[np.argmin(np.abs(x) * np.diag(S))] *= -1
    E = x - sign * entries
    return sign * entries[np.argmin(((E @ S) * E).sum(1))]


def slow_run(
    w: Floats, q: Floats, S: Floats, columns: range, d: float, level: int, kind: str
) -> float:
    """Round the columns of a run in place of ``q``, each group under what is left of S; the cost."""
    form, total = FORMATS[kind], 0.0
    grid = codebook_format.grid(kind, torch.device("cpu"))
    entries = grid.entries.double().numpy()
    step, shift = d * float(grid.steps[level]), float(grid.shifts[level])
    for octet in range(columns.start, columns.stop, 8):
        parities = (0, 1) if form.signs == "even" and form.group == 4 else (0,)
        tried = []
        for parity in parities:
            new, cost = q.copy(), 0.0
            for start in range(octet, octet + 8, form.group):
                group = slice(start, start + form.group)
                # The later columns answer the errors made so far; that answer is the group's target.
                rest = np.linalg.inv(S[start:, start:])
                target = w[start:] + (w - new)[:start] @ S[:start, start:] @ rest
                left = np.linalg.inv(rest[: form.group, : form.group])
                x = target[: form.group] / step - shift
                value = slow_signed_entry(x, left, entries, form.signs, parity)
                new[group] = step * (value + shift)
                e = target[: form.group] - new[group]
                cost += e @ left @ e
            tried.append((cost, new))
        cost, new = min(tried, key=lambda pair: pair[0])
        q[:] = new
        total += cost
    return total


def slow_walk(w: Floats, S: Floats, d: float, levels: Floats, kind: str) -> tuple[Floats, float]:
    """Walk over one row, with the best of the levels next to ``levels`` at every run."""
    width, q, total = FORMATS[kind].run, np.zeros(256), 0.0
    for run, near in enumerate(levels):
        tried = []
        centre = min(max(int(near), 1), FORMATS[kind].levels - 2)
        for level in (centre - 1, centre, centre + 1):
            new = q.copy()
            columns = range(run * width, (run + 1) * width)
            tried.append((slow_run(w, new, S, columns, d, level, kind), new))
        cost, q = min(tried, key=lambda pair: pair[0])
        total += cost
    return q, total


@pytest.mark.parametrize("kind", ["IQ2_XXS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ1_S"])
def test_the_walk_is_the_slow_obvious_one(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codebook, "_REACH", 1)
    S, W = curvature(3), weights(3, 2)
    start = codebook_format.unpack(started(W, S, kind), kind)
    task = codebook._prepare(factor(S).double(), kind)
    walked = codebook_format.decode(codebook._walk(W, start, task, beam=1), kind)
    for w, d, levels, q in zip(W, start.d, start.level, walked, strict=True):
        slow, cost = slow_walk(w.double().numpy(), S.numpy(), float(d), levels.numpy(), kind)
        assert np.abs(slow - q.numpy()).max() < 1e-6
        # The costs of the groups, each under its own Schur complement, add up to the objective.
        assert cost == pytest.approx(objective(w[None], q[None], S).item(), rel=1e-4)


@pytest.mark.parametrize("kind", ["IQ2_XS", "IQ3_XXS", "IQ3_S", "IQ1_S"])
def test_a_sweep_lowers_the_objective_of_every_row_it_changes(kind: str) -> None:
    S, W = curvature(4), weights(4, 16)
    task = codebook._prepare(factor(S).double(), kind)
    codes = codebook_format.unpack(started(W, S, kind), kind)
    for runs, reach in zip(task.sweeps, (0, 1), strict=True):
        before = objective(W, codebook_format.decode(codes, kind), S)
        swept = codebook._sweep(W, codes, runs, reach, task)
        after = objective(W, codebook_format.decode(swept, kind), S)
        assert (after < before).all()
        again = codebook._sweep(W, swept, runs, reach, task)
        assert (objective(W, codebook_format.decode(again, kind), S) <= after * (1 + 1e-6)).all()
        codes = swept


@pytest.mark.parametrize(("kind", "parity"), [("IQ2_XXS", 0), ("IQ3_XXS", 1), ("IQ3_S", None)])
def test_the_nearest_entry_is_close_to_the_best_of_all(kind: str, parity: int | None) -> None:
    book = codebook_nearest.codebook(kind, torch.device("cpu"))
    g = book.format.group
    S = curvature(5)[:g, :g]
    signs = 1 - 2.0 * (torch.arange(1 << g)[:, None] >> torch.arange(g) & 1)
    if parity is not None:
        signs = signs[(signs < 0).sum(1) % 2 == parity]
    points = (signs[:, None] * book.entries).flatten(0, 1).double()
    x = torch.randn(60, g, generator=torch.Generator().manual_seed(5)) * book.entries.mean()
    E = x[:, None].double() - points
    best = ((E @ S) * E).sum(-1).min(1).values
    wanted = None if parity is None else torch.full((60,), parity)
    q = codebook_nearest.nearest(
        x, codebook_nearest.searchable(S.float(), book), book, wanted, flips=True
    )
    if parity is not None:
        assert ((q < 0).sum(1) % 2 == parity).all()
    found = objective(x, q, S)
    assert (found > best * (1 - 1e-5)).all()
    assert found.sum() < 1.1 * best.sum()
