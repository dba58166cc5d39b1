"""An image in a registry as files: the layout that pulling it would make, and pulling it."""

import hashlib
import json
import re
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any

from coldpress import progress
from coldpress.errors import InputError, IntegrityError, RemoteError
from coldpress.package.oci import INDEX_TYPE, MANIFEST_TYPE
from coldpress.package.registry.answers import Answer, TransientError, check_digest, refusal
from coldpress.package.registry.session import Session
from coldpress.package.stores import blob_name
from coldpress.progress import Tick

_DOCKER = "application/vnd.docker.distribution.manifest"
_ACCEPT = {
    "Accept": ", ".join(
        [MANIFEST_TYPE, INDEX_TYPE, f"{_DOCKER}.v2+json", f"{_DOCKER}.list.v2+json"]
    )
}
_MAX_MANIFEST_BYTES = 4 << 20
_MAX_DEPTH = 4
_PIECE = 1 << 20
_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-\d{1,19}/(?:\d{1,19}|\*)")


class RemoteImage:
    """A ``Store``: documents are fetched at once, layers when they are opened.

    ``digest`` is what the reference leads to, a manifest's or an index's.

    Args:
        architecture: of an index, only the manifests for it are followed; all by default.
    """

    def __init__(self, session: Session, architecture: str = "") -> None:
        self.name = str(session.reference)
        self._session = session
        self._documents: dict[str, bytes] = {}
        self.blobs: dict[str, int] = {}
        described = self._manifest(session.reference.wanted, architecture, 0)
        self.digest = str(described["digest"])
        index = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [described]}
        self._documents["index.json"] = json.dumps(index).encode()

    def size_bytes(self, name: str) -> int | None:
        """As ``Store``."""
        if name in self._documents:
            return len(self._documents[name])
        return self.blobs.get(name)

    def open(self, name: str, start: int = 0) -> IO[bytes]:
        """As ``Store``; a layer comes straight from the registry, and is resumed if it breaks off."""
        if name in self._documents:
            return _Document(self._documents[name][start:])  # type: ignore[return-value]
        digest = f"sha256:{name.rpartition('/')[2]}"
        return _Layer(self._session, digest, start, self.blobs[name])  # type: ignore[return-value]

    def write(self, out: Path) -> Path:
        """Write the layout, whole by rename; return its folder.

        An attempt that failed leaves ``OUT.partial``, from which the next one goes on.

        Raises:
            InputError: ``out`` exists.
            IntegrityError: a blob is not what its digest says.
            RemoteError: the registry fails too often.
        """
        if out.exists():
            raise InputError(f"{out} exists", "choose another folder")
        folder = out.with_name(f"{out.name}.partial")
        (folder / "blobs" / "sha256").mkdir(parents=True, exist_ok=True)
        (folder / "oci-layout").write_bytes(b'{"imageLayoutVersion":"1.0.0"}')
        with progress.task(f"pulling {self.name}", sum(self.blobs.values())) as tick:
            for name in self.blobs:
                self._keep(folder, name, tick)
        for name, data in self._documents.items():
            (folder / name).write_bytes(data)
        folder.rename(out)
        return out

    def _keep(self, folder: Path, name: str, tick: Tick) -> None:
        target = folder / name
        if target.is_file():
            return
        partial = target.with_suffix(".partial")
        sha256 = hashlib.sha256()
        with self.open(name) as source, partial.open("wb") as out:
            while piece := source.read(_PIECE):
                sha256.update(piece)
                out.write(piece)
                tick(len(piece))
        if f"blobs/sha256/{sha256.hexdigest()}" != name:
            partial.unlink()
            raise IntegrityError(
                f"{self._session.reference.host} sends other bytes than {name[13:25]}…",
                "try again; if it stays so, do not trust this registry",
            )
        partial.rename(target)

    def _manifest(self, wanted: str, architecture: str, depth: int) -> dict[str, Any]:
        """Fetch a manifest or an index, and what it names; its descriptor."""
        session = self._session
        answer = session.ask(
            "GET", session.url(f"manifests/{wanted}"), headers=_ACCEPT, expected=(200,)
        )
        digest = f"sha256:{hashlib.sha256(answer.data).hexdigest()}"
        if wanted.startswith("sha256:") and wanted != digest:
            raise IntegrityError(
                f"{session.reference.host} answers {digest} to {wanted}",
                "do not trust this registry",
            )
        check_digest(session.reference, answer, digest)
        try:
            manifest = json.loads(answer.data)
            media_type = manifest.get("mediaType") or (
                INDEX_TYPE if "manifests" in manifest else MANIFEST_TYPE
            )
            self._documents[blob_name(digest)] = answer.data
            if depth < _MAX_DEPTH:
                self._index(manifest, architecture, depth)
            for described in (manifest.get("config"), *manifest.get("layers", ())):
                if described:
                    self.blobs[blob_name(described["digest"])] = int(described["size"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RemoteError(f"{self.name} is no image", "check the reference") from error
        return {"mediaType": media_type, "digest": digest, "size": len(answer.data)}

    def _index(self, manifest: dict[str, Any], architecture: str, depth: int) -> None:
        for described in manifest.get("manifests", ()):
            platform = described.get("platform") or {}
            fits = not architecture or platform.get("architecture", architecture) == architecture
            attests = (described.get("annotations") or {}).get("vnd.docker.reference.type")
            if fits and not attests:
                self._manifest(str(described["digest"]), architecture, depth + 1)


class _Document:
    """Bytes at hand."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read(self, size: int = -1) -> bytes:
        end = len(self._data) if size < 0 else size
        data, self._data = self._data[:end], self._data[end:]
        return data

    def __enter__(self) -> "_Document":
        return self

    def __exit__(self, *_: object) -> None:
        self._data = b""


class _Layer:
    """A blob being read from the registry."""

    def __init__(self, session: Session, digest: str, start: int, size: int) -> None:
        self._session = session
        self._url = session.url(f"blobs/{digest}")
        self._at = start
        self._end = size
        self._response: Any = None

    def read(self, size: int = -1) -> bytes:
        """The next bytes, fewer only at the end."""
        wanted = self._end - self._at if size < 0 else min(size, self._end - self._at)
        parts: list[bytes] = []
        failures = 0
        while wanted:
            try:
                parts.append(self._some(wanted))
                wanted -= len(parts[-1])
                self._at += len(parts[-1])
                failures = 0
            except TransientError as error:
                failures += 1
                self._response = None
                self._session.pause(failures, error)
        return b"".join(parts)

    def _some(self, wanted: int) -> bytes:
        if self._response is None:
            self._response = self._begin()
        try:
            data: bytes = self._response.read(wanted)
        except (OSError, HTTPException) as error:
            raise TransientError(f"it broke off ({type(error).__name__})") from error
        if not data:
            raise TransientError(f"it broke off {wanted} bytes before the end")
        return data

    def _begin(self) -> Any:
        headers = {"Range": f"bytes={self._at}-"} if self._at else {}
        response = self._session.open("GET", self._url, headers=headers)
        found = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if response.status == 206 and found and int(found[1]) == self._at:
            return response
        if response.status == 200:
            self._skip(response)
            return response
        data = response.read(_MAX_MANIFEST_BYTES)
        raise refusal(self._session.reference, Answer(response.status, {}, data))

    def _skip(self, response: Any) -> None:
        """Go past what is here already, of a registry that knows no ranges."""
        left = self._at
        while left:
            data = response.read(min(left, _PIECE))
            if not data:
                raise TransientError("it broke off")
            left -= len(data)

    def __enter__(self) -> "_Layer":
        return self

    def __exit__(self, *_: object) -> None:
        # What is left of the answer would be taken for the next one's.
        self._session.drop()
