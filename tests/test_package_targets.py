"""Each target's files, held against the schemas and programs that will read them."""

import json
import os
import shutil
import stat
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
import yaml

from coldpress.errors import IntegrityError, ToolError, UsageError
from coldpress.package import Packaged, PackageOptions, execute, package, runtime, steps, verify
from coldpress.platforms import Target, table
from coldpress.serve.api import microvm
from coldpress.serve.aws.runtime_server import serving
from tests import containers, manifests, tiny_gguf
from tests.lambda_calls import invoke
from tests.runtime_process import running

_BUILT: dict[str, Packaged] = {}


@pytest.fixture(scope="session")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("targets")


def built(checkpoint: Path, out: Path, target: str, **options: Any) -> Packaged:
    """Build it once per session."""
    if not shutil.which("mmdebstrap") or os.geteuid() != 0:
        pytest.skip("needs mmdebstrap and root")
    folder = out / "-".join([target, *options])
    key = str(folder)
    if key not in _BUILT:
        made = PackageOptions(target=target, **options)  # type: ignore[arg-type]
        _BUILT[key] = package(checkpoint, folder, made)
    return _BUILT[key]


@pytest.fixture(scope="session")
def snapstart(demo_checkpoint: Path, out: Path) -> Packaged:
    return built(demo_checkpoint, out, "lambda-snapstart")


@pytest.fixture(scope="session")
def on_microvm(demo_checkpoint: Path, out: Path) -> Packaged:
    return built(demo_checkpoint, out, "lambda-microvm")


@pytest.fixture(scope="session")
def on_compose(demo_checkpoint: Path, out: Path) -> Packaged:
    return built(demo_checkpoint, out, "compose")


@pytest.fixture(scope="session")
def on_kserve(demo_checkpoint: Path, out: Path) -> Packaged:
    return built(demo_checkpoint, out, "kserve")


def test_zips_hold_what_their_lists_say(snapstart: Packaged, on_microvm: Packaged) -> None:
    for made in (snapstart, on_microvm):
        assert verify.folder(made.path).digest == made.digest


def unzip(archive: Path, folder: Path) -> Path:
    """Unpack as ``unzip`` does, with modes and links."""
    with zipfile.ZipFile(archive) as files:
        for info in files.infolist():
            mode = info.external_attr >> 16
            path = folder / info.filename
            if info.is_dir():
                path.mkdir(parents=True, exist_ok=True)
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            if stat.S_ISLNK(mode):
                path.symlink_to(files.read(info).decode())
                continue
            with files.open(info) as data, path.open("wb") as copy:
                shutil.copyfileobj(data, copy)
            path.chmod(mode & 0o777)
    return folder


def document(made: Packaged, name: str) -> Any:
    return yaml.safe_load((made.path / name).read_text(encoding="utf-8"))


def resources(made: Packaged) -> dict[str, Any]:
    loader = type("Loader", (yaml.SafeLoader,), {})

    def tagged(it: Any, tag: str, node: Any) -> Any:
        build = {"scalar": it.construct_scalar, "sequence": it.construct_sequence}
        return build.get(node.id, it.construct_mapping)(node)

    loader.add_multi_constructor("!", tagged)  # type: ignore[attr-defined]
    text = (made.path / "template.yaml").read_text()
    found: dict[str, Any] = yaml.load(text, loader)["Resources"]
    return found


def check_template(made: Packaged) -> None:
    """By cfn-lint, and by SAM where it is installed."""
    linter = Path(sys.executable).with_name("cfn-lint")
    if not linter.exists():
        pytest.skip("needs cfn-lint")
    template = str(made.path / "template.yaml")
    done = subprocess.run([str(linter), template], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout
    if sam := shutil.which("sam"):
        env = {**os.environ, "AWS_DEFAULT_REGION": "us-east-1", "SAM_CLI_TELEMETRY": "0"}
        done = subprocess.run(
            [sam, "validate", "--lint", "--template", template],
            capture_output=True,
            text=True,
            env=env,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_lambda_template(demo_checkpoint: Path, out: Path) -> None:
    made = built(demo_checkpoint, out, "lambda")
    check_template(made)
    found = resources(made)
    model = found["Model"]["Properties"]
    assert model["PackageType"] == "Image" and model["Timeout"] == 900
    assert model["ProvisionedConcurrencyConfig"][0] == "IsProvisioned"
    assert "Policies" not in model  # an image reads nothing
    (answers,) = (it for it in found.values() if it["Type"] == "AWS::IAM::Policy")
    assert answers["Condition"] == "HasWebSocket"
    (allowed,) = answers["Properties"]["PolicyDocument"]["Statement"]
    assert allowed["Action"] == "execute-api:ManageConnections"
    assert allowed["Resource"].endswith("${SocketApi}/live/POST/@connections/*")


def test_snapstart_template(snapstart: Packaged) -> None:
    check_template(snapstart)
    model = resources(snapstart)["Model"]["Properties"]
    assert model["SnapStart"] == {"ApplyOn": "PublishedVersions"}
    assert model["AutoPublishAlias"] == "live"  # of no effect without a published version
    (policy,) = model["Policies"]
    (allowed,) = policy["Statement"]
    assert allowed["Action"] == "s3:GetObject"
    assert allowed["Resource"].endswith(":::${ModelBucket}/${ModelPrefix}/*")
    assert "ImageUri" not in (snapstart.path / "template.yaml").read_text()


def test_a_zip_without_weights_fits_and_has_boto3(snapstart: Packaged) -> None:
    with zipfile.ZipFile(snapstart.archive) as files:
        names = files.namelist()
        unpacked = sum(info.file_size for info in files.infolist())
    assert unpacked <= (table().targets["lambda-snapstart"].unpacked_bytes or 0)
    assert not [name for name in names if name.endswith(".gguf")]
    assert "opt/coldpress/site-packages/boto3/__init__.py" in names
    assert names == sorted(names, key=lambda name: name.rstrip("/"))


def test_a_zip_is_the_same_again(
    demo_checkpoint: Path, snapstart: Packaged, tmp_path: Path
) -> None:
    before = os.umask(0o077)
    try:
        again = built(demo_checkpoint, tmp_path, "lambda-snapstart")
    finally:
        os.umask(before)
    assert again.digest == snapstart.digest


def test_snapstart_runs_from_its_zip_and_waits_for_the_restore(
    snapstart: Packaged, demo_checkpoint: Path, tmp_path: Path
) -> None:
    """The wrapper starts our own Python; the model is loaded before the snapshot is taken."""
    root = unzip(snapstart.archive, tmp_path / "task")
    with serving() as api:
        env = {
            "PATH": "/usr/bin:/bin",
            "LD_LIBRARY_PATH": "/nowhere",
            "AWS_LAMBDA_RUNTIME_API": api.address,
            "AWS_LAMBDA_INITIALIZATION_TYPE": "snap-start",
            "COLDPRESS_MODEL": str(demo_checkpoint),
        }
        # Lambda gives the wrapper the managed runtime's program, which is not wanted.
        process = subprocess.Popen([root / "start.sh", "/var/runtime/bootstrap"], env=env)
        try:
            assert api.snapshot.wait(60)
            maps = Path(f"/proc/{process.pid}/maps").read_text()
            assert f"{demo_checkpoint}/model.gguf" in maps  # loaded
            assert f"{root}/usr/lib/x86_64-linux-gnu/libc.so.6" in maps or "aarch64" in maps
            assert not api.asked.is_set()
            api.resumed.set()
            asked = {"prompt": "The capital of France is", "max_tokens": 4, "temperature": 0}
            answer = invoke(api, asked)
            assert answer.failure is None
            assert json.loads(answer.body)["usage"]["completion_tokens"] >= 1
        finally:
            process.kill()
            process.wait()


def test_microvm_image_is_what_the_api_takes(on_microvm: Packaged) -> None:
    import boto3
    from botocore.validate import validate_parameters

    given = json.loads((on_microvm.path / "microvm.json").read_text())
    filled = steps.of("lambda-microvm", "").fill(
        {
            "BUCKET": "bucket",
            "BASE_IMAGE_ARN": "arn:aws:lambda:eu-west-1:aws:microvm-image:al2023-1",
            "BUILD_ROLE_ARN": "arn:aws:iam::123456789012:role/build",
        }
    )
    words = filled[-1].argv
    flags = {flag: words[words.index(flag) + 1] for flag in words if flag.startswith("--")}
    assert flags["--cli-input-json"] == "file://microvm.json"
    given["baseImageArn"], given["buildRoleArn"] = (
        flags["--base-image-arn"],
        flags["--build-role-arn"],
    )
    given["codeArtifact"] = {"uri": flags["--code-artifact"].removeprefix("uri=")}
    client = boto3.client("lambda-microvms", region_name="eu-west-1")
    validate_parameters(
        given, client.meta.service_model.operation_model("CreateMicrovmImage").input_shape
    )
    assert given["hooks"]["microvmImageHooks"]["ready"] == "ENABLED"


def test_microvm_zip_is_a_build_folder(on_microvm: Packaged, tmp_path: Path) -> None:
    folder = unzip(on_microvm.archive, tmp_path / "zip")
    dockerfile = (folder / "Dockerfile").read_text()
    assert "COPY root/ /" in dockerfile and "COLDPRESS_MICROVM_HOOKS=1" in dockerfile
    assert (folder / "root/opt/coldpress/model/model.gguf").is_file()
    assert (folder / "root/tmp").is_dir()
    with zipfile.ZipFile(on_microvm.archive) as files:
        kinds = {info.filename: info.compress_type for info in files.infolist()}
        assert (files.getinfo("root/tmp/").external_attr >> 16) & 0o7777 == 0o1777
    assert kinds["root/opt/coldpress/model/model.gguf"] == zipfile.ZIP_STORED
    assert kinds["Dockerfile"] == zipfile.ZIP_DEFLATED


def test_microvm_hooks_wait_for_the_model_and_need_no_key(tmp_path: Path) -> None:
    model = tiny_gguf.write(tmp_path / "model.gguf")
    env = {microvm.ENABLED: "1", "COLDPRESS_API_KEYS": "secret"}
    with running(model, "--port", "0", **env) as process:
        url = f"http://127.0.0.1:{process.event('listening')['port']}"
        for hook in ("ready", "validate", "run", "resume"):
            posted = httpx.post(f"{url}{microvm.ROOT}/{hook}", json={"microvmId": "x"}, timeout=60)
            assert posted.status_code == 200, hook
        assert httpx.get(f"{url}/v1/models").status_code == 401
        assert httpx.post(f"{url}{microvm.ROOT}/other").status_code == 401
    with running(model, "--port", "0") as process:
        assert httpx.post(f"{process.ready_url()}{microvm.ROOT}/ready").status_code == 404


def test_one_image_serves_every_target(
    demo_checkpoint: Path, out: Path, on_compose: Packaged, on_kserve: Packaged
) -> None:
    digests = {built(demo_checkpoint, out, name).digest for name in ("lambda", "cloudrun")}
    assert digests == {on_compose.digest} == {on_kserve.digest}


def test_manifests_are_what_their_schemas_say(
    demo_checkpoint: Path, out: Path, on_kserve: Packaged, on_compose: Packaged
) -> None:
    cloudrun = built(demo_checkpoint, out, "cloudrun")
    for made, name, schema in (
        (cloudrun, "service.yaml", manifests.CLOUD_RUN),
        (on_kserve, "inferenceservice.yaml", manifests.KSERVE),
        (on_kserve, "knative.yaml", manifests.KNATIVE),
        (on_compose, "compose.yaml", manifests.COMPOSE),
    ):
        jsonschema.Draft202012Validator.check_schema(schema)
        jsonschema.validate(document(made, name), schema)
    wrong = document(on_kserve, "inferenceservice.yaml")
    wrong["spec"]["predictor"]["concurrency"] = 4
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, manifests.KSERVE)


@pytest.mark.slow
@pytest.mark.container
def test_the_dockerfile_makes_the_image(on_compose: Packaged, tmp_path: Path) -> None:
    if not (shutil.which("buildah") and shutil.which("skopeo")):
        pytest.skip("needs buildah and skopeo")
    shutil.copy(on_compose.path / "Dockerfile", tmp_path)
    layers = f"dir:{tmp_path}/layers"
    run = {"check": True, "capture_output": True, "timeout": 300}
    subprocess.run(["skopeo", "copy", f"oci-archive:{on_compose.archive}", layers], **run)  # type: ignore[call-overload]
    made = f"oci-archive:{tmp_path}/made.tar"
    root = ["--root", f"{tmp_path}/store", "--runroot", f"{tmp_path}/run"]
    buildah = ["buildah", "--storage-driver", "vfs", *root]
    subprocess.run([*buildah, "bud", "--isolation", "chroot", "-t", made, str(tmp_path)], **run)  # type: ignore[call-overload]
    configs = [
        json.loads(
            subprocess.run(["skopeo", "inspect", "--config", image], **run).stdout  # type: ignore[call-overload]
        )["config"]
        for image in (made, f"oci-archive:{on_compose.archive}")
    ]
    for key in ("Entrypoint", "User", "ExposedPorts"):
        assert configs[0][key] == configs[1][key]
    assert set(configs[1]["Env"]) <= set(configs[0]["Env"])


def test_the_list_of_contents_lies_beside_the_image(on_compose: Packaged) -> None:
    listed = json.loads((on_compose.path / "sbom.cdx.json").read_text())
    assert listed["metadata"]["component"]["version"] == on_compose.digest
    urls = [part.get("purl", "") for part in listed["components"]]
    for start in ("pkg:deb/debian/libc6@", "pkg:deb/debian/python3@", "pkg:pypi/llama-cpp-python@"):
        assert any(url.startswith(start) for url in urls), start


@pytest.mark.slow
@pytest.mark.container
def test_a_microvm_built_from_its_zip_answers_the_hooks(
    on_microvm: Packaged, tmp_path: Path
) -> None:
    if not shutil.which("buildah"):
        pytest.skip("needs buildah")
    with containers.store() as store:
        folder = unzip(on_microvm.archive, tmp_path / "zip")
        made = tmp_path / "made.tar"
        root = ["--root", f"{tmp_path}/store", "--runroot", f"{tmp_path}/run"]
        bud = ["bud", "--isolation", "chroot", "--tag", f"oci-archive:{made}", str(folder)]
        subprocess.run(
            ["buildah", "--storage-driver", "vfs", *root, *bud],
            check=True,
            capture_output=True,
            timeout=300,
        )
        image, port = store.load(made), containers.free_port()
        url = f"http://127.0.0.1:{port}"
        with store.container(image, options=["--env", f"PORT={port}"]) as process:
            containers.get(process, f"{url}/healthz")
            for hook in ("ready", "validate", "run"):
                assert httpx.post(f"{url}{microvm.ROOT}/{hook}", timeout=120).status_code == 200
            assert httpx.get(f"{url}/readyz").status_code == 200


def test_fetched_weights_are_not_in_the_image(demo_checkpoint: Path, out: Path) -> None:
    address = "gs://bucket/models/demo"
    made = built(demo_checkpoint, out, "cloudrun", weights=address)
    assert [layer.purpose for layer in made.layers] == ["base", "runtime", "app"]
    assert document(made, "service.yaml")["spec"]["template"]["spec"]["containers"]
    whole = built(demo_checkpoint, out, "cloudrun")
    assert made.digest != whole.digest
    assert made.memory_mib == whole.memory_mib  # they are in memory all the same


@pytest.mark.parametrize(
    "options",
    [
        {"target": "cloudrun", "weights": "ftp://host/model"},
        {"target": "cloudrun", "weights": "https://user:secret@host/model"},
        {"target": "cloudrun", "weights": 'gs://bucket/a" b'},
        {"target": "cloudrun", "weights": "gs://bucket/model", "system_prompt": "prompt.txt"},
        {"target": "lambda-snapstart", "weights": "s3://bucket/model"},
        {"target": "lambda-snapstart", "system_prompt": "prompt.txt"},
    ],
)
def test_what_cannot_be_fetched_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        PackageOptions(**options)


def test_boto3_is_asked_for_where_it_is_needed() -> None:
    assert "boto3" in runtime.distributions(aws=True)
    assert "boto3" not in runtime.distributions()


def test_commands_are_shown_as_a_shell_takes_them() -> None:
    login, push, name, replace = steps.of("cloudrun", "sha256:1").steps
    assert login.line() == (
        "gcloud auth print-access-token |"
        ' skopeo login --username oauth2accesstoken --password-stdin "${REGISTRY}"'
    )
    assert name.output == "deployed.yaml"
    assert name.line() == 'sed "s|IMAGE@|${REGISTRY}/${NAME}@|" service.yaml > deployed.yaml'
    assert push.line() == 'coldpress push image.tar "${REGISTRY}/${NAME}:latest"'
    assert "deployed.yaml" in replace.line()


@pytest.mark.parametrize("target", list(table().targets))
def test_every_parameter_is_used_and_every_use_has_one(target: Target) -> None:
    found = steps.of(target, "sha256:1")
    values = {name: f"value-of-{name}" for name in found.parameters}
    filled = " ".join(step.line() for step in found.fill(values))
    assert "${" not in filled
    assert all(value in filled for value in values.values())
    for wrong in ({}, {**values, "OTHER": "x"}):
        if wrong != values:
            with pytest.raises(UsageError):
                found.fill(wrong)


PROGRAM = """#!{python}
import json, sys
given = sys.stdin.read()
with open({log!r}, "a") as log:
    log.write(json.dumps([sys.argv, given]) + "\\n")
print({says!r})
sys.exit({code})
"""


def programs(folder: Path, says: str = "token", code: int = 0) -> Path:
    """Stand-ins for what deploys; returns the log of what they were asked."""
    folder.mkdir()
    log = folder / "log"
    for name in ("gcloud", "skopeo", "coldpress", "sed"):
        text = PROGRAM.format(python=sys.executable, log=str(log), says=says, code=code)
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return log


def test_deploy_prints_and_runs_the_commands(
    demo_checkpoint: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = built(demo_checkpoint, out, "cloudrun")
    folder = shutil.copytree(made.path, tmp_path / "package")
    values = {"REGISTRY": "registry; rm -rf /", "NAME": "a/b", "REGION": "r"}
    log = programs(tmp_path / "bin")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    shown = execute.deploy(folder, values, execute=False)
    assert not log.exists() and not shown.executed
    assert "'registry; rm -rf /'" in shown.commands[0]
    assert execute.deploy(folder, values, execute=True).commands == shown.commands
    ran = [json.loads(line) for line in log.read_text().splitlines()]
    assert [Path(argv[0]).name for argv, _ in ran] == [
        "gcloud",
        "skopeo",
        "coldpress",
        "sed",
        "gcloud",
    ]
    argv, given = ran[1]
    assert given == "token\n" and "token" not in argv  # never an argument
    assert argv[-1] == "registry; rm -rf /"  # one word, and no shell
    assert (folder / "deployed.yaml").read_text() == "token\n"


def test_the_command_prints_nothing_but_commands(
    demo_checkpoint: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from coldpress.cli import app

    made = built(demo_checkpoint, out, "lambda")
    pairs = ("REGISTRY=1.dkr.ecr.eu-west-1.amazonaws.com", "NAME=coldpress")
    words = [word for pair in pairs for word in ("--set", pair)]
    app(["deploy", str(made.path), *words], standalone_mode=False)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[2].endswith(f"ImageUri=1.dkr.ecr.eu-west-1.amazonaws.com/coldpress@{made.digest}")
    with pytest.raises(UsageError, match="no NAME=VALUE"):
        app(["deploy", str(made.path), "--set", "NAME"], standalone_mode=False)


def test_deploy_stops_at_the_first_failure_and_at_damage(
    demo_checkpoint: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = built(demo_checkpoint, out, "cloudrun")
    folder = shutil.copytree(made.path, tmp_path / "package")
    values = {"REGISTRY": "r", "NAME": "n", "REGION": "r"}
    log = programs(tmp_path / "bin", code=1)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(ToolError, match="gcloud failed"):
        execute.deploy(folder, values, execute=True)
    assert len(log.read_text().splitlines()) == 1
    commands = folder / "deploy.json"
    commands.write_text(commands.read_text().replace("skopeo", "xxxxxx"))
    with pytest.raises(IntegrityError):
        execute.deploy(folder, values, execute=True)
    assert len(log.read_text().splitlines()) == 1
    with pytest.raises(UsageError, match="REGION is missing"):
        execute.deploy(folder, {"REGISTRY": "r", "NAME": "n"}, execute=False)
