"""What others' archives may do to our disk: write regular files inside the folder, within limits."""

import io
import tarfile
from pathlib import Path

import pytest

from coldpress import untar
from coldpress.errors import IntegrityError


def archive(*members: tuple[str, bytes | str]) -> tarfile.TarFile:
    """Bytes are a file's content, a string is a link's target."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    stream.seek(0)
    return tarfile.open(fileobj=stream)


def unpack(tar: tarfile.TarFile, folder: Path, max_bytes: int = 100, max_files: int = 2) -> None:
    untar.regular_files(tar, folder, max_bytes=max_bytes, max_files=max_files)


def test_files_are_written_and_links_left_out(tmp_path: Path) -> None:
    unpack(archive(("a/b", b"1"), ("link", "/etc"), ("c", b"22")), tmp_path)
    found = {path.name: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert found == {"b": b"1", "c": b"22"}
    assert not (tmp_path / "link").exists()


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil"])
def test_a_path_that_leaves_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "in"
    with pytest.raises(IntegrityError, match="evil"):
        unpack(archive((name, b"x")), folder)
    assert not list(tmp_path.rglob("evil"))


def test_a_file_behind_a_link_stays_inside(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    unpack(archive(("d", str(outside)), ("d/f", b"x")), tmp_path / "in")
    assert not list(outside.iterdir())


def test_limits_hold_at_the_boundary(tmp_path: Path) -> None:
    unpack(archive(("a", b"x" * 50), ("b", b"x" * 50)), tmp_path)
    with pytest.raises(IntegrityError, match="more than"):
        unpack(archive(("a", b"x" * 50), ("b", b"x" * 51)), tmp_path)
    with pytest.raises(IntegrityError, match="more than"):
        unpack(archive(("a", b""), ("b", b""), ("c", b"")), tmp_path)
