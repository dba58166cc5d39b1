"""Text out of token bytes: nothing half, nothing of a stop string, whatever the cuts."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from coldpress.serve.text import TextStream

_ALPHABET = st.text("abé日\U0001f600", max_size=30)
_STOPS = st.lists(st.text("abé日", min_size=1, max_size=4), max_size=3)


def _oracle(text: str, stops: list[str]) -> tuple[str, bool]:
    """Character by character, the obvious way."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return text[: end - max(map(len, ending))], True
    return text, False


def _cut(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    return [data[low:high] for low, high in pairwise(edges)]


@given(_ALPHABET, _STOPS, st.lists(st.integers(0, 80), max_size=20))
def test_any_cut_gives_the_same_text(text: str, stops: list[str], cuts: list[int]) -> None:
    stream = TextStream(tuple(stops))
    out = ""
    for piece in _cut(text.encode(), cuts):
        out += stream.push(piece)
        if stream.stopped:
            break
    out += stream.finish()
    assert (out, stream.stopped) == _oracle(text, stops)


@given(st.binary(max_size=40), st.lists(st.integers(0, 40), max_size=20))
def test_any_bytes_become_text(data: bytes, cuts: list[int]) -> None:
    stream = TextStream()
    out = "".join(map(stream.push, _cut(data, cuts))) + stream.finish()
    assert out == data.decode(errors="replace")


def test_a_character_waits_for_its_last_byte() -> None:
    stream = TextStream()
    first, last = "é".encode()[:1], "é".encode()[1:]
    assert stream.push(b"a" + first) == "a"
    assert stream.push(last) == "é"


def test_the_beginning_of_a_stop_string_is_held_back_and_released() -> None:
    stream = TextStream(("<end>",))
    assert stream.push(b"one <e") == "one "
    assert stream.push(b"gg") == "<egg"
    assert stream.push(b"<end") == ""
    assert stream.finish() == "<end"
