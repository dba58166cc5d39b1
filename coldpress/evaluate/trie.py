"""Decode every distinct prefix once: token sequences as a trie, cut into batches that fit.

Sorted sequences that share a prefix are neighbours, so the sequences through a node of the trie
are a range of ids, and llama.cpp lets one token belong to a range of sequences.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from coldpress.evaluate.session import Batch, Ids

# A shorter trunk costs more as a decode of its own than it saves.
_MIN_TRUNK = 32


@dataclass(frozen=True)
class Path:
    """A token sequence; the logits of its positions from ``first_wanted`` on are needed."""

    tokens: tuple[int, ...]
    first_wanted: int


@dataclass(frozen=True)
class Group:
    """Sequences decoded together.

    ``trunk`` is the prefix all share, kept on sequence 0 from group to group. ``batch`` holds the
    rest of the trie on sequences 1, 2, …, one per path in order. ``nodes[i]`` are the indices in
    ``batch`` of path i's wanted positions.
    """

    trunk: tuple[int, ...]
    batch: Batch
    nodes: tuple[Ids, ...]


def shared_length(a: Sequence[int], b: Sequence[int]) -> int:
    """How many leading tokens two sequences share."""
    n = min(len(a), len(b))
    for i in range(n):
        if a[i] != b[i]:
            return i
    return n


def groups(paths: Sequence[Path], *, n_cells: int, n_sequences: int) -> Iterator[Group]:
    """Cut sorted paths into groups whose tries fit into the KV cache.

    Args:
        paths: sorted by tokens, without duplicates, none longer than ``n_cells``.
        n_cells: tokens that the KV cache holds.
        n_sequences: the most paths in a group.
    """
    start = 0
    while start < len(paths):
        n_nodes, stop = len(paths[start].tokens), start + 1
        while stop < len(paths) and stop - start < n_sequences:
            path = paths[stop].tokens
            n_nodes += len(path) - shared_length(paths[stop - 1].tokens, path)
            if n_nodes > n_cells:
                break
            stop += 1
        yield _group(paths[start:stop])
        start = stop


def _group(paths: Sequence[Path]) -> Group:
    trunk = min(
        shared_length(paths[0].tokens, paths[-1].tokens), *(path.first_wanted for path in paths)
    )
    if trunk < _MIN_TRUNK:
        trunk = 0
    token: list[int] = []
    position: list[int] = []
    first: list[int] = []
    last: list[int] = []
    wanted: list[bool] = []
    nodes: list[Ids] = []
    branch: list[int] = []  # the node at each position of the current path
    previous: tuple[int, ...] = paths[0].tokens[:trunk]
    for sequence, path in enumerate(paths, start=1):
        shared = max(shared_length(previous, path.tokens), trunk)
        del branch[shared - trunk :]
        for node in branch:
            last[node] = sequence
        for at in range(shared, len(path.tokens)):
            branch.append(len(token))
            token.append(path.tokens[at])
            position.append(at)
            first.append(sequence)
            last.append(sequence)
            wanted.append(False)
        mine = branch[path.first_wanted - trunk :]
        for node in mine:
            wanted[node] = True
        nodes.append(np.array(mine, np.int32))
        previous = path.tokens
    low, high = np.array(first, np.int32), np.array(last, np.int32)
    batch = Batch(
        np.array(token, np.int32),
        np.array(position, np.int32),
        low,
        high - low + 1,
        np.array(wanted, np.bool_),
    )
    return Group(paths[0].tokens[:trunk], batch, tuple(nodes))
