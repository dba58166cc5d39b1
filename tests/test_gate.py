"""The gate: which file it checks, what breaks, and its exit codes as a process."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from coldpress import artifact
from coldpress.errors import GateError, InputError, IntegrityError, UsageError
from coldpress.evaluate import result
from coldpress.report import ReportOptions, report
from coldpress.report.gate import Limits, check, enforce
from tests import made_evaluations
from tests.test_cli import coldpress, refused

SHIPPED = "Q5_K imatrix"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder: evaluations, their report, and a checkpoint made from Q5_K."""
    folder = tmp_path_factory.mktemp("gate") / "run"
    evaluations = []
    for made in made_evaluations.DEMO:
        gguf = folder.parent / f"{made[0]}.gguf"
        gguf.write_bytes(made[0].encode())
        evaluations.append(made_evaluations.write(folder / "evaluate" / made[0], made, gguf))
    report(evaluations, folder / "report", ReportOptions())
    inputs = {"gguf": folder.parent / f"{SHIPPED}.gguf"}
    with artifact.create(folder / "checkpoint", "checkpoint", inputs=inputs, options={}):
        pass
    return folder


def test_a_run_is_judged_by_what_it_ships_a_report_by_what_it_recommends(run: Path) -> None:
    recommended = next(
        row["name"]
        for row in json.loads((run / "report/report.json").read_text())["rows"]
        if row["recommended"]
    )
    assert recommended != SHIPPED
    limits = Limits(max_kl=1)
    assert [each.name for each in check(run, limits).checks] == [SHIPPED]
    assert [each.name for each in check(run / "report", limits).checks] == [recommended]
    only = ("Q2_K", "Q3_K")
    assert tuple(each.name for each in check(run, limits, only).checks) == only


@pytest.mark.parametrize(
    ("limit", "at", "beyond"),
    [
        ("max_kl", 0.0021, 0.0020),
        ("max_mmlu_drop", 0.5, 0.4),
        ("max_size", "5.2MB", "5199999"),
        ("min_tok_s", 90 + 700 / 5.2, 225),
        ("max_perplexity_ratio", 1.0021, 1.0020),
    ],
)
def test_a_limit_holds_up_to_its_own_value(
    run: Path, limit: str, at: float | str, beyond: float | str
) -> None:
    exact = check(run, Limits(max_mmlu_drop=100)).checks[0].measured
    if limit == "max_mmlu_drop":
        at, beyond = exact, exact - 0.01
    holds = check(run, Limits(**{limit: at}))
    broken = check(run, Limits(**{limit: beyond}))
    assert holds.holds and holds.checks[0].ok
    assert not broken.holds and not broken.checks[0].ok
    enforce(holds)
    with pytest.raises(GateError, match="1 of 1 limits broken: Q5_K imatrix"):
        enforce(broken)


def test_the_drop_is_the_paired_difference_and_its_interval_does_not_count(run: Path) -> None:
    """The oracle: both files' answers, question by question."""
    right = {}
    for name in ("bf16", "Q3_K imatrix"):
        lines = (run / "evaluate" / name / "samples.jsonl").read_text().splitlines()
        right[name] = [json.loads(line)["correct"] for line in lines]
    drops = [a - b for a, b in zip(right["bf16"], right["Q3_K imatrix"], strict=True)]
    drop = 100 * sum(drops) / len(drops)
    (made,) = check(run, Limits(max_mmlu_drop=drop), ("Q3_K imatrix",)).checks
    assert made.measured == pytest.approx(drop)
    assert made.interval_95 is not None
    low, high = made.interval_95
    assert low < made.measured < high and high - low > 1
    assert made.ok


def test_an_evaluation_alone_has_no_base(run: Path) -> None:
    alone = run / "evaluate" / SHIPPED
    assert check(alone, Limits(max_kl=0.01, max_size="6MB", min_tok_s=1)).holds
    for limits in (Limits(max_mmlu_drop=1), Limits(max_perplexity_ratio=2)):
        with pytest.raises(InputError, match="Q5_K imatrix has no figure for"):
            check(alone, limits)
    # Measured against nothing it would else pass for its own base, with a drop of nought.
    with pytest.raises(InputError, match="bf16 has no figure for drop"):
        check(run / "evaluate" / "bf16", Limits(max_mmlu_drop=1))


@pytest.mark.parametrize("figure", [float("nan"), float("inf")])
def test_a_figure_that_is_no_number_holds_no_limit(tmp_path: Path, figure: float) -> None:
    folder = made_evaluations.write(tmp_path / "made", made_evaluations.DEMO[3])
    read = result.read(folder)
    assert read.kl is not None
    with artifact.create(folder, "evaluate", inputs={}, options={}) as draft:
        result.write(replace(read, kl=replace(read.kl, mean=figure)), draft.folder / result.FILE)
        (draft.folder / "samples.jsonl").write_text("")
    with pytest.raises(InputError, match="KL"):
        check(folder, Limits(max_kl=1))


@pytest.mark.parametrize("limit", ["max_kl", "max_mmlu_drop", "min_tok_s", "max_perplexity_ratio"])
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_a_limit_that_is_no_limit_is_refused(limit: str, value: float) -> None:
    with pytest.raises(UsageError, match=f"--{limit.replace('_', '-')} is"):
        Limits(**{limit: value})


def test_a_changed_report_is_refused(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run / "report", tmp_path / "report"))
    text = (copy / "report.json").read_text()
    (copy / "report.json").write_text(text.replace("0.0021", "0.0001", 1))
    with pytest.raises(IntegrityError, match=r"report\.json differs"):
        check(copy, Limits(max_kl=1))


def test_a_checkpoint_of_another_file_is_refused(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    shutil.rmtree(copy / "evaluate" / SHIPPED)
    with pytest.raises(InputError, match="no evaluation of the file that its checkpoint"):
        check(copy, Limits(max_kl=1))
    assert check(copy, Limits(max_kl=1), [SHIPPED]).holds


def test_exit_codes(run: Path) -> None:
    done = coldpress("gate", run, "--max-kl", "0.01", "--max-mmlu-drop", "50", "--json")
    assert done.returncode == 0, done.stderr
    assert [line.split()[-1] for line in done.stderr.splitlines()] == ["ok", "ok"]
    assert "[" in done.stderr
    gated = json.loads(done.stdout)
    assert gated["holds"] is True and len(gated["checks"]) == 2

    done = coldpress("gate", run, "--max-size", "1MB", "--max-kl", "0.01", "--json")
    assert done.returncode == 3
    *lines, error, hint = done.stderr.splitlines()
    assert [line.split()[-1] for line in lines] == ["broken", "ok"]
    assert error.startswith("error: 1 of 2 limits broken")
    assert hint.startswith(" hint: ")
    assert json.loads(done.stdout)["holds"] is False
    assert done.stdout.count("\n") == 1

    done = coldpress("gate", run, "--max-kl", "0.05", "--only", "Q8_0", "--only", "Q2_K")
    assert done.returncode == 3
    assert done.stdout == ""


def test_bad_input_is_two_lines(run: Path, tmp_path: Path) -> None:
    refused(coldpress("gate", run), 2, "no limit")
    refused(coldpress("gate", run, "--max-size", "big"), 2, "'big' is not a size")
    refused(coldpress("gate", run, "--max-kl", "1", "--only", "Q9"), 2, "no row 'Q9'")
    refused(coldpress("gate", tmp_path / "none", "--max-kl", "1"), 5, "does not exist")
    refused(coldpress("gate", tmp_path, "--max-kl", "1"), 5, "not a coldpress artifact")
    refused(coldpress("gate", run / "checkpoint", "--max-kl", "1"), 5, "artifact of checkpoint")
    refused(coldpress("gate", run, "--max-kl", "1", "--only", "bf16"), 5, "bf16 has no figure")
