"""Artifacts appear whole or not at all, whatever interrupts them."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from coldpress import artifact, errors
from coldpress.errors import ColdpressError, InputError, IntegrityError


def make(out: Path, text: str = "hello", options: dict[str, object] | None = None) -> None:
    with artifact.create(out, "convert", inputs={}, options=options or {}) as draft:
        (draft.folder / "a").mkdir()
        (draft.folder / "a/b.txt").write_text(text)


def test_manifest_names_every_file_with_its_known_digest(tmp_path: Path) -> None:
    make(tmp_path / "x")
    data = json.loads((tmp_path / "x/manifest.json").read_text())
    assert data["files"] == [
        {
            "name": "a/b.txt",
            "size_bytes": 5,
            "sha256": "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824",
        }
    ]
    assert not (tmp_path / "x.partial").exists()


def test_same_work_same_run_id_other_work_another(tmp_path: Path) -> None:
    make(tmp_path / "x")
    make(tmp_path / "y")
    make(tmp_path / "z", options={"type": "Q4_K"})
    first, second, third = (artifact.read(tmp_path / name) for name in "xyz")
    assert first.run_id == second.run_id != third.run_id
    assert first.digest == second.digest == third.digest
    assert artifact.is_current(tmp_path / "x", "convert", {}, {})
    assert not artifact.is_current(tmp_path / "x", "convert", {}, {"type": "Q4_K"})


def test_a_changed_input_makes_the_artifact_stale(tmp_path: Path) -> None:
    source = tmp_path / "in.txt"
    source.write_text("1")
    with artifact.create(tmp_path / "x", "convert", inputs={"model": source}, options={}):
        pass
    assert artifact.is_current(tmp_path / "x", "convert", {"model": source}, {})
    source.write_text("2")
    assert not artifact.is_current(tmp_path / "x", "convert", {"model": source}, {})


def test_an_error_leaves_nothing_and_keeps_the_old_result(tmp_path: Path) -> None:
    make(tmp_path / "x", "old")

    def fail() -> None:
        with artifact.create(tmp_path / "x", "convert", inputs={}, options={}) as draft:
            (draft.folder / "half").write_text("half")
            raise ValueError("boom")

    with pytest.raises(ValueError, match="boom"):
        fail()
    assert (tmp_path / "x/a/b.txt").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_kill_9_leaves_no_artifact_and_the_next_attempt_succeeds(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys; from pathlib import Path; from coldpress import artifact\n"
        "with artifact.create(Path(sys.argv[1]), 'convert', inputs={}, options={}) as draft:\n"
        "    (draft.folder / 'half').write_text('half'); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "x")], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "x").exists()
    make(tmp_path / "x")
    assert [file.name for file in artifact.verify(tmp_path / "x").files] == ["a/b.txt"]
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("change", ["flip", "cut", "remove"])
def test_verify_names_the_file_that_changed(tmp_path: Path, change: str) -> None:
    make(tmp_path / "x")
    path = tmp_path / "x/a/b.txt"
    match change:
        case "flip":
            path.write_text("hellp")
        case "cut":
            path.write_text("hell")
        case "remove":
            path.unlink()
    with pytest.raises(IntegrityError, match=r"a/b\.txt"):
        artifact.verify(tmp_path / "x")


def test_a_folder_that_is_not_ours_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x/precious").write_text("mine")
    with pytest.raises(InputError, match="not a coldpress artifact"):
        make(tmp_path / "x")
    assert (tmp_path / "x/precious").read_text() == "mine"


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"files": 3}', '{"files": [], "stage": 1, "x": 2}']
)
def test_a_broken_manifest_is_a_clear_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(InputError, match="manifest"):
        artifact.read(tmp_path)


def test_every_error_has_its_own_exit_code() -> None:
    named = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    assert len(named) > 10
    codes = [kind.exit_code for kind in named if issubclass(kind, ColdpressError)]
    assert len(set(codes)) == len(codes)
    assert all(0 < code < 126 for code in codes)
