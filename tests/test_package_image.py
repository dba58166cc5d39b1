"""Whole images, built once, met by the programs that others use on them."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request

import pytest

from coldpress import artifact
from coldpress.cache import cache_dir
from coldpress.errors import InputError, IntegrityError, TooLargeError, ToolError
from coldpress.package import (
    Packaged,
    PackageOptions,
    app,
    package,
    plan,
    registry,
    stage,
    verify,
)
from coldpress.package.base import architecture
from coldpress.package.layer import File
from coldpress.package.lint import lint
from tests import containers, registries
from tests.containers import Store, free_port, get

PURPOSES = ["base", "runtime", "weights", "app"]


@pytest.fixture(scope="session")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("package")


def build(checkpoint: Path, out: Path, **options: Any) -> Packaged:
    if not shutil.which("mmdebstrap") or os.geteuid() != 0:
        pytest.skip("needs mmdebstrap and root")
    return package(checkpoint, out, PackageOptions(**options))


@pytest.fixture(scope="session")
def cloudrun(demo_checkpoint: Path, out: Path) -> Packaged:
    return build(demo_checkpoint, out / "cloudrun", target="cloudrun")


@pytest.fixture(scope="session")
def on_lambda(demo_checkpoint: Path, out: Path) -> Packaged:
    return build(demo_checkpoint, out / "lambda", target="lambda")


@pytest.fixture(scope="session")
def layout(cloudrun: Packaged, out: Path) -> Path:
    """The image as a folder in OCI layout, made by skopeo from our archive."""
    if not shutil.which("skopeo"):
        pytest.skip("needs skopeo")
    folder = out / "layout"
    subprocess.run(
        ["skopeo", "copy", "--quiet", f"oci-archive:{cloudrun.archive}", f"oci:{folder}:image"],
        check=True,
    )
    return folder


@pytest.fixture(scope="session")
def store() -> Iterator[Store]:
    with containers.store() as made:
        yield made


def digests(made: Packaged) -> dict[str, str]:
    return {layer.purpose: layer.digest for layer in made.layers}


def blobs(archive: Path) -> dict[str, bytes]:
    with tarfile.open(archive) as tar:
        return {m.name: data.read() for m in tar if (data := tar.extractfile(m))}


def test_targets_share_the_image(cloudrun: Packaged, on_lambda: Packaged) -> None:
    assert [layer.purpose for layer in cloudrun.layers] == PURPOSES
    assert cloudrun.layers == on_lambda.layers
    assert cloudrun.digest == on_lambda.digest
    assert artifact.verify(on_lambda.path).stage == "package"
    assert verify.folder(on_lambda.path).digest == on_lambda.digest


@pytest.mark.slow
def test_another_folder_umask_and_cache_give_the_same_digest(
    cloudrun: Packaged, demo_checkpoint: Path, tmp_path: Path
) -> None:
    checkpoint = shutil.copytree(demo_checkpoint, tmp_path / "elsewhere")
    for path in checkpoint.iterdir():
        path.chmod(0o600)
        os.utime(path, (1, 1))
    # The base comes from the network, so it is carried over; the other layers are built afresh.
    base = f"{digests(cloudrun)['base']}"
    kept = tmp_path / "cache" / "layers"
    kept.mkdir(parents=True)
    for note in (cache_dir() / "layers").glob("*.json"):
        if json.loads(note.read_text())["digest"] == base:
            shutil.copy(note, kept)
            shutil.copy(note.with_suffix(".tar.gz"), kept)
    script = (
        "import os, sys; from pathlib import Path; os.umask(0o077)\n"
        "from coldpress.package import package, PackageOptions\n"
        "made = package(Path('elsewhere'), Path('out'), PackageOptions(target='cloudrun'))\n"
        "print(made.digest)"
    )
    env = {**os.environ, "COLDPRESS_CACHE": str(tmp_path / "cache"), "PYTHONHASHSEED": "7"}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.stdout.strip() == cloudrun.digest, done.stderr
    assert artifact.sha256_file(tmp_path / "out" / "image.tar") == artifact.sha256_file(
        cloudrun.archive
    )


def test_another_patch_release_compiles_anew(
    demo_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLDPRESS_CACHE", str(tmp_path / "cache"))
    options = PackageOptions(target="cloudrun")
    before = plan(demo_checkpoint, tmp_path, options)
    blob = stage._python_layer(app.entries()[:1])
    monkeypatch.setattr(sys, "version", "3.11.2 (main, Apr 28 2025, 14:11:48) [GCC 12.2.0]")
    # Its line tables and even its code may differ, though the magic number does not.
    assert stage._python_layer(app.entries()[:1]).path != blob.path
    assert plan(demo_checkpoint, tmp_path, options) != before


def test_new_app_code_leaves_the_other_layers_alone(
    cloudrun: Packaged, demo_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = plan(demo_checkpoint, tmp_path, PackageOptions(target="cloudrun"))
    entries = app.entries()
    errors = next(i for i, it in enumerate(entries) if it.path.endswith("coldpress/errors.py"))
    entries[errors] = File(entries[errors].path, b"# changed\n")
    monkeypatch.setattr(app, "entries", lambda: entries)
    # Or the pipeline would think the image current.
    assert plan(demo_checkpoint, tmp_path, PackageOptions(target="cloudrun")) != before
    changed = build(demo_checkpoint, tmp_path / "out", target="cloudrun")
    differing = {p for p in PURPOSES if digests(changed)[p] != digests(cloudrun)[p]}
    assert differing == {"app"}
    assert changed.digest != cloudrun.digest


def test_new_app_code_sends_little_to_the_registry(
    cloudrun: Packaged, demo_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "registry").mkdir()
    entries = [*app.entries(), File("opt/coldpress/app/coldpress/new.py", b"NEW = 1\n")]
    monkeypatch.setattr(app, "entries", lambda: entries)
    with registries.registry(tmp_path / "registry") as host:
        whole = registry.push(cloudrun.archive, f"{host}/model:1")
        assert whole.digest == cloudrun.digest
        assert whole.sent_bytes > cloudrun.size_bytes * 0.99
        changed = build(demo_checkpoint, tmp_path / "out", target="cloudrun")
        assert registry.push(changed.archive, f"{host}/model:2").sent_bytes < 1_000_000
        # And what was pushed can be stood on.
        based = build(demo_checkpoint, tmp_path / "on", target="lambda", base=f"{host}/model:1")
        assert [it.digest for it in based.layers[:4]] == [it.digest for it in cloudrun.layers]


def test_archive_is_one_plain_image(cloudrun: Packaged) -> None:
    files = blobs(cloudrun.archive)
    index = json.loads(files["index.json"])
    (described,) = index["manifests"]
    assert described["digest"] == cloudrun.digest
    manifest = json.loads(files[f"blobs/sha256/{cloudrun.digest[7:]}"])
    kinds = {layer["mediaType"] for layer in manifest["layers"]}
    assert kinds == {"application/vnd.oci.image.layer.v1.tar+gzip"}
    config = json.loads(files[f"blobs/sha256/{manifest['config']['digest'][7:]}"])
    assert len(config["history"]) == len(config["rootfs"]["diff_ids"]) == len(manifest["layers"])
    assert config["config"]["User"] == "65532:65532"
    assert sum(len(data) for data in files.values()) < cloudrun.size_bytes


def test_layers_hold_what_lambda_accepts_and_nothing_dangles(cloudrun: Packaged) -> None:
    paths: dict[str, tarfile.TarInfo] = {}
    with tarfile.open(cloudrun.archive) as image:
        for made in cloudrun.layers:
            blob = image.extractfile(f"blobs/sha256/{made.digest[7:]}")
            with tarfile.open(fileobj=blob, mode="r:gz") as tar:
                seen: set[str] = {""}
                for member in tar:
                    assert member.name not in seen
                    assert member.name.rpartition("/")[0] in seen, f"no parent of {member.name}"
                    seen.add(member.name)
                    assert member.isreg() or member.isdir() or member.issym(), member.name
                    assert (member.uid, member.gid, member.mtime) == (0, 0, 0)
                    assert member.mode & 0o444 == 0o444 and not member.mode & 0o6000
                    paths[member.name] = member
    writable = {name for name, it in paths.items() if it.mode & 0o002 and not it.issym()}
    assert writable == {"tmp", "var/tmp"}
    for name, member in paths.items():
        if member.issym() and ".so" in name:
            target = os.path.normpath(Path("/", name).parent / member.linkname)
            assert re.sub(r"^/(lib\w*)/", r"usr/\1/", target).lstrip("/") in paths, name


def test_linter_has_nothing_to_say(cloudrun: Packaged, on_lambda: Packaged, layout: Path) -> None:
    for path in (cloudrun.archive, on_lambda.archive, layout):
        linted = lint(path)  # for both platforms
        assert linted.findings == ()
        assert linted.unpacked_bytes == cloudrun.unpacked_bytes == on_lambda.unpacked_bytes


def test_skopeo_reads_the_archive(cloudrun: Packaged, on_lambda: Packaged) -> None:
    if not shutil.which("skopeo"):
        pytest.skip("needs skopeo")
    for made in (cloudrun, on_lambda):
        done = subprocess.run(
            ["skopeo", "inspect", f"oci-archive:{made.archive}"], capture_output=True, check=True
        )
        seen = json.loads(done.stdout)
        assert seen["Digest"] == made.digest
        assert seen["Architecture"] == architecture()
        assert seen["Layers"] == [layer.digest for layer in made.layers]


@pytest.mark.slow
def test_umoci_unpacks_the_layout(layout: Path, demo_checkpoint: Path, tmp_path: Path) -> None:
    if not shutil.which("umoci") or os.geteuid() != 0:
        pytest.skip("needs umoci and root")
    subprocess.run(
        ["umoci", "unpack", "--image", f"{layout}:image", str(tmp_path / "bundle")],
        check=True,
        capture_output=True,
    )
    root = tmp_path / "bundle" / "rootfs"
    model = root / "opt/coldpress/model/model.gguf"
    assert artifact.sha256_file(model) == artifact.sha256_file(demo_checkpoint / "model.gguf")
    runtime = json.loads((tmp_path / "bundle" / "config.json").read_text())["process"]
    assert runtime["args"] == ["/usr/bin/python3", "-m", "coldpress.serve", "/opt/coldpress/model"]
    assert "SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt" in runtime["env"]


@pytest.mark.parametrize("form", ["folder", "archive"])
def test_image_stands_on_a_given_base(
    cloudrun: Packaged, layout: Path, demo_checkpoint: Path, tmp_path: Path, form: str
) -> None:
    base = layout if form == "folder" else cloudrun.archive
    made = build(demo_checkpoint, tmp_path / "out", target="lambda", base=str(base))
    assert [layer.digest for layer in made.layers[:4]] == [x.digest for x in cloudrun.layers]
    assert [layer.purpose for layer in made.layers] == ["base"] * 4 + PURPOSES[1:]
    options = PackageOptions(target="lambda", base=str(base))
    inputs, plain = plan(demo_checkpoint, tmp_path, options)
    assert inputs["base"] == base and "base" not in plain


def test_damaged_layout_is_refused(layout: Path, demo_checkpoint: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(layout, tmp_path / "broken")
    largest = max((broken / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)
    with largest.open("r+b") as stream:
        stream.seek(1000)
        stream.write(b"!")
    with pytest.raises(IntegrityError, match="does not have its digest"):
        build(demo_checkpoint, tmp_path / "out", target="lambda", base=str(broken))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="not part of an OCI layout"):
        build(demo_checkpoint, tmp_path / "out", target="lambda", base=str(tmp_path / "empty"))
    assert not list(tmp_path.glob("out*"))


def test_image_over_the_limit_leaves_nothing_behind(demo_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(TooLargeError, match=r"the limit is 1\.0 MB") as caught:
        build(demo_checkpoint, tmp_path / "out", target="lambda", limit_bytes=1_000_000)
    assert "--target cloudrun" in caught.value.hint
    assert not list(tmp_path.iterdir())


def test_without_mmdebstrap_the_hint_names_other_ways(
    demo_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLDPRESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolError, match="mmdebstrap is not installed") as caught:
        package(demo_checkpoint, tmp_path / "out", PackageOptions(target="lambda"))
    assert "apt-get install mmdebstrap" in caught.value.hint and "--base" in caught.value.hint
    assert not list(tmp_path.glob("out*"))


def test_damaged_checkpoint_is_not_packaged(demo_checkpoint: Path, tmp_path: Path) -> None:
    checkpoint = shutil.copytree(demo_checkpoint, tmp_path / "checkpoint")
    with (checkpoint / "model.gguf").open("r+b") as stream:
        stream.seek(-100, os.SEEK_END)
        stream.write(b"!")
    with pytest.raises(IntegrityError, match="chunk"):
        package(checkpoint, tmp_path / "out", PackageOptions(target="lambda"))


def test_lambda_template_is_what_cloudformation_takes(on_lambda: Packaged) -> None:
    import yaml

    linter = Path(sys.executable).with_name("cfn-lint")
    if not linter.exists():
        pytest.skip("needs cfn-lint")
    template = on_lambda.path / "template.yaml"
    done = subprocess.run([linter, template], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    loader = type("Loader", (yaml.SafeLoader,), {})
    loader.add_multi_constructor("!", lambda it, tag, node: node.value)  # type: ignore[attr-defined]
    resources = yaml.load(template.read_text(), loader)["Resources"]
    assert resources["Url"]["Properties"]["InvokeMode"] == "RESPONSE_STREAM"
    assert resources["Model"]["Properties"]["MemorySize"] == on_lambda.memory_mib == 3008
    granted = {it["Properties"].get("Action") for it in resources.values()}
    assert {"lambda:InvokeFunctionUrl", "lambda:InvokeFunction"} <= granted
    assert on_lambda.digest in (on_lambda.path / "DEPLOY.md").read_text()


def test_cloudrun_service_names_the_image_by_digest(cloudrun: Packaged) -> None:
    import yaml

    service = yaml.safe_load((cloudrun.path / "service.yaml").read_text())
    (container,) = service["spec"]["template"]["spec"]["containers"]
    assert container["image"] == f"IMAGE@{cloudrun.digest}"
    assert container["startupProbe"]["httpGet"]["path"] == "/readyz"
    annotations = service["spec"]["template"]["metadata"]["annotations"]
    assert annotations["run.googleapis.com/startup-cpu-boost"] == "true"


@pytest.mark.slow
@pytest.mark.container
def test_container_answers_over_http(cloudrun: Packaged, store: Store) -> None:
    image, port = store.load(cloudrun.archive), free_port()
    with store.container(image, options=["--env", f"PORT={port}"]) as process:
        body = json.dumps({"prompt": "The capital of France is", "max_tokens": 8}).encode()
        get(process, f"http://127.0.0.1:{port}/healthz")
        answer = json.loads(get(process, Request(f"http://127.0.0.1:{port}/v1/completions", body)))
        assert answer["choices"][0]["text"]
        assert answer["usage"]["completion_tokens"] >= 1
    assert process.returncode == 0  # SIGTERM drains


@pytest.mark.slow
@pytest.mark.container
def test_emulator_invokes_the_lambda_image(
    on_lambda: Packaged, store: Store, emulator: Path
) -> None:
    image, port, api = store.load(on_lambda.archive), free_port(), free_port()
    options = ["--volume", f"{emulator}:/emulator:ro", "--entrypoint", "/emulator"]
    arguments = ["--runtime-interface-emulator-address", f"127.0.0.1:{port}"]
    arguments += ["--runtime-api-address", f"127.0.0.1:{api}"]
    arguments += entrypoint(on_lambda)
    with store.container(image, arguments, options) as process:
        url = f"http://127.0.0.1:{port}/2015-03-31/functions/function/invocations"
        event = json.dumps({"prompt": "The capital of France is", "max_tokens": 8}).encode()
        answer = json.loads(get(process, Request(url, event)))
        assert answer["choices"][0]["text"]
        # A function URL's answer is streamed: a prelude, eight zero bytes, then the body.
        context = {"domainName": "x.lambda-url.eu-west-1.on.aws", "http": {"method": "GET"}}
        event = json.dumps({"requestContext": context, "rawPath": "/readyz"}).encode()
        prelude, _, body = get(process, Request(url, event)).partition(bytes(8))
        assert json.loads(prelude)["statusCode"] == 200
        assert json.loads(body) == {"status": "ready"}


def entrypoint(made: Packaged) -> list[str]:
    files = blobs(made.archive)
    manifest = json.loads(files[f"blobs/sha256/{made.digest[7:]}"])
    config = json.loads(files[f"blobs/sha256/{manifest['config']['digest'][7:]}"])
    arguments: list[str] = config["config"]["Entrypoint"]
    return arguments


@pytest.fixture(scope="session")
def emulator() -> Path:
    """AWS's Lambda emulator, out of the SAM CLI's wheel; kept in the cache."""
    name = f"aws-lambda-rie-{os.uname().machine.replace('aarch64', 'arm64')}"
    kept = cache_dir() / "rie" / name
    if not kept.is_file():
        kept.parent.mkdir(parents=True, exist_ok=True)
        argv = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "aws-sam-cli"]
        done = subprocess.run([*argv, "-d", kept.parent], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"the Lambda emulator cannot be fetched: {done.stderr.strip()[-200:]}")
        (wheel,) = kept.parent.glob("*.whl")
        with zipfile.ZipFile(wheel) as packed:
            kept.write_bytes(packed.read(f"samcli/local/rapid/{name}"))
        wheel.unlink()
        kept.chmod(0o755)
    return kept
