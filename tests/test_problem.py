"""Plans for a real GGUF: what is planned is what is written, to the byte, at every budget."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from coldpress.errors import InputError, UsageError
from coldpress.quantize import budget, rates, write
from coldpress.quantize.allocate import allocate, types
from coldpress.quantize.encode import encode_tensor
from coldpress.quantize.problem import problem
from coldpress.quantize.sensitivity import Sensitivity, candidates
from coldpress.quantize.source import open_gguf
from coldpress.quantize.types import TYPES
from tests import tiny_gguf

METADATA: dict[str, int | str] = {"general.file_type": 10, "general.quantization_version": 2}


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return open_gguf(tiny_gguf.write(tmp_path_factory.mktemp("problem") / "model.gguf"))


def sensitivities(reader: Any) -> dict[str, dict[str, Sensitivity]]:
    return {
        name: {
            kind.name: Sensitivity((1 + i % 3) * 4**-kind.bits_per_weight, 0.1, None)
            for kind in kinds
        }
        for i, (name, kinds) in enumerate(candidates(reader).items())
    }


def test_every_rung_is_written_as_predicted_and_keeps_to_its_bits(
    reader: Any, tmp_path: Path
) -> None:
    given = problem(reader, METADATA, sensitivities(reader))
    bits = (4.7, 5.0, 5.5, 6.0, 8.0, 8.6)
    plans = {each: allocate(given, budget.file_bytes(each, reader, METADATA)) for each in bits}
    before = 0.0
    for asked, plan in plans.items():
        path = tmp_path / f"{asked}.gguf"
        chosen = {name: TYPES[kind] for name, kind in types(plan).items()}
        write.write(reader, chosen, METADATA, path, lambda t, kind: encode_tensor(t, kind, None))
        assert path.stat().st_size == given.file_bytes(plan)
        written = open_gguf(path)
        stored = sum(int(tensor.n_bytes) for tensor in written.tensors)
        reached = 8 * stored / sum(int(tensor.n_elements) for tensor in written.tensors)
        assert before <= reached <= asked
        before = reached
    assert len(set(types(plans[5.5]).values())) > 1


def test_a_rung_that_cannot_be_met_says_what_can(reader: Any) -> None:
    given = problem(reader, METADATA, sensitivities(reader))
    with pytest.raises(UsageError) as caught:
        allocate(given, budget.file_bytes(2.0, reader, METADATA))
    assert caught.value.hint.startswith("--size ")


def test_speed_is_bytes_read_and_types_without_a_rate_are_out(reader: Any) -> None:
    known = {"Q4_0": 1e-9, "Q8_0": 1e-10}
    given = problem(reader, METADATA, sensitivities(reader), known)
    plan = allocate(given, 10**9, seconds_per_token=1.0)
    assert set(types(plan).values()) == {"Q8_0"}
    # The embeddings are looked up; all other matrices are read once per token.
    read = sum(c.size_bytes for name, c in plan.items() if name != "token_embd.weight")
    assert given.seconds(plan) == pytest.approx(read * 1e-10, rel=1e-3)
    with pytest.raises(UsageError, match="no type with a rate"):
        problem(reader, METADATA, sensitivities(reader), {"Q2_K": 1e-10})


def test_of_experts_the_chosen_ones_are_read_and_a_tied_table_is_the_head() -> None:
    def share(*names: str) -> dict[str, float]:
        counts = {"moe.expert_count": 8, "moe.expert_used_count": 2}
        fields = {k: SimpleNamespace(contents=lambda n=n: n) for k, n in counts.items()}
        tensors = [SimpleNamespace(name=name) for name in names]
        return rates.read_share(SimpleNamespace(fields=fields, tensors=tensors))

    tied = ("token_embd.weight", "blk.0.ffn_up_exps.weight")
    assert share(*tied) == {"token_embd.weight": 1, "blk.0.ffn_up_exps.weight": 0.25}
    assert share(*tied, "output.weight")["token_embd.weight"] == 0


def test_rates_are_measured_by_ggmls_own_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "_MATRIX_BYTES", 1 << 20)
    found = rates.measure([TYPES["Q8_0"], TYPES["IQ2_XXS"]], threads=1)
    assert set(found) == {"Q8_0", "IQ2_XXS"}
    # Between a thousandth and ten thousand times of 1 GB/s: seconds, per byte.
    assert all(1e-13 < rate < 1e-6 for rate in found.values())


def test_rates_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "rates.json"
    path.write_text('{"Q4_K": 1e-10}')
    assert rates.read(path) == {"Q4_K": 1e-10}
    for text in ("", "[]", '{"Q9": 1}', '{"Q4_K": 0}', '{"Q4_K": "fast"}'):
        path.write_text(text)
        with pytest.raises(InputError):
            rates.read(path)
