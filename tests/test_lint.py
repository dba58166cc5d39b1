"""The linter against images that are each wrong in one way, and against good ones."""

import gzip
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coldpress.errors import ColdpressError, GateError, InputError, UsageError
from coldpress.package import lint as stage
from coldpress.package import tarstream
from coldpress.package.lint import RULES, Linted, LintOptions, lint
from coldpress.package.lint.streams import Blob, Unpacked
from coldpress.package.stores import Folder
from tests import bad_images
from tests.bad_images import BAD, ELF_386, ELF_AMD64, Entry, Image, Layer, folder, link

DOCUMENTATION = Path(__file__).parents[1] / "docs" / "images.md"
MADE = [(rule, number) for rule, images in BAD.items() for number in range(len(images))]


def rules(linted: Linted) -> set[str]:
    return {finding.rule for finding in linted.findings}


def test_every_rule_has_a_bad_image_and_a_source() -> None:
    assert {rule.id for rule in RULES} == set(BAD)
    assert len({rule.id for rule in RULES}) == len(RULES)
    assert all(rule.source.startswith("https://") for rule in RULES)


@pytest.mark.parametrize(("rule", "number"), MADE, ids=[f"{r}-{n}" for r, n in MADE])
def test_bad_image_breaks_its_rule_and_no_other(rule: str, number: int, tmp_path: Path) -> None:
    linted = lint(BAD[rule][number]().write(tmp_path / "image"))
    assert rules(linted) == {rule}
    if linted.holds:
        stage.enforce(linted)
    else:
        with pytest.raises(GateError, match=rule):
            stage.enforce(linted)


def test_good_image_in_every_form(tmp_path: Path) -> None:
    image = Image().add(
        folder("lib"),
        link("app/lib", "../lib"),
        link("app/again", "app/run", tarfile.LNKTYPE),
        Entry(f"app/{'long' * 60}"),
    )
    image.layers.append(Layer([folder("lib"), Entry("lib/x"), Entry("app/lib/y")]))
    for path in (
        image.write(tmp_path / "folder"),
        image.archive(tmp_path / "oci.tar"),
        image.docker_archive(tmp_path / "docker.tar"),
    ):
        linted = lint(path)
        assert linted.findings == (), path
        assert linted.n_layers == (3 if path.name == "docker.tar" else 2)


def test_program_for_another_cpu(tmp_path: Path) -> None:
    image = Image(layers=[Layer([folder("app"), Entry("app/run", ELF_386, 0o755)])])
    assert rules(lint(image.write(tmp_path / "image"))) == {
        "entrypoint-architecture",
        "mixed-architecture",
    }


def test_program_by_path_links_and_interpreter(tmp_path: Path) -> None:
    entries = [
        *(folder(name) for name in ("usr", "usr/bin", "opt")),
        link("bin", "usr/bin"),
        Entry("usr/bin/sh", ELF_AMD64, 0o755),
        Entry("opt/run", b"#! /bin/sh -e\n", 0o755),
        link("usr/bin/run", "/opt/run"),
    ]
    image = Image(layers=[Layer(entries)], run={"Entrypoint": None, "Cmd": ["run"]})
    assert lint(image.write(tmp_path / "image")).findings == ()


def test_user_decides_what_cloud_run_may_read(tmp_path: Path) -> None:
    image = Image(run={"User": "0"}).add(Entry("app/model.gguf", b"GGUF", 0o600))
    path = image.write(tmp_path / "image")
    assert rules(lint(path, LintOptions("cloudrun"))) == {"root-user"}
    assert rules(lint(path, LintOptions("lambda"))) == {"unreadable-file"}
    # Of a user by name the number is not known; who owns the file may read it.
    named = Image(run={"User": "app"}).add(Entry("app/model.gguf", b"GGUF", 0o600))
    assert lint(named.write(tmp_path / "named"), LintOptions("cloudrun")).findings == ()
    other = Image(run={"User": "7:8"}).add(Entry("app/model.gguf", b"GGUF", 0o600))
    assert rules(lint(other.write(tmp_path / "other"), LintOptions("cloudrun"))) == {
        "unreadable-file"
    }


def test_what_packages_ship_for_their_tests_is_no_secret(tmp_path: Path) -> None:
    site = "usr/lib/python3.11/site-packages"
    names = [f"{site}/tornado/test/test.key", f"{site}/transformers/testing_utils.py"]
    names += [f"{site}/joblib/test/data/old.pkl"]
    data = bad_images.PEM + bad_images.HF_TOKEN.encode()
    parents = {str(parent) for name in names for parent in Path(name).parents} - {"."}
    image = Image().add(*map(folder, sorted(parents)), *(Entry(name, data) for name in names))
    assert lint(image.write(tmp_path / "image")).findings == ()
    ours = Image().add(folder("app/tests"), Entry("app/tests/test_login.py", data))
    assert rules(lint(ours.write(tmp_path / "ours"))) == {"secret-in-layer"}


def test_target_decides_what_counts(tmp_path: Path) -> None:
    index = Image(wrapped=True).write(tmp_path / "index")
    assert lint(index, LintOptions("cloudrun")).findings == ()
    arm = Image(config={"architecture": "arm64"})
    arm.layers = [Layer([folder("app"), Entry("app/run", bad_images.ELF_ARM64, 0o755)])]
    path = arm.write(tmp_path / "arm")
    assert lint(path, LintOptions("lambda")).findings == ()
    assert rules(lint(path, LintOptions("cloudrun"))) == {"architecture"}
    with pytest.raises(UsageError):
        LintOptions(target="azure")  # type: ignore[arg-type]


def test_unpacked_size_is_counted_to_the_byte(tmp_path: Path) -> None:
    first = [folder("app"), Entry("app/run", ELF_AMD64, 0o755), Entry("app/a", bytes(500))]
    image = Image(layers=[Layer(first), Layer([Entry("app/a", bytes(436))])])
    path = image.write(tmp_path / "image")  # both layers count, hidden or not
    size = len(ELF_AMD64) + 500 + 436
    assert lint(path, LintOptions(limit_bytes=size)).findings == ()
    assert rules(lint(path, LintOptions(limit_bytes=size - 1))) == {"unpacked-size"}


class Hole(Folder):
    """A layout in which one blob is ``head`` and then zeros that nobody stores."""

    def __init__(self, path: Path, blob: str, head: bytes, size: int) -> None:
        super().__init__(path)
        self._blob, self._head, self._size = blob, head, size

    def size_bytes(self, name: str) -> int | None:
        return self._size if name == self._blob else super().size_bytes(name)

    def open(self, name: str, start: int = 0) -> Any:
        return Zeros(self._head, self._size) if name == self._blob else super().open(name, start)


class Zeros(io.BytesIO):
    """``head``, then zeros up to ``size``."""

    def __init__(self, head: bytes, size: int) -> None:
        super().__init__(head)
        self._left = size - len(head)
        self._piece = bytes(1 << 20)

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        if data or size is None:
            return data
        zeros = self._piece[: min(size, self._left)]
        self._left -= len(zeros)
        return zeros


@pytest.mark.slow
@pytest.mark.parametrize(("extra", "broken"), [(0, set()), (1, {"unpacked-size"})])
def test_ten_gigabytes_and_one_byte(extra: int, broken: set[str], tmp_path: Path) -> None:
    """An uncompressed layer of 10 GB of zeros, read to its end."""
    info = tarfile.TarInfo("app/weights")
    info.size = 10_000_000_000 + extra - len(ELF_AMD64)
    head = bad_images.tar(bad_images.base())[:1536] + info.tobuf(tarfile.GNU_FORMAT)
    content = Layer(raw=b"", media_type=bad_images.PLAIN, digest=f"sha256:{'c' * 64}")
    path = Image(layers=[content]).write(tmp_path / "image")
    size = len(head) + -(-info.size // 512) * 512 + 1024
    linted = lint(Hole(path, f"blobs/sha256/{'c' * 64}", head, size), LintOptions("lambda"))
    assert linted.unpacked_bytes == 10_000_000_000 + extra
    assert rules(linted) - {"digest-mismatch", "diff-id-mismatch"} == broken


def test_extension_header_that_asks_for_gigabytes(tmp_path: Path) -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 4 << 30
    raw = gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 20))
    image = Image(layers=[Layer(), Layer(raw=raw)])
    (finding,) = lint(image.write(tmp_path / "image")).findings
    assert finding.rule == "broken-layer"
    assert "4294967296 bytes" in finding.where[0]


def test_names_cannot_move_the_cursor(tmp_path: Path) -> None:
    image = Image().add(Entry("srv/\x1b[2J\n\udcff"))
    (finding,) = lint(image.write(tmp_path / "image")).findings
    assert "\\x1b[2J\\n\\udcff" in finding.where[0]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "holds no image"),
        ({"index.json": b"{"}, "no JSON"),
        ({"index.json": b"[]"}, "no JSON object"),
        ({"index.json": b'{"manifests": []}'}, "lists no image"),
        ({"index.json": b'{"manifests": [{"digest": "md5:1"}]}'}, "unusual digest"),
        ({"index.json": b'{"manifests": [{"digest": "sha256:../../etc"}]}'}, "unusual digest"),
        ({"manifest.json": b"[{}, {}]"}, "holds 2 images"),
    ],
)
def test_what_is_no_image_is_refused(files: dict[str, bytes], said: str, tmp_path: Path) -> None:
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=said):
        lint(tmp_path)


def test_missing_blob_and_compressed_archive_are_refused(tmp_path: Path) -> None:
    path = Image().write(tmp_path / "image")
    max(
        (path / "blobs/sha256").iterdir(), key=lambda it: it.read_bytes()[:2] == b"\x1f\x8b"
    ).unlink()
    with pytest.raises(InputError, match="is missing"):
        lint(path)
    packed = tmp_path / "image.tar.gz"
    packed.write_bytes(gzip.compress(Image().archive(tmp_path / "image.tar").read_bytes()))
    with pytest.raises(InputError, match="compressed by gzip"):
        lint(packed)
    with pytest.raises(InputError, match="does not exist"):
        lint(tmp_path / "nowhere")


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damage_is_a_finding_or_two_lines(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    whole = Image().archive(tmp_path_factory.mktemp("fuzz") / "image.tar")
    raw = bytearray(whole.read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    whole.write_bytes(raw)
    try:
        lint(whole)
    except ColdpressError as error:
        assert error.hint


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.text("aé/", min_size=1, max_size=300), st.binary(max_size=2000)), max_size=6
    ),
    st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
    st.integers(1, 4),
)
def test_tar_reader_agrees_with_tarfile(
    files: list[tuple[str, bytes]], form: int, members: int
) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    raw = out.getvalue()
    step = len(raw) // members + 1
    packed = b"".join(gzip.compress(raw[at : at + step]) for at in range(0, len(raw), step))
    unpacked = Unpacked(Blob(io.BytesIO(packed)), 1 << 30)
    tar = tarstream.TarStream(unpacked)
    ours = [(it.name, it.size_bytes, tar.head(1 << 20)) for it in tar]
    with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
        theirs = [(it.name.rstrip("/"), it.size, archive.extractfile(it).read()) for it in archive]  # type: ignore[union-attr]
    assert ours == theirs
    unpacked.drain()
    assert unpacked.size_bytes == len(raw)


def test_command_line(tmp_path: Path) -> None:
    bad = Image(wrapped=True).archive(tmp_path / "bad.tar")
    command = [sys.executable, "-m", "coldpress.cli", "lint", str(bad), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert json.loads(done.stdout)["findings"][0]["rule"] == "image-index"
    assert done.stderr.splitlines()[-2].startswith("error: ")
    assert done.stderr.splitlines()[-1].startswith(" hint: ")
    fine = subprocess.run([*command, "--target", "cloudrun"], capture_output=True, check=False)
    assert fine.returncode == 0


@pytest.fixture(scope="session")
def built_by_buildah(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An image of another builder, of two layers, in the forms that it writes."""
    if not shutil.which("buildah") or os.geteuid() != 0:
        pytest.skip("needs buildah and root")
    work = tmp_path_factory.mktemp("buildah")
    (work / "context/app").mkdir(parents=True)
    (work / "context/app/run").write_bytes(ELF_AMD64)
    (work / "context/app/run").chmod(0o755)
    (work / "context/Containerfile").write_text(
        "FROM scratch\nCOPY app /srv/app\nCOPY app/run /srv/more/run\n"
        'ENV HOME=/tmp\nUSER 65532\nENTRYPOINT ["/srv/app/run"]\n'
    )
    buildah = ["buildah", "--storage-driver", "vfs", "--root", work / "root"]
    buildah += ["--runroot", work / "run"]
    build = ["bud", "--isolation", "chroot", "--platform", "linux/amd64", "--layers", "-t", "made"]
    pushes = {
        name: f"{name}:{work / name}:made" for name in ("oci", "oci-archive", "docker-archive")
    }
    for argv in ([*build, work / "context"], *(["push", "made", to] for to in pushes.values())):
        done = subprocess.run([*buildah, *argv], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    return {name: work / name for name in pushes}


@pytest.mark.parametrize("form", ["oci", "oci-archive", "docker-archive"])
def test_image_of_buildah_is_accepted(form: str, built_by_buildah: dict[str, Path]) -> None:
    linted = lint(built_by_buildah[form])
    assert linted.findings == ()
    assert linted.unpacked_bytes == 2 * len(ELF_AMD64)


def test_image_of_umoci_is_accepted(tmp_path: Path) -> None:
    if not shutil.which("umoci") or os.geteuid() != 0:
        pytest.skip("needs umoci and root")
    image = ["--image", f"{tmp_path / 'image'}:made"]
    bundle = tmp_path / "bundle"

    def umoci(*arguments: str | Path) -> None:
        subprocess.run(["umoci", *arguments], check=True, capture_output=True)

    umoci("init", "--layout", tmp_path / "image")
    umoci("new", *image)
    settings = ["--config.entrypoint", "/app/run", "--config.user", "65532", "--os", "linux"]
    umoci("config", *image, *settings, "--architecture", "amd64")
    umoci("unpack", *image, bundle)
    (bundle / "rootfs/app").mkdir(mode=0o755)
    (bundle / "rootfs/app/run").write_bytes(ELF_AMD64)
    (bundle / "rootfs/app/run").chmod(0o755)
    umoci("repack", *image, bundle)
    # It writes a step of history for the command that set the entrypoint, as an empty layer.
    assert lint(tmp_path / "image").findings == ()


def test_documentation_lists_the_rules() -> None:
    """`python -m tests.test_lint` writes the table."""
    assert _table() in DOCUMENTATION.read_text()


def _table() -> str:
    marks = {"error": "✓", "warning": "~", None: ""}
    rows = [
        f"| [`{rule.id}`]({rule.source}) | {marks[rule.severities.get('lambda')]} |"
        f" {marks[rule.severities.get('cloudrun')]} | {rule.sentence} |"
        for rule in sorted(RULES, key=lambda rule: rule.id)
    ]
    return "\n".join(["| rule | Lambda | Cloud Run | |", "| --- | :-: | :-: | --- |", *rows, ""])


if __name__ == "__main__":
    text = DOCUMENTATION.read_text()
    before, rest = text.split("<!-- rules:begin -->\n")
    after = rest.split("<!-- rules:end -->")[1]
    begin, end = "<!-- rules:begin -->\n", "<!-- rules:end -->"
    DOCUMENTATION.write_text(f"{before}{begin}{_table()}{end}{after}")
