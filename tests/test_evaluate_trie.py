"""The trie decodes every distinct prefix once and gives every sequence back whole."""

from hypothesis import given
from hypothesis import strategies as st

from coldpress.evaluate.trie import Branch, groups, shared_length

_tokens = st.lists(st.integers(0, 2), min_size=1, max_size=60).map(tuple)


@st.composite
def _branches(draw: st.DrawFn) -> list[Branch]:
    stem = draw(st.lists(st.integers(0, 2), max_size=50).map(tuple))
    tails = draw(st.lists(_tokens, min_size=1, max_size=30))
    sequences = sorted({stem + tail if i % 3 else tail for i, tail in enumerate(tails)})
    wanted = draw(st.lists(st.integers(0, 100), min_size=len(sequences), max_size=len(sequences)))
    return [Branch(s, w % len(s)) for s, w in zip(sequences, wanted, strict=True)]


@given(_branches(), st.integers(1, 8))
def test_every_sequence_is_decoded_whole_and_read_where_wanted(
    branches: list[Branch], n_sequences: int
) -> None:
    at = 0
    for group in groups(branches, n_cells=120, n_sequences=n_sequences):
        batch = group.batch
        mine = branches[at : at + len(group.nodes)]
        at += len(group.nodes)
        assert len(group.trunk) + len(batch.token) <= 120
        for sequence, (branch, nodes) in enumerate(zip(mine, group.nodes, strict=True), start=1):
            last = batch.first_sequence + batch.n_sequences
            through = (batch.first_sequence <= sequence) & (sequence < last)
            assert group.trunk + tuple(batch.token[through]) == branch.tokens
            positions = list(batch.position[through])
            assert positions == list(range(len(group.trunk), len(branch.tokens)))
            assert list(batch.position[nodes]) == list(
                range(branch.first_wanted, len(branch.tokens))
            )
            assert all(through[nodes]) and all(batch.wanted[nodes])
    assert at == len(branches)


@given(_branches())
def test_no_prefix_is_decoded_twice_in_a_group(branches: list[Branch]) -> None:
    for group in groups(branches, n_cells=10_000, n_sequences=255):
        prefixes = set()
        for branch in branches:
            prefixes |= {branch.tokens[:n] for n in range(1, len(branch.tokens) + 1)}
        assert len(group.batch.token) <= len(prefixes)


def test_few_shot_prefix_stays_resident() -> None:
    prefix = tuple(range(100))
    branches = [Branch((*prefix, *[200 + i] * 100), 199) for i in range(5)]
    cut = list(groups(branches, n_cells=400, n_sequences=255))
    assert len(cut) > 1
    assert {group.trunk for group in cut} == {prefix}
    assert sum(len(group.batch.token) for group in cut) == 500


@given(_tokens, _tokens)
def test_shared_length_is_the_longest_common_prefix(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    n = shared_length(a, b)
    assert a[:n] == b[:n]
    assert n == min(len(a), len(b)) or a[n] != b[n]
