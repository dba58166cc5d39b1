"""Sensitivities and true KL: measured once, derived where the law is known, resumed after a kill."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coldpress.quantize import sensitivity
from coldpress.quantize.judge import Judge, Ledger
from coldpress.quantize.sensitivity import derive
from coldpress.quantize.types import TYPES
from tests.fake_network import FakeBank, FakeNetwork

ERRORS = {"IQ2_XS": 0.07, "Q2_K": 0.06, "IQ3_XXS": 0.025, "IQ4_XS": 0.006, "Q6_K": 0.0005}


def judge(folder: Path, network: FakeNetwork, about: str = "model and tokens") -> Judge:
    return Judge(FakeBank(network), network, Ledger(folder / "ledger.jsonl"), about)


@given(st.floats(1e-4, 10), st.sets(st.sampled_from(list(ERRORS)), min_size=1))
def test_kl_proportional_to_error_is_found_from_any_anchors(factor: float, some: set[str]) -> None:
    found = derive(ERRORS, {kind: factor * ERRORS[kind] for kind in some})
    for kind, error in ERRORS.items():
        assert found[kind].kl_nats == pytest.approx(factor * error)
        assert (found[kind].measured_kl_nats is not None) == (kind in some)


def test_one_wrong_measurement_of_three_is_averaged() -> None:
    measured = {kind: ERRORS[kind] for kind in ("IQ2_XS", "IQ3_XXS", "IQ4_XS")}
    off = derive(ERRORS, measured | {"IQ4_XS": 1.6 * measured["IQ4_XS"]})
    assert off["IQ4_XS"].kl_nats == pytest.approx(ERRORS["IQ4_XS"] * 1.6 ** (1 / 3))


def test_no_error_is_no_kl_and_an_unmeasurable_kl_is_no_infinity() -> None:
    assert derive({"Q8_0": 0.0}, {"Q8_0": 0.0})["Q8_0"].kl_nats == 0
    assert math.isfinite(derive({"Q8_0": 1e-5}, {"Q8_0": 0.0})["Q8_0"].kl_nats)


def test_types_are_those_that_divide_the_rows() -> None:
    assert {kind.block_size for kind in sensitivity.kinds(576)} == {32}
    assert len(sensitivity.kinds(256)) == len(TYPES)
    assert sensitivity.kinds(40) == ()
    assert sensitivity.anchors(kind.name for kind in sensitivity.kinds(576)) == ("IQ4_NL", "Q4_0")


def test_an_interrupted_pass_goes_on_and_repeats_nothing(tmp_path: Path) -> None:
    network = FakeNetwork(n_tensors=5)
    choices = dict.fromkeys(network.names, sensitivity.kinds(256))
    network.fail_after = 7
    with pytest.raises(KeyboardInterrupt):
        sensitivity.measure(choices, judge(tmp_path, network))
    ledger = tmp_path / "ledger.jsonl"
    ledger.write_bytes(ledger.read_bytes()[:-9])  # The kill cut the last line off.
    network.fail_after = None
    second = judge(tmp_path, network)
    found = sensitivity.measure(choices, second)
    assert second.n_measured == 5 * 3 - 6
    third = judge(tmp_path, network)
    assert sensitivity.measure(choices, third) == found
    assert third.n_measured == 0
    assert len(ledger.read_text().splitlines()) == 15 + 1


def test_another_model_or_candidate_is_measured_again(tmp_path: Path) -> None:
    network = FakeNetwork(n_tensors=2)
    first = judge(tmp_path, network)
    first.kl({"t0": "Q4_K"})
    other = judge(tmp_path, network, "another")
    other.kl({"t0": "Q4_K"})
    assert other.n_measured == 1
    changed = judge(tmp_path, network)
    data = changed.bank.candidate("t0", TYPES["Q4_K"]).data
    data[...] = np.bitwise_not(data)
    changed.kl({"t0": "Q4_K"})
    assert changed.n_measured == 1


def test_the_present_plan_counts_whatever_way_it_was_reached(tmp_path: Path) -> None:
    network = FakeNetwork(n_tensors=3)
    one = judge(tmp_path, network)
    one.rebase({"t0": "Q2_K", "t1": "Q4_K"})
    there = one.kl({"t2": "Q3_K", "t0": "Q2_K"})
    assert network.last_changes == {"t2"}  # What does not change is not run again.
    one.rebase({"t2": "Q3_K"})
    assert one.kl({"t1": "Q4_K", "t0": "Q2_K"}) == there
    assert one.n_measured == 1
