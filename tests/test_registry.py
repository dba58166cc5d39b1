"""Push and pull against a real registry, alone and behind a proxy that fails."""

import base64
import hashlib
import json
import os
import random
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from coldpress.errors import (
    ColdpressError,
    InputError,
    IntegrityError,
    RemoteError,
    ToolError,
    UsageError,
)
from coldpress.package import registry
from coldpress.package.lint import lint
from coldpress.package.registry import credentials, login, reference
from coldpress.package.registry.session import Patience, Session
from coldpress.package.registry.upload import Pushed, upload
from coldpress.package.stores import open_store
from tests import bad_images, registries
from tests.bad_images import Entry, Image, Layer, folder
from tests.range_server import serving
from tests.registries import PASSWORD, USER, Fault, Proxy, proxy

HASTY = Patience(attempts=4, backoff_s=0.001, longest_pause_s=0.001, stall_s=20)
CHUNK = 64 << 10


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with registries.registry(tmp_path_factory.mktemp("registry")) as host:
        yield host


@pytest.fixture(scope="session")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with registries.registry(tmp_path_factory.mktemp("guarded"), password=True) as host:
        yield host


@pytest.fixture(autouse=True)
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for docker's config.json, for patient people's sessions too."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "auth.json"))
    (tmp_path / "docker").mkdir()
    return tmp_path / "docker"


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A repository of each test's own."""
    return "t/" + hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:12]


def image(size: int = 5 * CHUNK + 1000, seed: int = 1, app: bytes = b"one") -> Image:
    weights = random.Random(seed).randbytes(size)
    layers = [
        Layer([*bad_images.base(), Entry("app/weights", weights)], bad_images.PLAIN),
        Layer([folder("app"), Entry("app/code", app)]),
    ]
    return Image(layers=layers)


def send(archive: Path, host: str, name: str, mount: tuple[str, ...] = ()) -> Pushed:
    tag = "" if "@" in name else ":1"
    with Session(reference.parse(f"{host}/{name}{tag}"), patience=HASTY) as session:
        return upload(open_store(archive), session, mount, chunk_bytes=CHUNK)


def fetch(host: str, name: str, out: Path) -> None:
    with Session(reference.parse(f"{host}/{name}"), patience=HASTY) as session:
        registry.RemoteImage(session).write(out)


def log_in(docker: Path, host: str, **entry: str) -> None:
    auth = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    (docker / "config.json").write_text(json.dumps({"auths": {host: entry or {"auth": auth}}}))


def tagged(host: str, name: str) -> bool:
    with Session(reference.parse(f"{host}/{name}:1")) as session:
        # Without the header, the registry denies manifests of OCI's type.
        headers = {"Accept": bad_images.MANIFEST}
        url = session.url("manifests/1")
        return session.ask("HEAD", url, headers=headers, expected=(200, 404)).status == 200


def test_pushed_image_is_what_skopeo_copies_out(server: str, name: str, tmp_path: Path) -> None:
    archive = image().archive(tmp_path / "image.tar")
    assert not tagged(server, name)
    pushed = send(archive, server, name)
    assert tagged(server, name)
    assert pushed.reference == f"{server}/{name}@{pushed.digest}"
    assert (pushed.n_blobs, pushed.n_present, pushed.n_mounted) == (3, 0, 0)
    if not shutil.which("skopeo"):
        pytest.skip("needs skopeo")
    argv = ["skopeo", "copy", "--quiet", "--preserve-digests", "--src-tls-verify=false"]
    subprocess.run([*argv, f"docker://{server}/{name}:1", f"dir:{tmp_path / 'out'}"], check=True)
    manifest = (tmp_path / "out" / "manifest.json").read_bytes()
    assert f"sha256:{hashlib.sha256(manifest).hexdigest()}" == pushed.digest


def test_what_skopeo_pushed_is_pulled(server: str, name: str, tmp_path: Path) -> None:
    if not shutil.which("skopeo"):
        pytest.skip("needs skopeo")
    archive = image().archive(tmp_path / "image.tar")
    argv = ["skopeo", "copy", "--quiet", "--dest-tls-verify=false", "--format", "v2s2"]
    subprocess.run([*argv, f"oci-archive:{archive}", f"docker://{server}/{name}:1"], check=True)
    folder = registry.pull(f"{server}/{name}:1", tmp_path / "pulled")
    with registry.opened(f"{server}/{name}:1") as remote:
        assert lint(folder).findings == lint(remote).findings
    # An uncompressed OCI layer stays uncompressed under docker's type: what Lambda refuses.
    assert [it.rule for it in lint(folder).findings] == ["docker-uncompressed-layer"]
    assert not list(folder.rglob("*.partial"))


def test_pull_is_what_was_pushed(server: str, name: str, tmp_path: Path) -> None:
    made = image()
    pushed = send(made.archive(tmp_path / "image.tar"), server, name)
    for wanted in (f"{server}/{name}:1", f"{server}/{name}@{pushed.digest}"):
        out = registry.pull(wanted, tmp_path / wanted[-8:])
        for path, data in made.files().items():
            if path.startswith("blobs"):
                assert (out / path).read_bytes() == data
        assert (
            json.loads((out / "index.json").read_bytes())["manifests"][0]["digest"] == pushed.digest
        )


def test_what_is_there_is_not_sent_again(server: str, name: str, tmp_path: Path) -> None:
    first = image().archive(tmp_path / "first.tar")
    second = image(app=b"two").archive(tmp_path / "second.tar")
    with proxy(server) as counted:
        sent = send(first, counted.host, name).sent_bytes
        assert sent == counted.body_bytes > 5 * CHUNK
        counted.requests.clear()
        again = send(first, counted.host, name)
        assert (again.n_present, counted.count("POST"), counted.count("PATCH")) == (3, 0, 0)
        counted.requests.clear()
        changed = send(second, counted.host, name)
        assert (changed.n_present, changed.n_blobs) == (1, 3)
        assert changed.sent_bytes == counted.body_bytes < 5000


def test_layers_are_mounted_from_another_repository(server: str, name: str, tmp_path: Path) -> None:
    archive = image(seed=7).archive(tmp_path / "image.tar")
    send(archive, server, f"{name}/one")
    with proxy(server) as counted:
        pushed = send(archive, counted.host, f"{name}/two", ("no/such", f"{name}/one"))
        assert (pushed.n_mounted, counted.count("PATCH")) == (3, 0)
        assert counted.body_bytes < 2000


@pytest.mark.parametrize(
    "faults",
    [
        [Fault("drop", "PATCH", after=2)],
        [Fault("drop", "PATCH", after=1, times=3)],
        [Fault("half", "PATCH", after=2)],
        [Fault("lose", "PATCH", after=2)],
        [Fault("500", "PATCH", times=2), Fault("503", "POST"), Fault("500", "HEAD")],
        [Fault("drop", "PATCH", after=1), Fault("500", "GET", times=2)],
        [Fault("drop", "PUT", "uploads"), Fault("half", "PUT", "uploads", after=2)],
        [Fault("drop", "PUT", "manifests"), Fault("lose", "PUT", "manifests", after=1)],
        [Fault("429", "PUT", "manifests"), Fault("404", "PATCH", after=3)],
    ],
    ids=lambda faults: "+".join(f"{it.kind}-{it.method}" for it in faults),
)
def test_push_goes_on_after(faults: list[Fault], server: str, name: str, tmp_path: Path) -> None:
    seed = int(name[2:], 16)
    made = image(seed=seed).archive(tmp_path / "image.tar")
    with proxy(server, *faults) as between:
        pushed = send(made, between.host, name)
        assert all(fault.seen > fault.after for fault in faults)
    fetch(server, f"{name}@{pushed.digest}", tmp_path / "out")


def test_upload_goes_on_where_it_broke_off(server: str, name: str, tmp_path: Path) -> None:
    made = image(seed=11).archive(tmp_path / "image.tar")
    with proxy(server, Fault("drop", "PATCH", after=3)) as between:
        send(made, between.host, name)
        # Six chunks and the one that was lost: nothing is sent twice but that.
        assert between.count("PATCH") == 7
        assert between.count("GET", "uploads") == 1


def test_a_registry_that_loses_every_upload_is_not_asked_for_ever(
    server: str, name: str, tmp_path: Path
) -> None:
    made = image(seed=12).archive(tmp_path / "image.tar")
    # Every third chunk arrives in half, and then the registry has none of them any more.
    faults = [Fault("half", "PATCH", after=number) for number in range(2, 300, 3)]
    with proxy(server, *faults) as between:
        with pytest.raises(RemoteError, match="failed"):
            send(made, between.host, name)
        assert between.count("PATCH") < 60


def test_push_that_failed_goes_on_at_the_next_attempt(
    server: str, name: str, tmp_path: Path
) -> None:
    layers = [
        Layer([folder("app"), Entry("app/x", random.Random(s).randbytes(3 * CHUNK))])
        for s in (31, 32)
    ]
    made = Image(layers=layers).archive(tmp_path / "image.tar")
    with (
        proxy(server, Fault("500", "PATCH", after=5, times=99)) as between,
        pytest.raises(RemoteError),
    ):
        send(made, between.host, name)
    again = send(made, server, name)
    assert (again.n_present, again.n_blobs) == (1, 3)
    assert again.sent_bytes < 4 * CHUNK


@pytest.mark.parametrize(
    ("fault", "error", "said"),
    [
        (Fault("500", "PATCH", times=99), RemoteError, "failed 4 times: it answers 500"),
        (Fault("drop", "POST", times=99), RemoteError, "failed 4 times"),
        (Fault("403", "POST"), RemoteError, "is not allowed: a.+ fault"),
        (Fault("400", "PUT", "manifests"), RemoteError, "is answered by 400"),
        (Fault("digest", "PUT", "blobs"), IntegrityError, "speaks of sha256:000"),
        (Fault("drop", "PUT", "manifests", times=99), RemoteError, "failed 4 times"),
    ],
    ids=lambda it: f"{it.kind}-{it.method}" if isinstance(it, Fault) else "",
)
def test_push_fails_in_two_lines_and_tags_nothing(
    fault: Fault, error: type[ColdpressError], said: str, server: str, name: str, tmp_path: Path
) -> None:
    made = image(seed=int(name[2:], 16)).archive(tmp_path / "image.tar")
    with proxy(server, fault) as between, pytest.raises(error, match=said) as caught:
        send(made, between.host, name)
    assert caught.value.hint and "\x1b" not in caught.value.message
    assert not tagged(server, name)


def test_damaged_archive_is_refused_by_the_registry(server: str, name: str, tmp_path: Path) -> None:
    made = image(seed=12).write(tmp_path / "image")
    largest = max((made / "blobs/sha256").iterdir(), key=lambda it: it.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[5000] ^= 1
    largest.write_bytes(data)
    with pytest.raises(IntegrityError, match="got other bytes"):
        send(made, server, name)
    largest.write_bytes(data[:-1])
    with pytest.raises(IntegrityError, match="instead of"):
        send(made, server, name)
    assert not tagged(server, name)


@pytest.mark.parametrize("ranges", [True, False])
def test_pull_goes_on_where_it_broke_off(
    ranges: bool, server: str, name: str, tmp_path: Path
) -> None:
    made = image(seed=13)
    send(made.archive(tmp_path / "image.tar"), server, name)
    faults = [Fault("cut", "GET", "blobs"), Fault("500", "GET", "manifests")]
    with proxy(server, *faults, ranges=ranges) as between:
        fetch(between.host, f"{name}:1", tmp_path / "out")
    for path, data in made.files().items():
        if path.startswith("blobs"):
            assert (tmp_path / "out" / path).read_bytes() == data


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Fault("flip", "GET", "blobs"), "sends other bytes"),
        (Fault("digest", "GET", "manifests"), "speaks of"),
        (Fault("flip", "GET", "manifests"), "speaks of"),
    ],
    ids=["blob", "header", "manifest"],
)
def test_lies_are_noticed_on_pull(
    fault: Fault, said: str, server: str, name: str, tmp_path: Path
) -> None:
    send(image(seed=14).archive(tmp_path / "image.tar"), server, name)
    with proxy(server, fault) as between, pytest.raises(IntegrityError, match=said):
        fetch(between.host, f"{name}:1", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob("out.partial/blobs/sha256/*.partial"))


def test_password(guarded: str, name: str, docker: Path, tmp_path: Path) -> None:
    made = image(seed=15).archive(tmp_path / "image.tar")
    with pytest.raises(RemoteError, match="is not allowed") as caught:
        send(made, guarded, name)
    assert "docker login" in caught.value.hint
    log_in(docker, guarded)
    pushed = send(made, guarded, name)
    fetch(guarded, f"{name}@{pushed.digest}", tmp_path / "out")
    log_in(docker, guarded, auth=base64.b64encode(b"someone:else").decode())
    with pytest.raises(RemoteError, match="is not allowed"):
        send(made, guarded, name)


def test_login_of_skopeo(guarded: str, name: str, tmp_path: Path) -> None:
    if not shutil.which("skopeo"):
        pytest.skip("needs skopeo")
    argv = ["skopeo", "login", "--tls-verify=false", "--authfile", str(tmp_path / "auth.json")]
    argv += ["--username", USER, "--password-stdin", guarded]
    subprocess.run(argv, input=PASSWORD.encode(), check=True, capture_output=True)
    send(image(seed=21).archive(tmp_path / "image.tar"), guarded, name)


@pytest.mark.parametrize("helpers", [{"credHelpers": None}, {"credsStore": "test"}])
def test_credential_helper(
    helpers: dict[str, object],
    guarded: str,
    name: str,
    docker: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    program = tmp_path / "docker-credential-test"
    answer = json.dumps({"Username": USER, "Secret": PASSWORD})
    program.write_text(
        f"#!/bin/sh\nread host\n[ \"$1 $host\" = 'get {guarded}' ] && echo '{answer}' && exit\n"
        "echo credentials not found in native keychain >&2; exit 1\n"
    )
    program.chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    config = {"credHelpers": {guarded: "test"}} if "credHelpers" in helpers else helpers
    (docker / "config.json").write_text(json.dumps(config))
    send(image(seed=16).archive(tmp_path / "image.tar"), guarded, name)
    assert credentials.find("elsewhere.example") is None
    assert PASSWORD not in repr(credentials.find(guarded))
    program.unlink()
    with pytest.raises(ToolError, match="docker-credential-test is not installed"):
        credentials.find(guarded)
    (docker / "config.json").write_text(json.dumps({"credsStore": "../../bin/sh"}))
    with pytest.raises(InputError, match="names the helper"):
        credentials.find(guarded)


@pytest.mark.parametrize("entry", [{}, {"identitytoken": "renew"}], ids=["password", "token"])
def test_tokens_go_stale_and_are_renewed(
    entry: dict[str, str], server: str, name: str, docker: Path, tmp_path: Path
) -> None:
    made = image(seed=17 + len(entry)).archive(tmp_path / "image.tar")
    with proxy(server, tokens=3) as between:
        log_in(docker, between.host, **entry)
        send(made, between.host, name)
        asked: Proxy = between
    assert len(asked.token_requests) > 3
    assert {it["scope"] for it in asked.token_requests} == {f"repository:{name}:pull,push"}
    assert asked.token_requests[0]["service"] == "test"


def test_tokens_are_renewed_before_their_end(
    server: str, name: str, docker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(image(seed=22).archive(tmp_path / "image.tar"), server, name)
    with proxy(server, tokens=99) as between:
        log_in(docker, between.host)
        with Session(reference.parse(f"{between.host}/{name}"), patience=HASTY) as session:
            for now_s, tokens in ((0, 1), (49, 1), (51, 2), (99, 2), (102, 3)):
                monkeypatch.setattr(login.time, "monotonic", lambda now_s=now_s: float(now_s))
                session.ask("GET", session.url("tags/list"), expected=(200,))
                assert len(between.token_requests) == tokens, now_s
        assert between.refused == 1  # the first, which had no token


def test_token_service_that_gives_nothing_useful(
    server: str, name: str, docker: Path, tmp_path: Path
) -> None:
    made = image(seed=19).archive(tmp_path / "image.tar")
    with proxy(server, tokens=3) as between:
        log_in(docker, between.host, auth=base64.b64encode(b"someone:else").decode())
        with pytest.raises(RemoteError, match="is not allowed"):
            send(made, between.host, name)
        assert len(between.token_requests) < 4
    assert not tagged(server, name)


def test_plain_http_is_for_loopback_or_for_those_who_ask() -> None:
    away = Session(reference.parse("registry.example:5000/a/b"))
    assert away.url("x") == "https://registry.example:5000/v2/a/b/x"
    with pytest.raises(RemoteError, match="leads to plain HTTP"):
        away.open("GET", "http://registry.example:5000/v2/")
    asked = Session(reference.parse("registry.example:5000/a/b"), insecure=True)
    assert asked.url("x").startswith("http://")


def test_unknown_host_is_said_at_once() -> None:
    named = reference.parse("no-such-host.invalid/a")
    # Where there is no name server either, it is tried again first.
    said = pytest.raises(RemoteError, match=r"is not found|failed 4 times")
    with Session(named, patience=HASTY) as session, said:
        session.ask("GET", session.url("x"), expected=(200,))


def test_certificates_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair, certificate = tmp_path / "pair.pem", tmp_path / "certificate.pem"
    argv = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=test"]
    argv += [
        "-addext",
        "subjectAltName=IP:127.0.0.1",
        "-keyout",
        str(pair),
        "-out",
        str(certificate),
    ]
    subprocess.run(argv, check=True, capture_output=True)
    pair.write_bytes(pair.read_bytes() + certificate.read_bytes())
    with serving(tmp_path, certificate=pair) as (address, state):
        host = address.removeprefix("https://")
        named = reference.Reference(host, "a/b")
        monkeypatch.setattr(reference.Reference, "is_loopback", False)
        with Session(named, patience=HASTY) as session:
            with pytest.raises(RemoteError, match="no certificate that is trusted"):
                session.once("GET", session.url("x"))
            assert state.requests == []
            monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
            assert session.once("GET", session.url("x")).status == 404


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("debian", ("docker.io", "library/debian", "", "")),
        ("me/model:1", ("docker.io", "me/model", "1", "")),
        ("localhost/a", ("localhost", "a", "", "")),
        ("h.example:5000/a/b__c:T.1", ("h.example:5000", "a/b__c", "T.1", "")),
        (f"h.example/a:1@sha256:{'0' * 64}", ("h.example", "a", "1", f"sha256:{'0' * 64}")),
    ],
)
def test_references(text: str, parts: tuple[str, ...]) -> None:
    read = reference.parse(text)
    assert (read.host, read.repository, read.tag, read.digest) == parts


@pytest.mark.parametrize(
    "text",
    [
        "",
        "A/b",
        "h.example/",
        "h.example/a/../b",
        "h.example/a:b:c",
        "h.example/a@md5:1",
        "h.example/a b",
        "u@h.example/a",
    ],
)
def test_what_is_no_reference_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="names no image"):
        reference.parse(text)


def test_files_and_references_are_told_apart() -> None:
    assert registry.looks_like("ghcr.io/me/model:1") and registry.looks_like("localhost:5000/a")
    assert not any(map(registry.looks_like, ("image.tar", "./a.b/c", "/a.b/c", "runs/x/image.tar")))


def test_what_cannot_be_pushed(server: str, tmp_path: Path) -> None:
    several = Image(extra_manifests=[bad_images._attestation()]).write(tmp_path / "several")
    with pytest.raises(InputError, match="one image"):
        send(several, server, "t/x")
    with pytest.raises(InputError, match="an index"):
        send(Image(wrapped=True).write(tmp_path / "index"), server, "t/x")
    with pytest.raises(InputError, match=r"index\.json"):
        send(Image().docker_archive(tmp_path / "docker.tar"), server, "t/x")
    with pytest.raises(UsageError, match="names a digest"):
        send(Image().write(tmp_path / "one"), server, f"t/x@sha256:{'0' * 64}")


def test_command_line(server: str, name: str, tmp_path: Path) -> None:
    archive = image(seed=20).archive(tmp_path / "image.tar")
    command = [sys.executable, "-m", "coldpress.cli"]
    done = subprocess.run(
        [*command, "push", str(archive), f"{server}/{name}:1"], capture_output=True, text=True
    )
    assert done.stdout.startswith(f"{server}/{name}@sha256:"), done.stderr
    reference = done.stdout.strip()
    done = subprocess.run(
        [*command, "pull", reference, "--out", str(tmp_path / "out")],
        capture_output=True,
        text=True,
    )
    assert lint(Path(done.stdout.strip())).findings == (), done.stderr
    done = subprocess.run([*command, "lint", reference], capture_output=True, text=True)
    assert (done.returncode, "holds" in done.stderr) == (0, True)
    done = subprocess.run(
        [*command, "lint", f"{server}/{name}:none"], capture_output=True, text=True
    )
    assert done.returncode == RemoteError.exit_code
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 2
