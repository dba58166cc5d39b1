"""The run store: files are the truth, the index follows them, writers do not meet."""

import json
import random
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coldpress import artifact, runs
from coldpress.errors import InputError, UsageError
from coldpress.runs.record import Figures
from tests import made_evaluations, tiny_gguf
from tests.test_cli import coldpress, refused

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def record(number: int = 0, **changes: object) -> runs.Record:
    made = runs.Record(
        command="evaluate",
        name=f"Q{number}",
        run_id=f"{number:016x}",
        recipe=None,
        inputs={"gguf": f"{number:064x}"},
        options={"profile": "exact", "quantize": {"plain": ["Q4_0"]}},
        tools={"coldpress": "0.1.0"},
        machine={"cpu": "x", "cpu_backend": "y", "threads": "2"},
        figures={f"Q{number}": Figures(1000 + number, 4.5, 0.9, 0.01, None, 100.0)},
        paths={"out": "/somewhere"},
    )
    return replace(made, **changes)


def test_a_record_is_one_json_file_named_by_time_and_run_id(tmp_path: Path) -> None:
    name = runs.append(tmp_path / "store", record(7), START)
    assert name == "20260102T030405.000000Z-0000000000000007"
    (path,) = (tmp_path / "store").iterdir()
    assert path.name == f"{name}.json"
    assert json.loads(path.read_text()) == asdict(record(7))
    assert "2026" not in path.read_text()


_moments = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 3)), min_size=1, max_size=12, unique=True
)


@settings(max_examples=25, deadline=None)
@given(_moments, st.randoms(use_true_random=False), st.sampled_from(["gone", "torn", "old", "ok"]))
def test_any_order_and_any_index_give_the_same_listing(
    moments: list[tuple[int, int]], shuffle: random.Random, index: str
) -> None:
    def fill(store: Path, order: list[tuple[int, int]]) -> None:
        for minutes, number in order:
            runs.append(store, record(number), START + timedelta(minutes=minutes))

    with TemporaryDirectory() as scratch:
        plain, other = Path(scratch) / "plain", Path(scratch) / "other"
        fill(plain, moments)
        shuffled = shuffle.sample(moments, len(moments))
        fill(other, shuffled[: len(moments) // 2])
        other.mkdir(exist_ok=True)
        runs.listing(other)  # an index of the first half alone: old after the second
        fill(other, shuffled[len(moments) // 2 :])
        path = other / "index.sqlite"
        match index:
            case "gone":
                path.unlink()
            case "torn":
                runs.listing(other)
                data = bytearray(path.read_bytes())
                data[shuffle.randrange(len(data))] ^= 1 << shuffle.randrange(8)
                path.write_bytes(data[: shuffle.randrange(len(data)) or None])
            case "ok":
                runs.listing(other)
        listed = runs.listing(other)
        assert listed == runs.listing(plain)
        assert listed == runs.listing(other)
        times = sorted((START + timedelta(minutes=m), f"{n:016x}") for m, n in moments)
        assert [(each.when, each.record.run_id) for each in listed.records] == [
            (f"{time:%Y-%m-%d %H:%M:%S}", number) for time, number in times
        ]


def test_a_flipped_byte_in_the_index_never_changes_a_record(tmp_path: Path) -> None:
    for number in range(3):
        runs.append(tmp_path, record(number), START)
    expected = runs.listing(tmp_path)
    index = tmp_path / "index.sqlite"
    whole = index.read_bytes()
    at = whole.index(b"/somewhere")
    index.write_bytes(whole[:at] + b"#" + whole[at + 1 :])
    assert runs.listing(tmp_path) == expected
    assert index.read_bytes().count(b"/somewhere") == 3


def test_the_index_is_used_when_it_is_current(tmp_path: Path) -> None:
    """Seen from outside: it is not written again, and its rows are the files'."""
    runs.append(tmp_path, record(1), START)
    runs.listing(tmp_path)
    before = (tmp_path / "index.sqlite").stat()
    runs.listing(tmp_path)
    after = (tmp_path / "index.sqlite").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    with closing(sqlite3.connect(tmp_path / "index.sqlite")) as index:
        assert index.execute("select model, run_id from records").fetchall() == [
            ("Q1", f"{1:016x}")
        ]


_WRITER = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from coldpress import runs
from tests.test_runs import record, START
for _ in range(20):
    runs.append(Path(sys.argv[1]), record(1), START)
"""


def test_writers_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    """The same work in the same microsecond, from four processes, with a reader beside them."""
    store = tmp_path / "store"
    store.mkdir()
    writers = [subprocess.Popen([sys.executable, "-c", _WRITER, str(store)]) for _ in range(4)]
    while any(writer.poll() is None for writer in writers):
        assert runs.listing(store).damaged == ()
    assert [writer.wait() for writer in writers] == [0] * 4
    listed = runs.listing(store)
    assert len(listed.records) == 80
    assert all(each.record == record(1) for each in listed.records)
    assert not list(store.glob(".*.partial"))


def test_what_a_killed_writer_left_is_passed_by(tmp_path: Path) -> None:
    name = runs.append(tmp_path, record(1), START)
    shutil.move(tmp_path / f"{name}.json", tmp_path / f".{name}.partial")
    again = runs.append(tmp_path, record(1), START)
    assert again == "20260102T030405.000001Z-0000000000000001"
    assert [each.id for each in runs.listing(tmp_path).records] == [again]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (b"", "Invalid JSON"),
        (b"[]", "should be an object|valid dict|dataclass"),
        (b'{"command": "run"}', "name"),
        (b"\xff\xfe", "Invalid JSON|utf|unicode"),
    ],
)
def test_a_damaged_record_is_named_and_skipped(tmp_path: Path, damage: bytes, words: str) -> None:
    good = runs.append(tmp_path, record(1), START)
    bad = runs.append(tmp_path, record(2), START)
    (tmp_path / f"{bad}.json").write_bytes(damage)
    for _ in range(2):  # from the files, then from the index
        listed = runs.listing(tmp_path)
        assert [each.id for each in listed.records] == [good]
        (said,) = listed.damaged
        assert said.startswith(f"{bad}.json: ")
    done = coldpress("runs", "ls", "--store", tmp_path, "--json")
    assert done.returncode == 0
    assert f"{bad}.json" in done.stderr
    assert [each["id"] for each in json.loads(done.stdout)["records"]] == [good]


def test_a_record_under_a_wrong_name_or_of_another_format_is_skipped(tmp_path: Path) -> None:
    name = runs.append(tmp_path, record(1), START)
    runs.append(tmp_path, record(2, format_version=9), START)
    shutil.copy(tmp_path / f"{name}.json", tmp_path / "copy.json")
    listed = runs.listing(tmp_path)
    assert [each.id for each in listed.records] == [name]
    assert len(listed.damaged) == 2
    assert "not named after" in "".join(listed.damaged)
    assert "format 9" in "".join(listed.damaged)


def test_find_takes_a_unique_prefix(tmp_path: Path) -> None:
    first = runs.append(tmp_path, record(1, run_id="ab" * 8), START)
    twin = runs.append(tmp_path, record(1, run_id="ab" * 8), START + timedelta(days=1))
    other = runs.append(tmp_path, record(2, run_id="ac" * 8), START + timedelta(days=2))
    listed = runs.listing(tmp_path)
    assert runs.find(listed, "20260102").id == first
    assert runs.find(listed, "ab").id == twin  # the same work twice: the newest
    assert runs.find(listed, "ac").id == other
    assert runs.find(listed, other).id == other
    for prefix in ("a", "2026"):
        with pytest.raises(UsageError, match=f"[23] runs start with {prefix}"):
            runs.find(listed, prefix)
    for prefix in ("", "f"):
        with pytest.raises(UsageError, match="no run"):
            runs.find(listed, prefix)


def test_diff_names_what_changed_and_sets_figures_side_by_side(tmp_path: Path) -> None:
    one = record(1, options={"quantize": {"plain": ["Q4_0"]}, "seed": 0})
    other = record(
        1,
        run_id="f" * 16,
        inputs={"gguf": "e" * 64},
        options={"quantize": {"plain": ["Q8_0"]}, "seed": 0, "heal": True},
        figures={"Q1": Figures(900, 4.0, 0.9, 0.02, None, 100.0), "new": one.figures["Q1"]},
    )
    runs.append(tmp_path, one, START)
    runs.append(tmp_path, other, START + timedelta(hours=1))
    listed = runs.listing(tmp_path)
    two = runs.diff(*listed.records)
    changed = {each.what: (each.a, each.b) for each in two.changed}
    assert changed == {
        "run_id": (f"{1:016x}", "f" * 16),
        "options.quantize.plain": (["Q4_0"], ["Q8_0"]),
        "options.heal": (None, True),
        "inputs.gguf": (f"{1:064x}", "e" * 64),
    }
    assert two.figures["Q1"] == (one.figures["Q1"], other.figures["Q1"])
    assert two.figures["new"] == (None, one.figures["Q1"])
    assert runs.diff(listed.records[0], listed.records[0]).changed == ()
    done = coldpress("runs", "diff", "0000", "ffff", "--store", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "0.0100 → 0.0200" in done.stdout
    assert "options.quantize.plain" in done.stdout
    shown = coldpress("runs", "show", "ffff", "--store", tmp_path, "--json")
    assert json.loads(shown.stdout)["record"] == asdict(other)


def test_a_record_of_an_evaluation_is_its_artifact(tmp_path: Path) -> None:
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"weights")
    folder = made_evaluations.write(tmp_path / "out", made_evaluations.DEMO[3], gguf)
    made = runs.of_evaluation(gguf, folder)
    assert made.run_id == artifact.read(folder).run_id
    assert made.inputs == {"gguf": artifact.sha256_file(gguf)}
    assert made.figures["Q5_K"].kl_nats == 0.0032
    assert made.machine["cpu"] == "Intel(R) Xeon(R) Processor"


def test_evaluate_is_recorded_beside_its_output(tmp_path: Path) -> None:
    gguf = tiny_gguf.write(tmp_path / "tiny.gguf")
    (tmp_path / "text.txt").write_text("the cat of the hat sat on the mat, and so on. " * 60)
    argv = ("evaluate", gguf, "--text", tmp_path / "text.txt", "-o", tmp_path / "out/eval")
    done = coldpress(*argv)
    assert done.returncode == 0, done.stderr
    listed = json.loads(
        coldpress("runs", "ls", "--json", "--store", tmp_path / "out/.store").stdout
    )
    (stored,) = listed["records"]
    assert stored["record"]["command"] == "evaluate"
    assert stored["record"]["figures"]["tiny"]["size_bytes"] == gguf.stat().st_size
    assert stored["record"]["run_id"] == artifact.read(tmp_path / "out/eval").run_id
    (tmp_path / "file").write_text("")  # no folder can be made there: the result must stay
    done = coldpress(*argv, "--store", tmp_path / "file/store")
    assert done.returncode == 0
    assert "not recorded" in done.stderr


def test_bad_input_is_two_lines(tmp_path: Path) -> None:
    refused(coldpress("runs", "ls", "--store", tmp_path / "none"), 5, "no run store")
    refused(coldpress("runs", "ls", cwd=tmp_path), 5, r"runs/\.store is no run store")
    refused(coldpress("runs", "show", "x", "--store", tmp_path), 2, "no run 'x'")
    with pytest.raises(InputError, match="no run store"):
        runs.listing(tmp_path / "none")
