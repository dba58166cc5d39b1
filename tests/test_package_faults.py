"""What can go wrong while a package is built: full disks, kills, bases that lie, secrets nearby."""

import gzip
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from coldpress import artifact
from coldpress.errors import DiskFullError, InputError, IntegrityError
from coldpress.package import PackageOptions, layer, layout, package, plan, registry, stage, verify
from coldpress.package.base import architecture, resolve
from coldpress.package.layer import File
from coldpress.package.oci import Archive, Config
from tests import packages, registries
from tests.test_cli import refused

LAMBDA = PackageOptions(target="lambda")


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny checkpoint, and packages stand on a small base."""
    packages.small_base(monkeypatch, tmp_path)
    return packages.tiny_checkpoint(tmp_path)


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    folder.mkdir()
    argv = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder]
    if os.geteuid() != 0 or subprocess.run(argv, capture_output=True).returncode != 0:
        pytest.skip("needs root and mount")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def child(folder: Path, out: Path, stop: str = "") -> list[str]:
    return [sys.executable, "-m", "tests.package_process", str(folder), str(out), stop]


# Of the image's 900 KB: nothing, the start, nearly all, all but what follows it.
@pytest.mark.parametrize("room", ["4k", "64k", "256k", "800k"])
def test_a_full_disk_is_said_and_nothing_stays(checkpoint: Path, tmp_path: Path, room: str) -> None:
    with small_disk(tmp_path / "disk", room) as disk:
        done = subprocess.run(
            child(tmp_path, disk / "out"), capture_output=True, text=True, timeout=120
        )
        refused(done, 21, r"no space left to write .*/disk/out")
        assert not list(disk.iterdir())


def test_a_full_disk_of_the_cache_is_said(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    big = File("opt/big", os.urandom(1 << 20))
    monkeypatch.setattr(stage.runtime, "entries", lambda _base, **_: [big])
    with small_disk(tmp_path / "disk", "600k") as disk:
        monkeypatch.setenv("COLDPRESS_CACHE", str(disk))
        with pytest.raises(DiskFullError, match=r"no space left to write .*/disk/layers"):
            package(checkpoint, tmp_path / "out", LAMBDA)
        assert [path.name for path in (disk / "layers").iterdir()] == ["lock"]
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("stop", ["layer", "weights", "documents", "manifest", "rename"])
@pytest.mark.parametrize("replaces", [False, True])
def test_a_killed_build_is_done_again_as_if_it_had_not_been(
    checkpoint: Path, tmp_path: Path, stop: str, replaces: bool
) -> None:
    expected = package(checkpoint, tmp_path / "expected", LAMBDA)
    out = tmp_path / "made" / "out"
    if replaces:
        package(checkpoint, out, replace(LAMBDA, memory_mib=4096))
    for path in (tmp_path / "cache" / "layers").glob("*.json"):
        path.unlink()  # so that layers are written again
    with subprocess.Popen(child(tmp_path, out, stop), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "stopped\n"
        process.kill()
    if out.exists():  # the old one, whole
        assert replaces and artifact.verify(out).options["memory_mib"] == 4096
    again = package(checkpoint, out, LAMBDA)
    assert again.digest == expected.digest
    verify.folder(out)
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    left = {path.suffix for path in (tmp_path / "cache" / "layers").iterdir()}
    assert left <= {".gz", ".json", ""} and not list((tmp_path / "cache").rglob("building-*"))
    for note in (tmp_path / "cache" / "layers").glob("*.json"):
        blob = note.with_suffix(".tar.gz")
        assert json.loads(note.read_text())["digest"] == f"sha256:{artifact.sha256_file(blob)}"


def test_builds_side_by_side_leave_each_other_alone(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "stopped"
    with subprocess.Popen(
        child(tmp_path, out, "layer"), stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline()
        package(checkpoint, tmp_path / "out", LAMBDA)
        assert list((tmp_path / "cache" / "layers").glob("building-*"))  # it may go on
        process.kill()


def oci(folder: Path, entries: list[layer.Entry], **changes: Any) -> Path:
    """An image of one layer as an archive."""
    config = Config("base", architecture(), ("/usr/bin/python3.11",), (), {})
    path = folder / "base.tar"
    with path.open("wb") as stream:
        archive = Archive(stream)
        archive.write_layer(entries, "base", lambda _bytes: None)
        archive.finish(replace(config, **changes))
    return path


PYTHON = File("usr/bin/python3.11", b"", executable=True)


def test_a_base_for_another_cpu_is_refused(tmp_path: Path) -> None:
    other = {"amd64": "arm64", "arm64": "amd64"}[architecture()]
    path = oci(tmp_path, [PYTHON], architecture=other)
    with pytest.raises(InputError, match=f"is for {other}") as caught:
        resolve(str(path), tmp_path / "work")
    assert architecture() in caught.value.hint
    assert resolve(str(oci(tmp_path, [PYTHON])), tmp_path / "again").python_version == "3.11"


def as_layout(folder: Path, members: list[tuple[str, bytes, str]], **lies: Any) -> Path:
    """An OCI layout of one layer with such members: name, type, target; ``lies`` change the config."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, kind, target in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            tar.addfile(info)
    plain = out.getvalue()
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def keep(data: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"digest": f"sha256:{digest}", "size": len(data)}

    packed = keep(gzip.compress(plain))
    diff_id = f"sha256:{hashlib.sha256(plain).hexdigest()}"
    config = {"architecture": architecture(), "rootfs": {"diff_ids": [diff_id]}} | lies
    manifest = {
        "config": keep(json.dumps(config).encode()),
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip"} | packed],
    }
    index = {"manifests": [keep(json.dumps(manifest).encode())]}
    (folder / "index.json").write_text(json.dumps(index))
    return folder


GOOD = ("usr/bin/python3.11", tarfile.REGTYPE, "")


@pytest.mark.parametrize(
    "member",
    [
        ("../escaped", tarfile.REGTYPE, ""),
        ("usr/../../escaped", tarfile.REGTYPE, ""),
        ("/etc/escaped", tarfile.REGTYPE, ""),
        ("../escaped", tarfile.SYMTYPE, "x"),
        ("../escaped", tarfile.DIRTYPE, ""),
        ("usr/passwd", tarfile.LNKTYPE, "../../../etc/passwd"),
        ("usr/passwd", tarfile.LNKTYPE, "/etc/passwd"),
    ],
)
def test_a_base_that_would_write_outside_is_refused(
    tmp_path: Path, member: tuple[str, bytes, str]
) -> None:
    with pytest.raises(IntegrityError, match="outside of the image"):
        layout.base(as_layout(tmp_path / "bad", [GOOD, member]), tmp_path)
    inside = ("usr/link", tarfile.SYMTYPE, "/etc/passwd")  # absolute within the image: as usual
    assert layout.base(as_layout(tmp_path / "good", [GOOD, inside]), tmp_path).layers


@pytest.mark.parametrize(
    ("lies", "words"),
    [
        ({"rootfs": {"diff_ids": [f"sha256:{'0' * 64}"]}}, "unpacks to other bytes"),
        ({"rootfs": {"diff_ids": []}}, "no image that can be read"),
        ({"rootfs": None}, "no image that can be read"),
        ({"config": "no object"}, "no image that can be read"),
    ],
)
def test_a_base_whose_config_lies_is_refused(
    tmp_path: Path, lies: dict[str, Any], words: str
) -> None:
    with pytest.raises((InputError, IntegrityError), match=words):
        layout.base(as_layout(tmp_path / "base", [GOOD], **lies), tmp_path)


def test_secrets_beside_the_model_are_not_packed(checkpoint: Path, tmp_path: Path) -> None:
    bare = package(checkpoint, tmp_path / "bare", LAMBDA)
    secret = b"AWS_SECRET_ACCESS_KEY=" + os.urandom(16).hex().encode()
    (checkpoint / ".aws").mkdir()
    for name in (".env", ".aws/credentials", "id_rsa", "model.gguf.bak", "extra.gguf"):
        (checkpoint / name).write_bytes(secret)
    made = package(checkpoint, tmp_path / "made", LAMBDA)
    assert made.digest == bare.digest
    for path in made.path.iterdir():
        assert secret not in path.read_bytes()


def test_a_base_by_tag_is_pinned_and_said(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(stage, "resolve", resolve)
    monkeypatch.setattr(stage.runtime, "entries", lambda _base, **_: list(packages.RUNTIME))
    with registries.registry(tmp_path) as host:
        tagged = f"{host}/base:latest"
        pushed = registry.push(oci(tmp_path, [PYTHON]), tagged)
        made = package(checkpoint, tmp_path / "made", replace(LAMBDA, base=tagged))
        pinned = f"{tagged}@{pushed.digest}"
        assert f"{tagged} is {pinned} today" in capsys.readouterr().err
        assert artifact.read(made.path).options["base"] == pinned
        stated = json.loads((made.path / "provenance.json").read_bytes())
        used = stated["predicate"]["buildDefinition"]["resolvedDependencies"]
        assert {
            "name": "base",
            "uri": f"docker://{tagged}",
            "digest": {"sha256": pushed.digest.removeprefix("sha256:")},
        } in used
        before = plan(checkpoint, tmp_path / "made", replace(LAMBDA, base=tagged))
        registry.push(oci(tmp_path, [PYTHON, File("etc/new", b"")]), tagged)
        # The tag is another image now: the pipeline builds again, and what was named stays.
        assert plan(checkpoint, tmp_path / "made", replace(LAMBDA, base=tagged)) != before
        again = package(checkpoint, tmp_path / "again", replace(LAMBDA, base=pinned))
        assert again.digest == made.digest
        assert "today" not in capsys.readouterr().err
