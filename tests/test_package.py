"""The parts that an image is made of, without building a whole one."""

import gzip
import hashlib
import importlib.util
import io
import marshal
import os
import random
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coldpress.errors import InputError, TooLargeError, ToolError, UsageError
from coldpress.package import PackageOptions, app, layer, limits, package, runtime
from coldpress.package.base import Base
from coldpress.package.blobs import key_of
from coldpress.package.bytecode import with_bytecode
from coldpress.package.layer import Entry, File, Folder, Symlink
from coldpress.platforms import Size

ENTRIES: list[Entry] = [
    File("opt/b/run", b"#!", executable=True),
    Symlink("opt/b/link", "run"),
    File("opt/a.txt", b"text"),
    Folder("tmp", 0o1777),
]


def written(entries: list[Entry], compression: layer.Compression) -> tuple[bytes, layer.Layer]:
    out = io.BytesIO()
    made = layer.write(entries, out, compression)
    return out.getvalue(), made


@pytest.mark.parametrize("compression", ["stored", "deflate"])
def test_layer_digests_are_those_of_its_bytes(compression: layer.Compression) -> None:
    blob, made = written(ENTRIES, compression)
    assert made.digest == f"sha256:{hashlib.sha256(blob).hexdigest()}"
    assert made.diff_id == f"sha256:{hashlib.sha256(gzip.decompress(blob)).hexdigest()}"
    assert (made.size_bytes, made.unpacked_bytes) == (len(blob), 6)


def test_layer_holds_nothing_of_the_machine() -> None:
    blob, _ = written(ENTRIES, "stored")
    with tarfile.open(fileobj=io.BytesIO(blob), mode="r:gz") as tar:
        found = [(m.name, m.type, m.mode, m.uid, m.gid, m.uname, m.mtime) for m in tar]
    folder, file, link = tarfile.DIRTYPE, tarfile.REGTYPE, tarfile.SYMTYPE
    assert found == [
        ("opt", folder, 0o755, 0, 0, "", 0),
        ("opt/a.txt", file, 0o644, 0, 0, "", 0),
        ("opt/b", folder, 0o755, 0, 0, "", 0),
        ("opt/b/link", link, 0o777, 0, 0, "", 0),
        ("opt/b/run", file, 0o755, 0, 0, "", 0),
        ("tmp", folder, 0o1777, 0, 0, "", 0),
    ]


def test_layer_does_not_depend_on_the_order_or_source_of_entries(tmp_path: Path) -> None:
    on_disk = tmp_path / "any name"
    on_disk.write_bytes(b"text")
    on_disk.chmod(0o600)
    os.utime(on_disk, (1, 1))
    shuffled = [*ENTRIES[:2], File("opt/a.txt", on_disk), *ENTRIES[3:]]
    random.Random(0).shuffle(shuffled)
    assert written(shuffled, "stored") == written(ENTRIES, "stored")
    assert key_of(shuffled) == key_of(ENTRIES)


def test_layer_refuses_two_entries_for_one_path() -> None:
    with pytest.raises(ValueError, match=r"two entries for opt/a\.txt"):
        written([*ENTRIES, Folder("opt/a.txt")], "stored")


def test_stored_gzip_golden() -> None:
    # Header, one last stored block of a tar's two empty records, CRC-32, length.
    blob, _ = written([], "stored")
    size = 10240
    assert blob[:15] == bytes.fromhex("1f8b08000000000000ff 01 0028 ffd7")
    assert len(blob) == 10 + 5 + size + 8
    assert blob[-4:] == size.to_bytes(4, "little")


@given(st.lists(st.integers(0, 70_000), max_size=6))
def test_stored_blocks_do_not_depend_on_how_writes_are_cut(sizes: list[int]) -> None:
    data = random.Random(1).randbytes(sum(sizes))
    pieces, at = [], 0
    stream = layer._Stored()
    for size in sizes:
        pieces.append(stream.compress(data[at : at + size]))
        at += size
    whole = layer._Stored()
    cut = b"".join([*pieces, stream.flush()])
    assert cut == whole.compress(data) + whole.flush()
    decoder = layer.zlib.decompressobj(-15)
    assert decoder.decompress(cut) == data and decoder.eof


def test_bytecode_is_the_same_from_any_process_and_is_never_checked(tmp_path: Path) -> None:
    source = (
        b"import os\nNAMES = {'a', 'b', 'c'}\ndef f(x):\n    'doc'\n    return x in {'a', 'b'}\n"
    )
    entries = [File("opt/m.py", source), File("opt/broken.py", b"def")]
    first, second = with_bytecode(entries), with_bytecode(entries)
    assert first == second
    pyc = next(e for e in first if e.path.endswith(".pyc"))
    assert isinstance(pyc, File) and isinstance(pyc.source, bytes)
    assert pyc.path == f"opt/__pycache__/m.{sys.implementation.cache_tag}.pyc"
    assert len(first) == 3  # what does not compile is left as it is
    head, code = pyc.source[:16], marshal.loads(pyc.source[16:])
    assert head[:8] == importlib.util.MAGIC_NUMBER + b"\x01\0\0\0"
    assert code.co_filename == "/opt/m.py"
    scope: dict[str, object] = {}
    exec(code, scope)
    assert scope["NAMES"] == {"a", "b", "c"}


def test_app_layer_is_closed_and_light(tmp_path: Path) -> None:
    entries = app.entries()
    for entry in entries:
        assert isinstance(entry, File) and isinstance(entry.source, Path)
        copy = tmp_path / entry.path
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(entry.source.read_bytes())
    # Everything that serving imports, early or late, from the copy alone.
    modules = ["coldpress.serve.__main__", "coldpress.serve.api.http", "coldpress.serve.aws.front"]
    script = f"import {', '.join(modules)}, coldpress, sys; print(coldpress.__file__, *sys.modules)"
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path / app.APP)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=env, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    where, *loaded = done.stdout.split()
    assert where.startswith(str(tmp_path))
    assert not {"torch", "transformers", "pydantic", "typer", "rich"} & set(loaded)


def base(**given: str) -> Base:
    facts = {"python": "/usr/bin/python3", "python_version": "3.11", "glibc": "2.36", **given}
    return Base(layers=(), env=(), **facts)


def test_runtime_layer_links_copies_and_leaves_out_what_serving_never_reads() -> None:
    paths = {
        entry.path.removeprefix(f"{runtime.SITE_PACKAGES}/"): entry
        for entry in runtime.entries(base())
    }
    assert isinstance(paths["llama_cpp/lib/libllama.so"], Symlink)
    real = [name for name, it in paths.items() if "/libllama.so" in name and isinstance(it, File)]
    assert len(real) == 1
    assert {"numpy", "jinja2", "starlette", "uvicorn", "h11", "anyio"} <= {
        p.split("/")[0] for p in paths
    }
    for gone in ("torch/", "lib/", "include/", "llama_cpp/server/", "numpy/f2py/"):
        assert not [name for name in paths if name.startswith(gone)]
    assert not [
        n for n in paths if n.endswith((".pyi", ".a", ".h")) or "/tests/" in n or "libmtmd" in n
    ]
    # A licence must travel with what it covers.
    assert [name for name in paths if name.startswith("numpy-") and "LICENSE" in name]


def test_runtime_layer_refuses_a_base_it_cannot_run_on() -> None:
    with pytest.raises(ToolError, match=r"the base has Python 3\.9"):
        runtime.entries(base(python_version="3.9"))
    with pytest.raises(ToolError, match=r"needs glibc 2\.\d+, the base has 2\.10"):
        runtime.entries(base(glibc="2.10"))


def test_runtime_layer_refuses_a_native_build(monkeypatch: pytest.MonkeyPatch) -> None:
    files = runtime._files
    monkeypatch.setattr(
        runtime, "_files", lambda it: (f for f in files(it) if "libggml-cpu-" not in f.path)
    )
    with pytest.raises(ToolError, match="for this machine's CPU alone"):
        runtime.entries(base())


def test_instance_grows_with_the_model_up_to_the_platform() -> None:
    gib = 1 << 30
    assert limits.instance("lambda", gib, None) == Size(memory_mib=3008, vcpu=0)
    assert limits.instance("lambda", 4 * gib, None) == Size(memory_mib=4096, vcpu=0)
    assert limits.instance("cloudrun", gib, None) == Size(memory_mib=2048, vcpu=4)
    assert limits.instance("cloudrun", 20 * gib, None) == Size(memory_mib=20480, vcpu=6)
    # So little memory goes with few vCPUs only.
    assert limits.instance("cloudrun", gib, 1024) == Size(memory_mib=1024, vcpu=2)
    with pytest.raises(TooLargeError, match="needs 10241 MiB of memory; lambda is given 10240"):
        limits.instance("lambda", 10 * gib + 1, None)
    with pytest.raises(TooLargeError, match="lambda is given 512 MiB"):
        limits.instance("lambda", gib, 512)
    # What is less than the platform has is rounded up.
    assert limits.instance("cloudrun", 1, 100) == Size(memory_mib=512, vcpu=2)
    assert limits.instance("lambda-microvm", 5 * gib, None) == Size(memory_mib=8192, vcpu=0)


def test_options_are_checked() -> None:
    with pytest.raises(UsageError, match="no target 'azure'"):
        PackageOptions(target="azure")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="limit_bytes is 0"):
        PackageOptions(target="lambda", limit_bytes=0)


def test_what_is_not_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no model\.index\.json"):
        package(tmp_path, tmp_path / "out", PackageOptions(target="lambda"))
    assert not (tmp_path / "out").exists()
