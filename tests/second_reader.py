"""A reader of checkpoints written from docs/checkpoint-format.md alone: no line of it is coldpress's."""

import hashlib
import json
import struct
from pathlib import Path

SCALARS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Header:
    def __init__(self, path: Path) -> None:
        self.raw, self.at = path.read_bytes(), 0
        assert self.raw[:4] == b"GGUF" and struct.unpack_from("<I", self.raw, 4) == (3,)
        self.at = 8
        n_tensors, n_fields = self.number("Q"), self.number("Q")
        self.fields = {self.text(): self.value(self.number("I")) for _ in range(n_fields)}
        self.tensors = [self.info() for _ in range(n_tensors)]
        alignment = self.fields.get("general.alignment", 32)
        self.data_offset = -(-self.at // alignment) * alignment

    def number(self, form: str) -> int:
        value = struct.unpack_from("<" + form, self.raw, self.at)[0]
        self.at += struct.calcsize(form)
        return value

    def text(self) -> str:
        size = self.number("Q")
        self.at += size
        return self.raw[self.at - size : self.at].decode()

    def value(self, kind: int) -> object:
        if kind == 8:
            return self.text()
        if kind != 9:
            return self.number(SCALARS[kind])
        item, count = self.number("I"), self.number("Q")
        return [self.value(item) for _ in range(count)]

    def info(self) -> tuple[str, int]:
        name, n_dims = self.text(), self.number("I")
        self.at += 8 * n_dims + 4
        return name, self.number("Q")

    def check(self) -> None:
        ours = {k.removeprefix("coldpress."): v for k, v in self.fields.items()}
        data, head = self.raw[self.data_offset :], self.raw[: self.data_offset]
        assert ours["format_version"] == 1 and len(data) == ours["data_bytes"]
        blank = head.replace(ours["header_sha256"].encode(), b"0" * 64)
        assert sha256(blank) == ours["header_sha256"], "header"
        step = ours["chunk_bytes"]
        chunks = [sha256(data[i : i + step]) for i in range(0, len(data), step)]
        assert chunks == ours["chunk_sha256"], "chunk"
        assert sha256(b"".join(map(bytes.fromhex, chunks))) == ours["root_sha256"], "root"


def read(folder: Path) -> dict[str, bytes]:
    """Verify a checkpoint with all its files, and return every tensor's bytes."""
    index = json.loads((folder / "model.index.json").read_text())
    headers = [Header(folder / file["name"]) for file in index["files"]]
    for header, file in zip(headers, index["files"], strict=True):
        header.check()
        assert sha256(header.raw) == file["sha256"] and len(header.raw) == file["size_bytes"]
        assert sha256(header.raw[: header.data_offset]) == file["header_sha256"]
        assert header.fields["coldpress.chunk_sha256"] == file["chunk_sha256"]
    shards = headers[0].fields.get("coldpress.shard_header_sha256", [])
    assert shards == [header.fields["coldpress.header_sha256"] for header in headers[1:]]
    chunks = b"".join(bytes.fromhex(d) for file in index["files"] for d in file["chunk_sha256"])
    assert sha256(chunks) == index["root_sha256"]
    found = {
        (number, name): header.data_offset + offset
        for number, header in enumerate(headers)
        for name, offset in header.tensors
    }
    assert found == {(t["file"], name): t["offset"] for name, t in index["tensors"].items()}
    return {
        name: headers[t["file"]].raw[t["offset"] :][: t["size_bytes"]]
        for name, t in index["tensors"].items()
    }
