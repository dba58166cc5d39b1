"""Readers of files under damage: our errors or nothing, within memory and time; and the fuzzer itself."""

import json
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import fuzz
from coldpress.errors import ColdpressError, InputError


@pytest.mark.parametrize("name", fuzz.READERS)
def test_seeds_are_valid(name: str) -> None:
    outcomes = [fuzz.outcome(fuzz.READERS[name], seed) for seed in fuzz.seeds(name)]
    assert "read" in outcomes
    assert all(found == "read" or "plain GGUF" in found for found in outcomes)


@pytest.mark.parametrize("name", fuzz.READERS)
@given(st.integers(0, 2**64), st.integers(1, 6))
@settings(max_examples=300, deadline=None)
def test_damage_ends_in_our_errors(name: str, seed: int, rounds: int) -> None:
    pool = fuzz.seeds(name)
    random = Random(seed)
    raw = random.choice(pool)
    for _ in range(rounds):
        raw = fuzz.mutate(random, raw, pool)
    assert not fuzz.outcome(fuzz.READERS[name], raw).startswith("crash")


@pytest.mark.parametrize("name", fuzz.READERS)
def test_a_process_under_limits_survives(name: str) -> None:
    found = fuzz.run(name, 1, seed=0)
    assert found["crash"] is None
    assert found["inputs"] > 100
    assert found["distinct_outcomes"] > 10
    assert found["memory_grown_bytes"] < 64 << 20


def deep_bug(raw: bytes) -> None:
    """Fails only past two checks."""
    if raw[:2] != b"ab":
        raise InputError("no ab", "write ab")
    if len(raw) < 3 or raw[2] != ord("c"):
        raise InputError("no c", "write c")
    if len(raw) > 4 and raw[4] > 200:
        raise IndexError("the bug")


def test_a_bug_behind_checks_is_found() -> None:
    found = fuzz.work(deep_bug, [b"ab-----"], 20, seed=0)
    assert "the bug" in found["crash"]["what"]
    with pytest.raises(IndexError):
        deep_bug(bytes.fromhex(found["crash"]["input"]))


def test_a_hang_and_bad_words_are_crashes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "_INPUT_S", 1)

    def hang(_raw: bytes) -> None:
        while True:
            pass

    assert "TimeoutError" in fuzz.work(hang, [b"x"], 5, seed=0)["crash"]["what"]

    def mumble(_raw: bytes) -> None:
        raise InputError("something", "")

    assert "two short lines" in fuzz.work(mumble, [b"x"], 5, seed=0)["crash"]["what"]


def test_eating_memory_is_a_crash() -> None:
    assert "MemoryError" in fuzz.outcome(lambda _raw: bytes(1 << 60), b"x")


def test_what_names_say_cannot_move_a_terminals_cursor() -> None:
    error = ColdpressError("a\x1b[2J\nb\ud800" + "x" * 5000, "hint")
    assert error.message.startswith("a\\x1b[2J\\nb\\ud800xxx")
    assert error.message.isprintable() and len(error.message) < 1100
    assert str(error) == error.message
    assert json.dumps(error.message)
