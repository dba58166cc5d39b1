"""Signatures of checkpoints: held against openssl and against OpenSSF's own model_signing, both ways."""

import base64
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import model_signing_peer
from coldpress import signatures
from coldpress.checkpoint import signing
from coldpress.errors import InputError, IntegrityError, SignatureError
from tests.test_cli import coldpress, refused

pytest.importorskip("cryptography", reason="needs cryptography")


def make_key(folder: Path, name: str, curve: str = "prime256v1") -> tuple[Path, Path]:
    """A private and a public key, made as docs/supply-chain.md says."""
    if not shutil.which("openssl"):
        pytest.skip("needs openssl")
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    for argv in (
        ["ecparam", "-name", curve, "-genkey", "-noout", "-out", private],
        ["ec", "-in", private, "-pubout", "-out", public],
    ):
        subprocess.run(["openssl", *argv], check=True, capture_output=True)
    return private, public


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    return make_key(tmp_path, "key")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "a").mkdir(parents=True)
    # "a/b" before "a.txt": by folders and not by characters, which the digest over all depends on.
    for name in ("a/b", "a.txt", "model.gguf", "manifest.json"):
        (folder / name).write_bytes(name.encode() * 100)
    return folder


def statement(folder: Path) -> dict[str, Any]:
    bundle = json.loads((folder / signing.SIGNATURE).read_bytes())
    found: dict[str, Any] = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    return found


def test_a_signature_fits_its_key_alone_and_is_the_same_twice(
    model: Path, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    signed = signing.sign(model, keys[0])
    first = signed.path.read_bytes()
    assert signing.sign(model, keys[0]).path.read_bytes() == first
    assert signing.verify(model, keys[1]) == signed.n_files == 3
    listed = [it["name"] for it in statement(model)["predicate"]["resources"]]
    assert listed == ["a/b", "a.txt", "model.gguf"]
    _, other = make_key(tmp_path, "other")
    with pytest.raises(SignatureError, match=r"signed with another key than .*other\.pub"):
        signing.verify(model, other)


@pytest.mark.parametrize("curve", ["prime256v1", "secp384r1", "secp521r1"])
def test_openssl_agrees_on_what_was_signed(model: Path, tmp_path: Path, curve: str) -> None:
    private, public = make_key(tmp_path, "own", curve)
    signing.sign(model, private)
    signing.verify(model, public)
    envelope = json.loads((model / signing.SIGNATURE).read_bytes())["dsseEnvelope"]
    payload = base64.b64decode(envelope["payload"])
    kind = envelope["payloadType"].encode()
    signed = b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)
    (tmp_path / "signed").write_bytes(signed)
    (tmp_path / "sig").write_bytes(base64.b64decode(envelope["signatures"][0]["sig"]))
    method = {"prime256v1": "sha256", "secp384r1": "sha384", "secp521r1": "sha512"}[curve]
    check = ["openssl", "dgst", f"-{method}", "-verify", public, "-signature", tmp_path / "sig"]
    assert subprocess.run([*check, tmp_path / "signed"], capture_output=True).returncode == 0
    (tmp_path / "signed").write_bytes(signed + b" ")
    assert subprocess.run([*check, tmp_path / "signed"], capture_output=True).returncode != 0


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


CHANGES: list[tuple[Callable[[Path], object], str]] = [
    (lambda folder: flip(folder / "model.gguf"), r"model\.gguf is not the file"),
    (lambda folder: flip(folder / "a/b"), "a/b is not the file"),
    (lambda folder: (folder / "a.txt").unlink(), r"a\.txt is missing"),
    (lambda folder: (folder / "a/new").write_bytes(b""), "a/new is not among"),
]


@pytest.mark.parametrize(("change", "words"), CHANGES)
def test_every_change_is_named(
    model: Path, keys: tuple[Path, Path], change: Callable[[Path], object], words: str
) -> None:
    signing.sign(model, keys[0])
    change(model)
    with pytest.raises(IntegrityError, match=words):
        signing.verify(model, keys[1])


def test_what_is_not_the_models_may_change(model: Path, keys: tuple[Path, Path]) -> None:
    signing.sign(model, keys[0])
    flip(model / "manifest.json")
    (model / ".git").mkdir()
    (model / ".git" / "HEAD").write_text("ref")
    assert signing.verify(model, keys[1]) == 3


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, bytes]:
    folder, payload = tmp_path_factory.mktemp("bundle"), b'{"a": 1}'
    private, public = make_key(folder, "key")
    (folder / "bundle").write_bytes(signatures.sign(payload, private))
    return folder / "bundle", public, payload


@given(place=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_no_flipped_bit_of_a_bundle_passes_as_another_statement(
    bundle: tuple[Path, Path, bytes], place: int, bit: int
) -> None:
    path, public, payload = bundle
    data = bytearray(path.read_bytes())
    data[place % len(data)] ^= 1 << bit
    damaged = path.with_name("damaged")
    damaged.write_bytes(data)
    try:
        assert signatures.opened(damaged, public) == payload
    except SignatureError:
        return


def test_links_are_refused_even_to_folders(model: Path, keys: tuple[Path, Path]) -> None:
    signing.sign(model, keys[0])
    (model / "elsewhere").symlink_to("/etc")
    for act in (lambda: signing.sign(model, keys[0]), lambda: signing.verify(model, keys[1])):
        with pytest.raises(InputError, match="elsewhere is no plain file"):
            act()


def test_keys_that_cannot_be_used_say_why(
    model: Path, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    rsa, locked = tmp_path / "rsa.pem", tmp_path / "locked.pem"
    subprocess.run(["openssl", "genrsa", "-out", rsa, "2048"], check=True, capture_output=True)
    subprocess.run(
        ["openssl", "ec", "-in", keys[0], "-aes128", "-passout", "pass:x", "-out", locked],
        check=True,
        capture_output=True,
    )
    koblitz, _ = make_key(tmp_path, "koblitz", "secp256k1")
    for key, words in (
        (rsa, "is no EC key"),
        (locked, "is encrypted"),
        (keys[1], "no private key"),
        (koblitz, "secp256k1"),
        (tmp_path / "none", "No such file"),
    ):
        with pytest.raises(InputError, match=words):
            signing.sign(model, key)
    assert not (model / signing.SIGNATURE).exists()


def resigned(model: Path, private: Path, **changes: Any) -> None:
    """Sign a statement that no honest program writes."""
    found = statement(model)
    found["predicate"] |= changes
    bundle = signatures.sign(json.dumps(found).encode(), private)
    (model / signing.SIGNATURE).write_bytes(bundle)


def test_a_signed_statement_is_still_judged(model: Path, keys: tuple[Path, Path]) -> None:
    signing.sign(model, keys[0])
    resources = statement(model)["predicate"]["resources"]
    for changes, words in (
        ({"resources": [*resources, resources[0]]}, "or twice"),
        ({"resources": resources[1:]}, "not that of what it lists"),
        ({"resources": 3}, "cannot be followed"),
        ({"serialization": {"method": "shards", "hash_type": "sha256"}}, "it lists shards"),
    ):
        signing.sign(model, keys[0])
        resigned(model, keys[0], **changes)
        with pytest.raises(SignatureError, match=words):
            signing.verify(model, keys[1])


def peer() -> Path:
    """The command of OpenSSF's package, which `make test` installs."""
    found = model_signing_peer.program()
    if not found.is_file():
        pytest.skip("needs model_signing; `python -m benchmarks.model_signing_peer` installs it")
    return found


def test_model_signing_takes_ours(model: Path, keys: tuple[Path, Path]) -> None:
    program = peer()
    signing.sign(model, keys[0])
    check = [program, "verify", "key", model, "--signature", model / signing.SIGNATURE]
    check += ["--public_key", keys[1]]
    done = subprocess.run(check, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    flip(model / "a/b")
    done = subprocess.run(check, capture_output=True, text=True)
    assert done.returncode != 0 and "a/b" in done.stdout + done.stderr


def test_we_take_model_signings(model: Path, keys: tuple[Path, Path]) -> None:
    argv = [peer(), "sign", "key", model, "--signature", model / signing.SIGNATURE]
    subprocess.run([*argv, "--private_key", keys[0]], check=True, capture_output=True)
    assert signing.verify(model, keys[1]) == 4  # it signs manifest.json too
    flip(model / "manifest.json")
    with pytest.raises(IntegrityError, match=r"manifest\.json is not the file"):
        signing.verify(model, keys[1])


def test_the_commands(demo_checkpoint: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(demo_checkpoint, tmp_path / "checkpoint")
    refused(coldpress("verify", folder, "--public-key", keys[1]), 20, "is not signed")
    done = coldpress("sign", folder, "--key", keys[0])
    assert done.returncode == 0 and done.stdout.strip() == str(folder / signing.SIGNATURE)
    found = json.loads(coldpress("verify", folder, "--public-key", keys[1], "--json").stdout)
    assert found["signature"] == "valid, 2 files"
    assert "not checked" in json.loads(coldpress("verify", folder, "--json").stdout)["signature"]
    flip(folder / signing.SIGNATURE)
    refused(coldpress("verify", folder, "--public-key", keys[1]), 20, "signature|signed")
    refused(coldpress("sign", tmp_path / "none", "--key", keys[0]), 5, "is no folder")
