"""Second moments of a layer's input, added up over batches: H = E[x xᵀ], per expert.

The sums of x² are over every sequence, as an imatrix has them. H is over the sequences to fit to;
of the held-out ones some rows are kept, to judge on what was not fitted.
"""

import mmap
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

Floats = npt.NDArray[np.float32]
Counts = npt.NDArray[np.int64]

MAX_HELD_ROWS = 512
_PANEL = 1024
_SEED = 0


@dataclass(frozen=True)
class Moments:
    """What is known of one input.

    ``sums``: Σ x², (experts, inputs), over all ``n_all`` tokens, (experts,). ``hessian``: E[x xᵀ],
    (experts, inputs, inputs), over the ``n_fit`` tokens, (experts,). ``held``: rows of held-out
    inputs, (experts, at most ``MAX_HELD_ROWS``, inputs), zero rows after the last. ``filled`` are
    the experts that borrowed tokens, see ``fill``: counted in ``n_all`` and not in ``n_fit``.
    """

    sums: Floats
    n_all: Counts
    hessian: Floats
    n_fit: Counts
    held: Floats
    filled: tuple[int, ...]


def sum_of_squares(X: torch.Tensor) -> torch.Tensor:
    """Σ x² over tokens: (tokens, inputs) → (inputs,), added up in float64: the diagonal of Xᵀ X."""
    return X.square().sum(0, dtype=torch.float64)


def add_outer(H: torch.Tensor, X: torch.Tensor) -> None:
    """H += Xᵀ X, only from the diagonal rightwards in panels: half the products.

    Args:
        H: (inputs, inputs), float32; below the panels on the diagonal it is left as it is.
        X: (tokens, inputs).
    """
    for start in range(0, len(H), _PANEL):
        right = X[:, start:]
        H[start : start + _PANEL, start:].addmm_(right[:, :_PANEL].T, right)


def mirror(H: torch.Tensor) -> None:
    """Complete what ``add_outer`` left out: H is symmetric."""
    for start in range(0, len(H), _PANEL):
        stop = start + _PANEL
        H[stop:, start:stop] = H[start:stop, stop:].T


def fill(totals: torch.Tensor, counts: torch.Tensor, floor: int) -> torch.Tensor:
    """Make a mean per expert of sums over tokens, in place; starved experts borrow from all.

    An expert with fewer than ``floor`` tokens gets the missing ones at the average over all
    experts' tokens, so that its mean leans on its own tokens as far as there are any. One expert
    alone borrows nothing.

    Args:
        totals: (experts, …), the sums; becomes the means.
        counts: (experts,) tokens.

    Returns:
        (experts,) tokens that the means are over, borrowed ones included.
    """
    filled = counts.clamp(min=floor) if len(counts) > 1 else counts
    if bool((filled > counts).any()):
        average = totals.sum(0) / counts.sum()
        for expert in torch.nonzero(filled > counts).flatten().tolist():
            totals[expert] += average * float(filled[expert] - counts[expert])
    for expert, count in enumerate(filled.tolist()):
        totals[expert] /= max(count, 1)
    return filled


class Accumulator:
    """Adds up the moments of one input, or of one input per expert of a stack."""

    def __init__(self, experts: int, inputs: int, device: torch.device) -> None:
        """Start with nothing."""
        self._sums = torch.zeros(experts, inputs, dtype=torch.float64, device=device)
        # Plain pages take up memory once they are written to: half of them until ``mirror``.
        pages = mmap.mmap(-1, 4 * experts * inputs**2, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        zeros = np.frombuffer(pages, np.float32)
        self._hessian = torch.from_numpy(zeros).to(device).view(experts, inputs, inputs)
        self._n_all = torch.zeros(experts, dtype=torch.int64)
        self._n_fit = torch.zeros(experts, dtype=torch.int64)
        self._held: list[_Sample] = [_Sample(inputs) for _ in range(experts)]

    def add(self, expert: int, X: torch.Tensor, held: bool) -> None:
        """Add the inputs of some tokens, (tokens, inputs) float32."""
        self._sums[expert] += sum_of_squares(X)
        self._n_all[expert] += len(X)
        if held:
            self._held[expert].add(X)
        else:
            add_outer(self._hessian[expert], X)
            self._n_fit[expert] += len(X)

    def is_finite(self) -> bool:
        """Whether no input so far held a NaN or an infinity."""
        return bool(torch.isfinite(self._sums).all())

    def finish(self) -> Moments:
        """The moments; this object is used up. A starved expert's are filled, see ``fill``."""
        inputs = self._sums.shape[1]
        for H in self._hessian:
            mirror(H)
        n_fit = fill(self._hessian, self._n_fit, inputs)
        n_all = fill(self._sums, self._n_all, inputs)
        sums = self._sums.cpu() * n_all[:, None]
        return Moments(
            sums=sums.float().numpy(),
            n_all=n_all.numpy(),
            hessian=self._hessian.cpu().numpy(),
            n_fit=self._n_fit.numpy(),
            held=_stack([sample.rows for sample in self._held]),
            filled=tuple(torch.nonzero(n_fit > self._n_fit).flatten().tolist()),
        )


class _Sample:
    """An even sample of at most ``MAX_HELD_ROWS`` rows: those with the smallest random numbers."""

    def __init__(self, inputs: int) -> None:
        self.rows = torch.empty(0, inputs)
        self._keys = torch.empty(0)
        self._random = torch.Generator().manual_seed(_SEED)

    def add(self, X: torch.Tensor) -> None:
        self._keys = torch.cat([self._keys, torch.rand(len(X), generator=self._random)])
        self.rows = torch.cat([self.rows, X.cpu()])
        if len(self._keys) > MAX_HELD_ROWS:
            kept = self._keys.topk(MAX_HELD_ROWS, largest=False).indices.sort().values
            self.rows, self._keys = self.rows[kept], self._keys[kept]


def _stack(parts: list[torch.Tensor]) -> Floats:
    """(rows, inputs) of each expert → (experts, most rows, inputs), zeros after the last row."""
    most = max(len(part) for part in parts)
    stacked = torch.zeros(len(parts), most, parts[0].shape[1])
    for expert, part in enumerate(parts):
        stacked[expert, : len(part)] = part
    return stacked.numpy()
