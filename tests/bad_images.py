"""Tiny images, each wrong in one way, and good ones: written as folders in OCI layout or archives."""

import gzip
import hashlib
import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
PLAIN = "application/vnd.oci.image.layer.v1.tar"
DOCKER_PLAIN = "application/vnd.docker.image.rootfs.diff.tar"

# The first bytes of programs: 64-bit x86, 64-bit Arm, 32-bit x86.
ELF_AMD64 = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00\x3e\x00" + bytes(44)
ELF_ARM64 = ELF_AMD64[:18] + b"\xb7\x00" + ELF_AMD64[20:]
ELF_386 = b"\x7fELF\x01" + ELF_AMD64[5:18] + b"\x03\x00" + ELF_AMD64[20:]


@dataclass
class Entry:
    """A tar entry; ``kind`` is tarfile's, a folder's name needs no slash."""

    name: str
    data: bytes = b""
    mode: int = 0o644
    kind: bytes = tarfile.REGTYPE
    target: str = ""


def folder(name: str, mode: int = 0o755) -> Entry:
    return Entry(name, mode=mode, kind=tarfile.DIRTYPE)


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> Entry:
    return Entry(name, mode=0o777, kind=kind, target=target)


def tar(entries: Sequence[Entry]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for entry in entries:
            info = tarfile.TarInfo(entry.name)
            info.mode, info.type, info.linkname = entry.mode, entry.kind, entry.target
            info.size = len(entry.data)
            archive.addfile(info, io.BytesIO(entry.data))
    return out.getvalue()


def base() -> list[Entry]:
    """A program that can be started, with every parent folder."""
    return [folder("app"), Entry("app/run", ELF_AMD64, 0o755)]


@dataclass
class Layer:
    """A layer's tar, how it is stored, and what is said about it."""

    entries: list[Entry] = field(default_factory=base)
    media_type: str = GZIP
    raw: bytes | None = None
    digest: str | None = None
    diff_id: str | None = None

    def tar(self) -> bytes:
        return tar(self.entries)

    def blob(self) -> bytes:
        if self.raw is not None:
            return self.raw
        return gzip.compress(self.tar(), mtime=0) if self.media_type == GZIP else self.tar()


@dataclass
class Image:
    """An image; a bad one differs from this in one place."""

    layers: list[Layer] = field(default_factory=lambda: [Layer()])
    run: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    config_type: str = CONFIG
    history: bool = True
    extra_manifests: list[dict[str, Any]] = field(default_factory=list)
    wrapped: bool = False

    def add(self, *entries: Entry) -> "Image":
        """Put entries into the first layer."""
        self.layers[0].entries += entries
        return self

    def files(self) -> dict[str, bytes]:
        """Every file of the OCI layout."""
        files: dict[str, bytes] = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}'}

        def keep(data: bytes, media_type: str) -> dict[str, Any]:
            digest = hashlib.sha256(data).hexdigest()
            files[f"blobs/sha256/{digest}"] = data
            return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}

        described = []
        for layer in self.layers:
            kept = keep(layer.blob(), layer.media_type)
            if layer.digest:  # the file has the name of a digest that is not its own
                files[f"blobs/sha256/{layer.digest[7:]}"] = layer.blob()
                kept["digest"] = layer.digest
            described.append(kept)
        config = self.described_config()
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": keep(json.dumps(config).encode(), self.config_type),
            "layers": described,
        }
        listed = [keep(json.dumps(manifest).encode(), MANIFEST), *self.extra_manifests]
        if self.wrapped:
            inner = {"schemaVersion": 2, "mediaType": INDEX, "manifests": listed}
            listed = [keep(json.dumps(inner).encode(), INDEX)]
        index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": listed}
        files["index.json"] = json.dumps(index).encode()
        return files

    def described_config(self) -> dict[str, Any]:
        diff_ids = [
            layer.diff_id or f"sha256:{hashlib.sha256(layer.tar()).hexdigest()}"
            for layer in self.layers
        ]
        run = {
            "Entrypoint": ["/app/run"],
            "Env": ["PATH=/usr/bin:/bin", "HOME=/tmp"],
            "User": "65532:65532",
            "WorkingDir": "/",
        }
        return {
            "architecture": "amd64",
            "os": "linux",
            "config": run | self.run,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "history": [{"created_by": "test"} for _ in self.layers] if self.history else [],
        } | self.config

    def write(self, path: Path) -> Path:
        """Write the layout as a folder."""
        for name, data in self.files().items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)
        return path

    def archive(self, path: Path) -> Path:
        """Write the layout as an archive."""
        path.write_bytes(tar([Entry(name, data) for name, data in self.files().items()]))
        return path

    def docker_archive(self, path: Path) -> Path:
        """Write what an older `docker save` writes: a layer that occurs twice is a link."""
        config = json.dumps(self.described_config()).encode()
        name = f"{hashlib.sha256(config).hexdigest()}.json"
        entries, places = [Entry(name, config)], []
        for number, layer in enumerate(self.layers):
            places.append(f"{number:064x}/layer.tar")
            entries += [folder(f"{number:064x}"), Entry(places[-1], layer.tar())]
        places.append("f" * 64 + "/layer.tar")
        entries += [folder("f" * 64), link(places[-1], f"../{places[0]}")]
        config_again = json.loads(config)
        config_again["rootfs"]["diff_ids"].append(config_again["rootfs"]["diff_ids"][0])
        config_again["history"].append({"created_by": "again"})
        entries[0] = Entry(name, json.dumps(config_again).encode())
        listed = [{"Config": name, "RepoTags": ["made:latest"], "Layers": places}]
        path.write_bytes(tar([*entries, Entry("manifest.json", json.dumps(listed).encode())]))
        return path


def _two(*entries: Entry) -> Image:
    return Image(layers=[Layer(), Layer(list(entries))])


def _attestation() -> dict[str, Any]:
    return {
        "mediaType": MANIFEST,
        "digest": f"sha256:{'1' * 64}",
        "size": 1,
        "platform": {"architecture": "unknown", "os": "unknown"},
        "annotations": {"vnd.docker.reference.type": "attestation-manifest"},
    }


def _stored_zeros(size: int) -> bytes:
    """A tar of one file of zeros, as gzip members that repeat: small to make and to keep."""
    header = tar([folder("app"), Entry("app/run", ELF_AMD64, 0o755)])[:2048]
    info = tarfile.TarInfo("app/zeros")
    info.size = size
    piece = 64 << 20
    parts = [gzip.compress(header + info.tobuf(), mtime=0)]
    parts += [gzip.compress(bytes(piece), mtime=0)] * (size // piece + 1)
    return b"".join(parts)


def _bomb() -> Image:
    return Image(layers=[Layer(raw=_stored_zeros(2 << 30))])


def _torch() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("model/data.pkl", b"\x80\x02}.")
    return out.getvalue()


PEM = b"-----BEGIN RSA PRIVATE KEY-----\nMIIB\n-----END RSA PRIVATE KEY-----\n"
HF_TOKEN = "hf_" + "aB3" * 11 + "x"

# Rule → images that break it and no other.
BAD: dict[str, list[Callable[[], Image]]] = {
    "image-index": [
        lambda: Image(wrapped=True),
        lambda: Image(extra_manifests=[_attestation() | {"annotations": {}}]),
    ],
    "attestation-manifest": [lambda: Image(extra_manifests=[_attestation()])],
    "media-type": [
        lambda: Image(config_type="application/vnd.cncf.model.config.v1+json"),
        lambda: Image(layers=[Layer(media_type="application/x-tar")]),
    ],
    "docker-uncompressed-layer": [lambda: Image(layers=[Layer(media_type=DOCKER_PLAIN)])],
    "zstd-layer": [
        lambda: Image(
            layers=[
                Layer(
                    raw=b"\x28\xb5\x2f\xfd" + bytes(64),
                    media_type="application/vnd.oci.image.layer.v1.tar+zstd",
                )
            ]
        )
    ],
    "foreign-layer": [
        lambda: Image(
            layers=[Layer(media_type="application/vnd.oci.image.layer.nondistributable.v1.tar")]
        )
    ],
    "layer-count": [lambda: Image(layers=[Layer() for _ in range(128)])],
    "digest-mismatch": [lambda: Image(layers=[Layer(digest=f"sha256:{'a' * 64}")])],
    "diff-id-mismatch": [
        lambda: Image(layers=[Layer(diff_id=f"sha256:{'b' * 64}")]),
        lambda: Image(config={"rootfs": {"type": "layers", "diff_ids": []}}),
    ],
    "broken-layer": [
        lambda: Image(layers=[Layer(), Layer(raw=gzip.compress(tar(base()))[:-20])]),
        lambda: Image(layers=[Layer(), Layer(raw=b"no gzip at all")]),
        lambda: Image(layers=[Layer(), Layer(raw=tar(base())[:700], media_type=PLAIN)]),
        lambda: _two(link("other", "nothing", tarfile.LNKTYPE)),
    ],
    "decompression-bomb": [_bomb],
    "config-size": [lambda: Image(run={"Labels": {"x": "y" * (4 << 20)}})],
    "history-mismatch": [lambda: Image(history=False)],
    "hidden-bytes": [
        lambda: Image(
            layers=[
                Layer([*base(), Entry("app/big", bytes(33 << 20))]),
                Layer([folder("app"), Entry("app/.wh.big")]),
            ]
        ),
        lambda: Image(
            layers=[
                Layer([*base(), folder("app/d"), Entry("app/d/big", bytes(33 << 20))]),
                Layer([folder("app"), folder("app/d"), Entry("app/d/.wh..wh..opq")]),
            ]
        ),
    ],
    "missing-parent-directory": [
        lambda: Image().add(Entry("srv/data/file")),
        lambda: Image().add(Entry("srv/file"), folder("srv")),  # too late
    ],
    "escaping-entry": [
        lambda: Image().add(Entry("app/../../evil")),
        lambda: Image().add(Entry("/app/evil")),
        lambda: Image().add(link("app/out", "../../../etc"), Entry("app/out/passwd")),
        lambda: Image().add(link("app/out", "/etc"), Entry("app/out/passwd")),
        lambda: Image().add(link("app/out", "../../etc/passwd", tarfile.LNKTYPE)),
        lambda: Image(
            layers=[
                Layer([*base(), link("app/out", "../../..")]),
                Layer([folder("app"), Entry("app/out/x")]),
            ]
        ),
    ],
    "device-node": [lambda: Image().add(Entry("app/null", kind=tarfile.CHRTYPE))],
    "setuid-file": [lambda: Image().add(Entry("app/su", ELF_AMD64, 0o4755))],
    "secret-in-layer": [
        lambda: Image().add(Entry("app/.env", b"DEBUG=1\nOPENAI_API_KEY=sk-1\n")),
        lambda: Image().add(folder("home"), folder("home/.ssh"), Entry("home/.ssh/id_rsa", PEM)),
        lambda: Image().add(
            folder("home"),
            folder("home/.aws"),
            Entry("home/.aws/credentials", b"[default]\naws_secret_access_key = x\n"),
        ),
        lambda: Image().add(Entry("app/server.pem", PEM)),
        lambda: Image().add(Entry("app/main.py", f"login('{HF_TOKEN}')".encode())),
        lambda: Image(
            layers=[
                Layer([*base(), Entry("app/key.pem", PEM)]),
                Layer([folder("app"), Entry("app/.wh.key.pem")]),
            ]
        ),
    ],
    "pickled-model": [
        lambda: Image().add(Entry("app/model.pkl", b"\x80\x04]\x94.")),
        lambda: Image().add(Entry("app/model.pt", _torch())),
    ],
    "unreadable-file": [
        lambda: Image().add(Entry("app/model.gguf", b"GGUF", 0o600)),
        lambda: Image().add(folder("app/private", 0o700)),
    ],
    "mixed-architecture": [
        lambda: Image().add(Entry("app/lib.so", ELF_ARM64)),
        lambda: Image().add(Entry("app/lib.so", ELF_386)),
    ],
    "single-cpu-build": [lambda: Image().add(Entry("app/libggml-cpu.so", ELF_AMD64))],
    "operating-system": [lambda: Image(config={"os": "windows"})],
    "architecture": [
        lambda: Image(config={"architecture": "386"}),
        lambda: Image(config={"architecture": "s390x"}),
    ],
    "no-entrypoint": [lambda: Image(run={"Entrypoint": None})],
    "entrypoint-missing": [
        lambda: Image(run={"Entrypoint": ["/app/walk"]}),
        lambda: Image(run={"Entrypoint": ["python3"]}),
        lambda: Image(
            layers=[Layer([folder("app"), Entry("app/run", b"#!/bin/sh\nexit\n", 0o755)])]
        ),
    ],
    "entrypoint-not-executable": [
        lambda: Image(layers=[Layer([folder("app"), Entry("app/run", ELF_AMD64)])]),
        lambda: Image(run={"Entrypoint": ["/root/run"]}).add(
            folder("root", 0o700), Entry("root/run", ELF_AMD64, 0o755)
        ),
    ],
    "entrypoint-architecture": [],  # breaks mixed-architecture too: see test_lint.py
    "working-directory": [lambda: Image(run={"WorkingDir": "app"})],
    "reserved-environment": [lambda: Image(run={"Env": ["AWS_LAMBDA_RUNTIME_API=127.0.0.1:9001"]})],
    "environment-size": [lambda: Image(run={"Env": [f"A={'x' * 4096}"]})],
    "secret-in-config": [
        lambda: Image(run={"Env": ["HF_TOKEN=hf_1"]}),
        lambda: Image(config={"history": [{"created_by": f"ARG T={HF_TOKEN}"}]}),
    ],
    "writes-outside-tmp": [lambda: Image(run={"Env": ["HF_HOME=/root/.cache"]})],
    "port-mismatch": [lambda: Image(run={"ExposedPorts": {"3000/tcp": {}}})],
    "root-user": [lambda: Image(run={"User": ""}), lambda: Image(run={"User": "0:0"})],
    "unpacked-size": [],  # sizes are counted in test_lint.py
}
