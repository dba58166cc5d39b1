"""Decode every distinct prefix once: token sequences as a trie, cut into batches that fit.

Sorted sequences that share a prefix are neighbours, so the sequences through a node of the trie
are a range of ids, and llama.cpp lets one token belong to a range of sequences.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from coldpress.evaluate.session import Batch, Ids

# One full micro-batch of llama.cpp. More tokens at once would only attend to more masked cells.
_NODES_PER_GROUP = 256
# Fewer tokens cost more as a decode of their own than they save.
_MIN_TRUNK_GROWTH = 32


@dataclass(frozen=True)
class Branch:
    """A token sequence; the logits of its positions from ``first_wanted`` on are needed."""

    tokens: tuple[int, ...]
    first_wanted: int


@dataclass(frozen=True)
class Group:
    """Sequences decoded together.

    ``trunk`` is the prefix all share, kept on sequence 0 from group to group. ``batch`` holds the
    rest of the trie on sequences 1, 2, …, one per branch in order. ``nodes[i]`` are the indices in
    ``batch`` of branch i's wanted positions.
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


def groups(branches: Sequence[Branch], *, n_cells: int, n_sequences: int) -> Iterator[Group]:
    """Cut sorted branches into groups whose tries fit into the KV cache.

    Args:
        branches: sorted by tokens, without duplicates, none longer than ``n_cells``.
        n_cells: tokens that the KV cache holds.
        n_sequences: the most branches in a group.
    """
    resident: tuple[int, ...] = ()
    start = 0
    while start < len(branches):
        stop = _end_of_group(branches, start, n_cells, n_sequences)
        trunk = _trunk(branches[start:stop], resident)
        yield _group(branches[start:stop], trunk)
        resident = trunk
        start = stop


def _end_of_group(branches: Sequence[Branch], start: int, n_cells: int, n_sequences: int) -> int:
    n_first, n_more, stop = len(branches[start].tokens), 0, start + 1
    while stop < len(branches) and stop - start < n_sequences:
        branch = branches[stop].tokens
        n_more += len(branch) - shared_length(branches[stop - 1].tokens, branch)
        if n_more > _NODES_PER_GROUP or n_first + n_more > n_cells:
            break
        stop += 1
    return stop


def _trunk(branches: Sequence[Branch], resident: tuple[int, ...]) -> tuple[int, ...]:
    """What all branches share before the first wanted position.

    If that is only a few tokens more than is resident, those are left to the batch.
    """
    first, last = branches[0].tokens, branches[-1].tokens
    shared = min(shared_length(first, last), *(branch.first_wanted for branch in branches))
    kept = shared_length(resident, first[:shared])
    return first[: shared if shared - kept >= _MIN_TRUNK_GROWTH else kept]


def _group(branches: Sequence[Branch], trunk: tuple[int, ...]) -> Group:
    token: list[int] = []
    position: list[int] = []
    first: list[int] = []  # of the range of sequences through each node
    last: list[int] = []
    wanted: set[int] = set()
    nodes: list[Ids] = []
    stack: list[int] = []  # the nodes from the trunk's end to the current leaf
    previous = trunk
    for sequence, branch in enumerate(branches, start=1):
        shared = max(shared_length(previous, branch.tokens), len(trunk))
        del stack[shared - len(trunk) :]
        for node in stack:
            last[node] = sequence
        for at in range(shared, len(branch.tokens)):
            stack.append(len(token))
            token.append(branch.tokens[at])
            position.append(at)
            first.append(sequence)
            last.append(sequence)
        mine = stack[branch.first_wanted - len(trunk) :]
        wanted.update(mine)
        nodes.append(np.array(mine, np.int32))
        previous = branch.tokens
    low, high = np.array(first, np.int32), np.array(last, np.int32)
    mask = np.zeros(len(token), np.bool_)
    mask[sorted(wanted)] = True
    batch = Batch(
        np.array(token, np.int32), np.array(position, np.int32), low, high - low + 1, mask
    )
    return Group(trunk, batch, tuple(nodes))
