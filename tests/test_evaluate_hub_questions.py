"""Questions by hub id: the hub's own client on a cache laid out as it lays it out."""

import csv
from pathlib import Path
from typing import Any

import pytest

from coldpress.errors import InputError, ToolError
from coldpress.evaluate import hub_questions, questions

COMMIT = "c30699e8356da336a370243923dbaf21066bb9fe"
ROWS: list[dict[str, Any]] = [
    {"question": 'Which "one",\nthen?', "subject": "virology", "choices": ["None", "1", "é", ""], "answer": 0},
    {"question": "2 + 2", "subject": "abstract_algebra", "choices": ["3", "4", "5", "6"], "answer": 1},
    {"question": "again", "subject": "virology", "choices": ["a", "b", "c", "d"], "answer": 3},
]  # fmt: skip


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An offline hub whose cache may hold a dataset; the snapshot's folder."""
    import huggingface_hub.constants

    monkeypatch.setenv("COLDPRESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub/datasets--cais--mmlu"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text(COMMIT)
    return repository / "snapshots" / COMMIT


def fill(snapshot: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (snapshot / "all").mkdir(parents=True)
    for split, of in (("test", rows), ("dev", rows[:2])):
        pq.write_table(pa.Table.from_pylist(of), snapshot / f"all/{split}-00000-of-00001.parquet")


def test_a_dataset_of_the_hub_is_read_as_its_rows(hub: Path, tmp_path: Path) -> None:
    fill(hub, ROWS)
    folder = hub_questions.resolve("cais/mmlu")
    assert folder.name == "cais--mmlu-c30699e8356d"
    algebra, virology = questions.read(folder)
    assert (algebra.name, virology.name) == ("abstract_algebra", "virology")
    assert [(q.question, list(q.choices), q.answer) for q in virology.test] == [
        (row["question"], row["choices"], row["answer"])
        for row in ROWS
        if row["subject"] == "virology"
    ]
    assert len(algebra.dev) == len(virology.dev) == 1
    # Written once; what is there is taken, without asking the hub for rows again.
    for path in (hub / "all").iterdir():
        path.write_bytes(b"damaged")
    assert hub_questions.resolve("cais/mmlu") == folder
    assert hub_questions.resolve(folder) == folder


@pytest.mark.parametrize(
    "change",
    [
        {"answer": 4},
        {"choices": None},
        {"subject": "../../etc"},
        {"question": None, "answer": None},
    ],
    ids=["answer", "choices", "subject", "nothing"],
)
def test_another_form_is_refused_and_nothing_is_left(
    hub: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    fill(hub, [{**row, **change} for row in ROWS])
    with pytest.raises(InputError, match="cais/mmlu is not in MMLU's form"):
        hub_questions.resolve("cais/mmlu")
    assert list((tmp_path / "cache/questions").iterdir()) == []


def test_no_copy_and_no_network_says_so(hub: Path) -> None:
    with pytest.raises(ToolError, match="cannot reach the hub for cais/other"):
        hub_questions.resolve("cais/other")
    with pytest.raises(InputError, match="no/such/folder does not exist"):
        hub_questions.resolve("no/such/folder")


def test_real_mmlu_survives_the_way_through_csv(tmp_path: Path, shared_data: Path) -> None:
    """What the hub's rows become is what the published files say."""
    out = tmp_path / "one"
    wanted = questions.read(shared_data / "mmlu")
    rows = [
        {"question": q.question, "subject": s.name, "choices": list(q.choices), "answer": q.answer}
        for s in wanted
        for q in s.test
    ]
    fill(tmp_path / "snapshot", rows)
    hub_questions._write_out("cais/mmlu", tmp_path / "snapshot", out)
    assert [s.test for s in questions.read(out)] == [s.test for s in wanted]
    with (out / "test/virology_test.csv").open(newline="") as stream:
        assert all(len(row) == 6 for row in csv.reader(stream))
