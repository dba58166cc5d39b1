"""Rounding with error feedback: grids decode as ggml does, the walk equals a slow one, nothing gets worse."""

import sys

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize
from hypothesis import given, settings
from hypothesis import strategies as st

from coldpress.errors import InputError
from coldpress.quantize.encode import encode
from coldpress.quantize.rounding import Factor, compensate, factor, scalar
from coldpress.quantize.rounding.compensate import feed_back
from coldpress.quantize.rounding.factor import inverse_factor, invert_upper
from coldpress.quantize.rounding.grids import GRIDS, Grid
from coldpress.quantize.rounding.refit import normal, refit_d, refit_sub_blocks
from coldpress.quantize.rounding.walk import descend, walk
from coldpress.quantize.types import TYPES

SCALAR, CODEBOOK = (
    sorted(GRIDS),
    sorted(name for name in TYPES if name.startswith(("IQ1", "IQ2", "IQ3"))),
)


def curvature(inputs: int, seed: int = 0) -> torch.Tensor:
    """Second moments of correlated inputs of uneven size, as a layer's are."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(inputs, inputs, generator=generator) / inputs**0.5
    sizes = torch.exp(0.7 * torch.randn(inputs, generator=generator))
    X = torch.randn(4 * inputs, inputs, generator=generator) @ (mix + torch.eye(inputs)) * sizes
    return X.T @ X / len(X)


def weights(rows: int, inputs: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, inputs, generator=torch.Generator().manual_seed(seed))


def decoded(raw: np.ndarray, name: str) -> torch.Tensor:
    return torch.from_numpy(dequantize(raw, gguf.GGMLQuantizationType(TYPES[name].ggml_id)))


def damped(its: Factor) -> torch.Tensor:
    return its.curvature(slice(0, len(its.R)))


def loss(W: torch.Tensor, Q: torch.Tensor, H: torch.Tensor) -> torch.Tensor:
    """e H eᵀ by row, in float64."""
    E = (W - Q).double()
    return ((E @ H.double()) * E).sum(1)


@pytest.mark.parametrize("name", SCALAR)
def test_grids_decode_ggmls_bytes_bit_for_bit_and_pack_them_again(name: str) -> None:
    raw = encode(weights(40, TYPES[name].block_size).numpy(), TYPES[name], None)
    block = GRIDS[name].unpack(torch.from_numpy(raw))
    assert torch.equal(GRIDS[name].decode(block), decoded(raw, name))
    assert np.array_equal(GRIDS[name].pack(block).numpy(), raw)


@pytest.mark.parametrize("name", SCALAR)
def test_grids_reach_every_bit_of_a_block(name: str) -> None:
    """Random bytes, so that scales and codes that ggml never writes are told apart too."""
    raw = np.random.default_rng(1).integers(0, 256, (400, TYPES[name].block_bytes), np.uint8)
    block = GRIDS[name].unpack(torch.from_numpy(raw))
    numbers = torch.isfinite(block.d[:, 0]) & torch.isfinite(block.dmin[:, 0])
    assert numbers.sum() > 300
    raw, block = raw[numbers], GRIDS[name].unpack(torch.from_numpy(raw[numbers]))
    assert np.array_equal(GRIDS[name].pack(block).numpy(), raw)
    assert torch.equal(GRIDS[name].decode(block), decoded(raw, name))


@pytest.mark.parametrize("name", ["IQ4_NL", "Q3_K"])
def test_the_nearest_code_is_the_nearest(name: str) -> None:
    grid = GRIDS[name]
    codes = torch.arange(grid.codes[0], grid.codes[1] + 1).float()
    x = 150 * torch.randn(1000) if grid.levels else 6 * torch.randn(1000)
    distances = (x[:, None] - grid.level(codes)[None]).abs()
    found = (x - grid.snap(x.clone())).abs()
    assert torch.equal(found, distances.min(1).values)


def slow_walk(
    w: np.ndarray, H: np.ndarray, step: np.ndarray, offset: np.ndarray, grid: Grid
) -> list[float]:
    """One row, by the book: after each column the rest answers optimally under the curvature left."""
    target, codes = w.astype(np.float64), []
    for j in range(len(w)):
        sub = j // grid.sub_block
        ratio = (target[j] + offset[sub]) / step[sub] if step[sub] else 0.0
        code = grid.code(torch.tensor([ratio])).item()
        q = step[sub] * grid.level(torch.tensor([code])).item() - offset[sub]
        # Minimise over the later columns' changes x:  [e x] H [e x]ᵀ, e the error fixed now.
        rest = slice(j + 1, None)
        if j + 1 < len(w):
            target[rest] += np.linalg.solve(H[rest, rest], H[rest, j]) * (target[j] - q)
        codes.append(code)
    return codes


@pytest.mark.parametrize("name", ["Q2_K", "Q3_K", "IQ4_XS", "Q5_1"])
def test_the_walk_equals_a_slow_one(name: str) -> None:
    kind, grid = TYPES[name], GRIDS[name]
    its, W = factor(curvature(kind.block_size)), weights(3, kind.block_size)
    block = grid.unpack(torch.from_numpy(encode(W.numpy(), kind, None)))
    step, offset = (block.d * block.scale).T, (block.dmin * block.min).T
    level = walk(W.T.contiguous(), invert_upper(its.R), step, offset, grid)
    exact = damped(its).double().numpy()
    for row in range(3):
        slow = slow_walk(W[row].numpy(), exact, step[:, row].numpy(), offset[:, row].numpy(), grid)
        same = np.mean(grid.code(level[:, row]).numpy() == np.array(slow))
        assert same > 0.98, same  # A tie in float32 may fall the other way, and move what follows.


@pytest.mark.parametrize("name", ["Q2_K", "Q4_K", "IQ4_XS", "Q4_0"])
def test_descent_ends_where_no_single_code_can_improve(name: str) -> None:
    kind, grid = TYPES[name], GRIDS[name]
    its, W = factor(curvature(kind.block_size)), weights(4, kind.block_size)
    H = damped(its)
    block = grid.unpack(torch.from_numpy(encode(W.numpy(), kind, None)))
    step, offset = (block.d * block.scale).T, (block.dmin * block.min).T
    level = walk(W.T.contiguous(), invert_upper(its.R), step, offset, grid)

    def weights_of(level: torch.Tensor) -> torch.Tensor:
        return (grid.spread(step.T).T * level - grid.spread(offset.T).T).T

    best = loss(W, weights_of(level), H)
    for _ in range(30):
        gradient = H @ (W - weights_of(level)).T
        level = descend(H, step, grid, level, gradient)
        before, best = best, loss(W, weights_of(level), H)
        assert (best <= before * (1 + 1e-5)).all()
    for change in (-1, 1):
        for j in range(0, kind.block_size, 17):
            other = level.clone()
            other[j] = grid.level((grid.code(level[j]) + change).clamp(*grid.codes))
            assert (loss(W, weights_of(other), H) >= best * (1 - 1e-5)).all()


@pytest.mark.parametrize("name", ["Q2_K", "Q3_K", "Q4_0", "Q4_1"])
def test_the_normal_equations_are_those_of_the_levels(name: str) -> None:
    kind, grid = TYPES[name], GRIDS[name]
    size, count = grid.sub_block, kind.block_size // grid.sub_block
    S, W = curvature(kind.block_size).double(), weights(3, kind.block_size).T.double()
    level = grid.level(grid.unpack(torch.from_numpy(encode(W.T.float().numpy(), kind, None))).code)
    its = normal(S @ W, S, level.T.double(), grid)
    for row in range(3):
        basis = torch.zeros(kind.block_size, 2 * count if grid.has_min else count).double()
        for i in range(kind.block_size):
            basis[i, i // size] = level[row, i]
            if grid.has_min:
                basis[i, count + i // size] = -1
        assert torch.allclose(its.M[row], basis.T @ S @ basis)
        assert torch.allclose(its.t[row], basis.T @ S @ W[:, row])


@pytest.mark.parametrize("name", ["Q2_K", "Q4_K", "Q6_K"])
def test_refitted_scales_are_the_least_squares_of_their_codes(name: str) -> None:
    kind, grid = TYPES[name], GRIDS[name]
    S, W = curvature(256).double(), weights(3, 256).T.double()
    block = grid.unpack(torch.from_numpy(encode(W.T.float().numpy(), kind, None)))
    level = grid.level(block.code).T.double()
    A = block.scale.T.double().repeat_interleave(grid.sub_block, 0) * level
    B = block.min.T.double().repeat_interleave(grid.sub_block, 0) if grid.has_min else None
    its = normal(S @ W, S, level, grid)
    scale, mins = block.scale.T.double(), block.min.T.double()
    d, dmin = refit_d(its, scale, mins, block.d.T.double(), block.dmin.T.double(), grid)
    factored = torch.linalg.cholesky(S).T
    for row in range(3):
        columns = [A[:, row]] if B is None else [A[:, row], -B[:, row]]
        basis = factored @ torch.stack(columns, 1)
        expected = torch.linalg.lstsq(basis, (factored @ W[:, row])[:, None]).solution[:, 0]
        got = torch.stack([d[0, row], dmin[0, row]])[: len(columns)]
        assert torch.allclose(got, expected.to(got.dtype), rtol=1e-3)


def test_refitted_sub_blocks_find_the_scales_that_made_the_weights() -> None:
    grid = GRIDS["Q4_K"]
    S = curvature(256)
    generator = torch.Generator().manual_seed(2)
    scale = torch.randint(1, 64, (8, 5), generator=generator).float()
    mins = torch.randint(0, 64, (8, 5), generator=generator).float()
    level = torch.randint(0, 16, (256, 5), generator=generator).float()
    d, dmin = torch.full((1, 5), 0.01), torch.full((1, 5), 0.02)
    W = grid.spread((d * scale).T).T * level - grid.spread((dmin * mins).T).T
    found = refit_sub_blocks(normal(S @ W, S, level, grid), d, dmin, grid)
    assert torch.equal(found[0], scale)
    assert torch.equal(found[1], mins)


@pytest.mark.parametrize("name", SCALAR)
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 1000), damp=st.sampled_from([0.01, 1.0]))
def test_no_block_gets_worse_and_the_bytes_are_what_was_meant(
    name: str, seed: int, damp: float
) -> None:
    kind = TYPES[name]
    its = factor(curvature(kind.block_size, seed), damp)
    H = damped(its)
    W = weights(6, kind.block_size, seed)
    start = torch.from_numpy(encode(W.numpy(), kind, None))
    raw, Q = scalar.refine(W, start, invert_upper(its.R), name)
    assert torch.equal(decoded(raw.numpy(), name), Q)
    assert (loss(W, Q, H) <= loss(W, decoded(start.numpy(), name), H) * (1 + 1e-4)).all()


@pytest.mark.parametrize(
    "name", ["Q2_K", "Q3_K", "Q4_K", "Q6_K", "IQ4_XS", "Q4_0", "IQ3_S", "IQ2_XS"]
)
def test_error_feedback_beats_ggml_by_far(name: str) -> None:
    kind = TYPES[name]
    H, W = curvature(512), weights(12, 512)
    ours = compensate(W.numpy(), kind, factor(H))
    plain = encode(W.numpy(), kind, H.diagonal().contiguous().numpy())
    ratio = loss(W, decoded(ours, name), H).sum() / loss(W, decoded(plain, name), H).sum()
    assert ratio < 0.75


def test_feedback_between_blocks_answers_with_the_right_columns() -> None:
    """Against the definition: before a block is encoded, the later columns have moved optimally."""
    kind, its, W = TYPES["Q4_0"], factor(curvature(96)), weights(5, 96)
    seen: list[torch.Tensor] = []

    def keep(
        target: torch.Tensor, blocks: torch.Tensor, _U: torch.Tensor, *, again: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        assert not again
        seen.append(target)
        return blocks, decoded(blocks.numpy(), "Q4_0")

    E = feed_back(W, kind, its, keep)[1].double()
    H = damped(its).double()
    for block in (1, 2):
        done, rest = slice(0, 32 * block), slice(32 * block, None)
        moved = torch.linalg.solve(H[rest, rest], H[rest, done] @ E[:, done].T).T
        expected = (W[:, rest].double() + moved)[:, :32]
        assert torch.allclose(seen[block].double(), expected, atol=1e-4)


@pytest.mark.parametrize("exact", [True, False])
def test_the_factor_is_of_the_damped_moments_in_the_order_asked(
    monkeypatch: pytest.MonkeyPatch, exact: bool
) -> None:
    module = sys.modules["coldpress.quantize.rounding.factor"]
    monkeypatch.setattr(module, "_ROWS", 24)  # More than one piece, and a rest.
    monkeypatch.setattr(module, "_MOST_EXACT", 4096 if exact else 0)
    order = torch.randperm(100, generator=torch.Generator().manual_seed(3))
    H = curvature(100)
    its = factor(H, order=order)
    assert torch.equal(its.R, its.R.triu())
    wanted = (H + 0.01 * H.diagonal().mean() * torch.eye(100)).double()[order][:, order]
    assert torch.allclose(its.R.double() @ its.R.double().T, wanted, rtol=1e-5, atol=1e-5)
    assert torch.allclose(its.curvature(slice(20, 40)).double(), wanted[20:40, 20:40], atol=1e-5)
    U = inverse_factor(wanted)
    assert torch.allclose(U @ its.R, torch.eye(100), atol=1e-3)


@pytest.mark.parametrize("case", ["dead", "rank one", "all dead"])
def test_singular_moments_are_damped_and_the_damping_is_told(case: str) -> None:
    H = torch.zeros(256, 256)
    if case == "dead":
        H[:128, :128] = curvature(128)
    elif case == "rank one":
        H = torch.ones(256, 256)
    its = factor(H)
    assert its.damp >= 0.01
    assert torch.isfinite(its.R).all()
    W = weights(4, 256)
    assert torch.isfinite(decoded(compensate(W.numpy(), TYPES["Q3_K"], its), "Q3_K")).all()


def test_moments_that_need_more_damping_say_how_much() -> None:
    H = curvature(64)
    H -= 0.01 * torch.linalg.eigvalsh(H)[-1] * torch.eye(64)  # Not a second moment of anything.
    assert factor(H).damp > 0.01


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_moments_that_are_not_finite_are_refused(value: float) -> None:
    H = curvature(32)
    H[3, 4] = value
    with pytest.raises(InputError, match="not finite"):
        factor(H)


def test_weights_of_zero_stay_zero() -> None:
    its = factor(curvature(256))
    for name in ("Q2_K", "Q6_K", "IQ4_XS", "IQ3_S"):
        raw = compensate(np.zeros((3, 256), np.float32), TYPES[name], its)
        assert not decoded(raw, name).any()
