"""Round a run of columns onto a codebook, octet by octet, each error onto the columns after it.

The error of a group of g weights is a quadratic form eᵀ S e. With signs σ fixed, the whole grid is
searched exactly by one matrix product, because for q = σ∘a

    (x − q)ᵀ S (x − q) = xᵀ S x + Σ_i a_i² S_ii − 2 Σ_i a_i σ_i (S x)_i + 2 Σ_{i<j} a_i a_j σ_i σ_j S_ij

is linear in the features (a_i, a_i a_j) of an entry a. The signs start as those of x; then the best one
(two, where their parity is fixed) may flip, and the grid is searched again.

Source: block LDLQ onto a codebook, Tseng et al. 2024, arXiv:2402.04396, section 4.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from coldpress.quantize.rounding.codebook_format import FORMATS, OCTET, Format, grid

_TILES = 8


@dataclass(frozen=True)
class Codebook:
    """A type's grid, ready to search: ``entries`` (E, g), their ``features`` (g + pairs, E), and
    the pairs of weights ``i`` < ``j``.
    """

    format: Format
    entries: Tensor
    features: Tensor
    i: Tensor
    j: Tensor


@dataclass(frozen=True)
class Form:
    """eᵀ S e of one group: ``S`` (g, g), ``pairs`` 2 S_ij, ``squares`` Σ_i a_i² S_ii per entry."""

    S: Tensor
    pairs: Tensor
    squares: Tensor


@dataclass(frozen=True)
class Octet:
    """Eight columns of a run: their form ``S`` (8, 8) given the columns after them, the ``feedback``
    (8, later) of their error; and of each group in them its form and its feedback inside the octet.
    """

    S: Tensor
    feedback: Tensor
    forms: list[Form]
    inner: list[Tensor]


def codebook(name: str, device: torch.device) -> Codebook:
    """The searchable grid of type ``name``."""
    entries = grid(name, device).entries
    i, j = torch.triu_indices(FORMATS[name].group, FORMATS[name].group, 1, device=device)
    features = torch.cat([entries, entries[:, i] * entries[:, j]], 1).T.contiguous()
    return Codebook(FORMATS[name], entries, features, i, j)


def octets(U: Tensor, book: Codebook) -> list[list[Octet]]:
    """What rounding runs of m columns needs: U (runs, m, m) float64, the form of a run is (Uᵀ U)⁻¹."""
    within, feedback = diagonal(U, OCTET), spread(U, OCTET)
    whole, inner = schur(within).float(), spread(within, book.format.group)
    S = schur(diagonal(within, book.format.group)).float()
    return [
        [
            Octet(
                whole[r, o],
                feedback[o][r],
                [searchable(group, book) for group in S[r, o]],
                [push[r, o] for push in inner],
            )
            for o in range(U.shape[-1] // OCTET)
        ]
        for r in range(len(U))
    ]


def searchable(S: Tensor, book: Codebook) -> Form:
    """eᵀ S e, ready to search; S (g, g) float32."""
    return Form(S, 2 * S[book.i, book.j], book.entries.square() @ S.diagonal())


def schur(U: Tensor) -> Tensor:
    """(Uᵀ U)⁻¹, batched."""
    inverse: Tensor = torch.linalg.inv(U)
    return inverse @ inverse.mT


def spread(U: Tensor, width: int) -> list[Tensor]:
    """U_gg⁻¹ U_g,later of each ``width`` columns, float32: the error times it is taken off."""
    spans = [slice(start, start + width) for start in range(0, U.shape[-1], width)]
    return [torch.linalg.solve(U[..., s, s], U[..., s, s.stop :]).float() for s in spans]


def round_run(X: Tensor, run: list[Octet], book: Codebook, flips: bool) -> tuple[Tensor, Tensor]:
    """Round (N, m) targets, in units of the grid.

    Args:
        flips: whether to search a second time, after the best flip of signs.

    Returns:
        The values, (N, m), and the objective of each row in the same units, (N,).
    """
    X, values, cost = X.clone(), torch.empty_like(X), torch.zeros_like(X[:, 0])
    for o, octet in enumerate(run):
        columns = slice(o * OCTET, (o + 1) * OCTET)
        values[:, columns] = _octet(X[:, columns], octet, book, flips)
        E = X[:, columns] - values[:, columns]
        cost += _objective(E, octet.S)
        X[:, columns.stop :] -= E @ octet.feedback
    return values, cost


def _octet(X: Tensor, octet: Octet, book: Codebook, flips: bool) -> Tensor:
    """The values of eight columns. Two groups with an even number of minuses have each an even or
    each an odd number, and both are tried.
    """
    if book.format.signs != "even":
        return _groups(X, None, octet, book, flips)
    even = torch.zeros(len(X), dtype=torch.long, device=X.device)
    if book.format.group == OCTET:
        return _groups(X, even, octet, book, flips)
    both = X.repeat(2, 1)
    values = _groups(both, torch.cat([even, even + 1]), octet, book, flips)
    cost_even, cost_odd = _objective(both - values, octet.S).chunk(2)
    values_even, values_odd = values.chunk(2)
    return torch.where((cost_odd < cost_even)[:, None], values_odd, values_even)


def _groups(X: Tensor, parity: Tensor | None, octet: Octet, book: Codebook, flips: bool) -> Tensor:
    parts = []
    for form, push in zip(octet.forms, octet.inner, strict=True):
        x, X = X[:, : book.format.group], X[:, book.format.group :]
        parts.append(nearest(x, form, book, parity, flips))
        X = X - (x - parts[-1]) @ push
    return torch.cat(parts, 1)


def nearest(x: Tensor, form: Form, book: Codebook, parity: Tensor | None, flips: bool) -> Tensor:
    """Signed entries near the rows of ``x``, (N, g), under ``form``; exact but for the signs.

    Args:
        parity: the number of minuses modulo 2 of each row, (N,), or None where any may be.
    """
    if book.format.signs == "none":
        return _search(x, torch.ones_like(x), form, book)
    signs = torch.ones_like(x).copysign(x)
    if parity is not None:
        wrong = (signs < 0).sum(1) % 2 != parity
        cheapest = (x.abs() * form.S.diagonal()).argmin(1, keepdim=True)
        signs = _flip(signs, cheapest, wrong)
    q = _search(x, signs, form, book)
    if not flips:
        return q
    # Changing q_i to −q_i adds 4 q_i (S (x − q))_i + 4 q_i² S_ii, and a second change at j 8 q_i q_j S_ij.
    change = 4 * q * ((x - q) @ form.S + q * form.S.diagonal())
    if parity is None:
        gain, place = change.min(1, keepdim=True)
    else:
        i, j = book.i, book.j
        gain, pair = (
            change.index_select(1, i)
            + change.index_select(1, j)
            + 4 * form.pairs * q.index_select(1, i) * q.index_select(1, j)
        ).min(1)
        place = torch.stack([i[pair], j[pair]], 1)
    return _search(x, _flip(signs, place, gain.view(-1) < 0), form, book)


def _flip(signs: Tensor, place: Tensor, where: Tensor) -> Tensor:
    """Change the signs at ``place`` (N, k) in the rows ``where`` (N,)."""
    return signs.scatter_(1, place, torch.where(where[:, None], -1, 1) * signs.gather(1, place))


def _search(x: Tensor, signs: Tensor, form: Form, book: Codebook) -> Tensor:
    """The best entry for fixed signs, with those signs."""
    pairs = form.pairs * signs.index_select(1, book.i) * signs.index_select(1, book.j)
    linear = torch.cat([-2 * signs * (x @ form.S), pairs], 1)
    best = _argmin(torch.addmm(form.squares, linear, book.features))
    return signs * book.entries.index_select(0, best)


def _argmin(scores: Tensor) -> Tensor:
    """argmin of each row; on a CPU, minima of tiles first take half of argmin's time."""
    tiles = torch.unflatten(scores, 1, (_TILES, -1))
    column = tiles.amin(1).argmin(1)
    tile = tiles.gather(2, column[:, None, None].expand(-1, _TILES, 1))[..., 0].argmin(1)
    return tile * tiles.shape[2] + column


def _objective(E: Tensor, S: Tensor) -> Tensor:
    return ((E @ S) * E).sum(1)


def diagonal(U: Tensor, width: int) -> Tensor:
    """The diagonal blocks: (..., m, m) → (..., m/width, width, width)."""
    tiles = torch.unflatten(torch.unflatten(U, -1, (-1, width)), -3, (-1, width))
    return tiles.diagonal(dim1=-4, dim2=-2).movedim(-1, -3)
