"""The benchmark's arithmetic and its reading of llama-perplexity; one real run of the judge."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import equal_bytes_figure, judge, rivals
from benchmarks.rows import Row, headline, rival, versus

_SAID = """chunk             PPL      ln(PPL(Q)/PPL(base))     KL Divergence      Δp RMS      Same top p
   1      16.6 ±    2.9      0.00001 ±    0.00001      0.00000 ±    0.00000     0.1 ±  0.0 %   100.000 ±  0.000 %

====== Perplexity statistics ======
Mean PPL(Q)                   :  19.204311 ±   0.614310
Mean PPL(base)                :  18.204311 ±   0.514310
Mean PPL(Q)/PPL(base)         :   1.054931 ±   0.005100

====== KL divergence statistics ======
Mean    KLD:   0.184030 ±   0.004336
Maximum KLD:   6.100000
99.9%   KLD:   3.000000
99.0%   KLD:   1.977000
Median  KLD:   0.009773
Minimum KLD:  -0.000001

====== Token probability statistics ======
Same top p: 85.750 ± 0.353 %
"""


def test_the_judge_reads_every_figure() -> None:
    judged = judge.parse(_SAID)
    assert judged is not None
    assert (judged.kl, judged.kl_stderr) == (0.184030, 0.004336)
    assert (judged.kl_median, judged.kl_p99) == (0.009773, 1.977)
    assert (judged.perplexity, judged.perplexity_ratio) == (19.204311, 1.054931)
    assert judged.same_top1 == pytest.approx(0.8575)


def test_lost_lines_are_no_figures() -> None:
    lines = _SAID.splitlines(keepends=True)
    assert judge.parse("".join(lines[:-1])) is None  # the last line is lost most often
    assert judge.parse("") is None


def _row(family: str, size: int, kl: float, bits: float = 0.0) -> Row:
    figures = dict.fromkeys(("kl_stderr", "kl_median", "kl_p99", "perplexity"), 0.0)
    return Row(
        family=family,
        name=f"{family} {size}",
        file=f"{size}.gguf",
        size_bytes=size,
        bits_per_weight=bits or size / 100,
        file_bits_per_weight=size / 100,
        types={},
        kl=kl,
        perplexity_ratio=1.0,
        same_top1=1.0,
        **figures,
    )


_RIVALS = [
    _row("preset imatrix", 300, 0.20),
    _row("preset imatrix", 320, 0.10),
    _row("preset imatrix", 340, 0.15),  # larger and worse: no user would take it
    _row("preset imatrix", 400, 0.05),
    _row("pure imatrix", 330, 0.01),
    _row("preset", 300, 0.001),
]


@pytest.mark.parametrize(
    ("budget", "size"),
    [
        (250, 300),  # smaller than every preset: the smallest
        (300, 300),  # exactly as large
        (301, 320),  # rounded up in the rival's favour
        (330, 320),  # the next larger one is beaten by a smaller one
        (341, 400),
        (400, 400),
    ],
)
def test_the_rival_is_the_best_up_to_the_next_larger_file(budget: int, size: int) -> None:
    found = rival(budget, _RIVALS, ("preset imatrix",))
    assert found is not None
    assert (found.family, found.size_bytes) == ("preset imatrix", size)


def test_above_every_preset_there_is_no_rival() -> None:
    assert rival(401, _RIVALS, ("preset imatrix",)) is None


def test_versus_divides_by_each_kind_of_rival() -> None:
    ours = _row("ours", 325, 0.03)
    found = versus("x", 340, ours, [*_RIVALS, _row("gptq", 340, 0.3)])
    assert found["kl_ratio_preset"] == pytest.approx(0.3)
    assert found["kl_ratio_pure"] == pytest.approx(3)
    assert found["kl_ratio_gptq"] == pytest.approx(0.1)
    assert versus("x", 341, ours, _RIVALS)["gptq"] is None


def test_the_headline_is_the_worst_of_each_side_and_only_inside_the_range() -> None:
    sizes = (200, 300, 310, 330, 500, 700)
    kls = (9.0, 0.5, 0.2, 0.3, 0.6, 8.0)
    peers = [_row("preset imatrix", size, 1.0) for size in sizes]
    peers.append(_row("gptq", 500, 2.0))
    budgets = [versus("", s, _row("ours", s, kl), peers) for s, kl in zip(sizes, kls, strict=True)]
    assert headline(budgets) == {
        "worst_kl_ratio_above_3_2_bpw": 0.6,
        "worst_kl_ratio_below_3_2_bpw": 0.5,
        "median_kl_ratio": pytest.approx(0.4),
        "worst_kl_ratio_vs_gptq": 0.3,
    }


def test_nothing_compared_is_no_headline() -> None:
    assert set(headline([]).values()) == {None}


def test_the_figure_shows_every_family_once_and_the_same_bytes_again() -> None:
    rows = [replace(row, types={}) for row in (*_RIVALS, _row("ours", 310, 0.04))]
    model = {"n_weights": 1_000_000, "files": [vars(row) for row in rows]}
    drawn = equal_bytes_figure.figure(model)
    assert drawn == equal_bytes_figure.figure(model)
    for word in ("coldpress", "llama.cpp preset, imatrix", "one type, imatrix", "M weights"):
        assert word in drawn
    assert "GPTQ" not in drawn


def test_a_file_that_is_its_own_base_differs_by_nothing(
    tmp_path: Path, random_gguf: Path, peers: Path
) -> None:
    from tests import tiny_models

    text = tmp_path / "text.txt"
    text.write_text(tiny_models.own_text()[:8000], encoding="utf-8")
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes((random_gguf / "model.gguf").read_bytes())
    base = tmp_path / "base.bin"
    judge.write_base(gguf, text, base, 64)
    judged = judge.judge(gguf, base, 64)
    assert judged.kl == pytest.approx(0, abs=2e-6)
    assert judged.same_top1 > 0.999  # 16 bits of log-probability may tie two tokens
    assert gguf.with_suffix(".base.json").is_file()


def test_presets_are_read_from_llama_quantize(peers: Path) -> None:
    names = rivals.presets()
    assert {"Q4_K_M", "IQ2_XXS", "Q8_0", "IQ1_S"} <= set(names)
    assert not {"F16", "Q4_K", "COPY"} & set(names)
