"""Send an image from its archive to a registry: what is there is skipped, the tag comes last.

Source: OCI distribution specification 1.1, "Pushing".
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode, urljoin

from coldpress import progress
from coldpress.errors import InputError, IntegrityError, RemoteError, UsageError
from coldpress.package.registry.answers import Answer, TransientError, check_digest, refusal
from coldpress.package.registry.session import Session
from coldpress.package.stores import Store, blob_name
from coldpress.progress import Tick

# Amazon's registry takes parts of 5 MiB and more; a lost one is sent again.
CHUNK_BYTES = 16 << 20
_MAX_JSON_BYTES = 4 << 20
_RANGE = re.compile(r"(?:bytes=)?0-(\d{1,19})")
_OCTETS = {"Content-Type": "application/octet-stream"}


@dataclass(frozen=True)
class Pushed:
    """What was sent: ``reference`` names it by digest; of the blobs some were there already."""

    reference: str
    digest: str
    n_blobs: int
    n_present: int
    n_mounted: int
    sent_bytes: int


@dataclass(frozen=True)
class _Blob:
    digest: str
    size_bytes: int


def upload(
    store: Store, session: Session, mount: Sequence[str] = (), chunk_bytes: int = CHUNK_BYTES
) -> Pushed:
    """Send blobs, then the manifest by its tag.

    Args:
        mount: repositories of the same registry that may hold some of the blobs.

    Raises:
        InputError: the store does not hold one image.
        IntegrityError: a blob or the manifest is not what its digest says, here or there.
        RemoteError: the registry refuses, or fails too often.
    """
    reference = session.reference
    if reference.digest:
        raise UsageError(f"{reference} names a digest", "push to a tag; the digest is the image's")
    data, media_type = _manifest(store)
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    blobs = list(_blobs(store, data))
    how = {"present": 0, "mounted": 0, "sent": 0}
    with progress.task(f"pushing to {reference.host}", sum(it.size_bytes for it in blobs)) as tick:
        for blob in blobs:
            how[_Upload(store, session, blob, chunk_bytes, tick).place(mount)] += 1
    answer = session.ask(
        "PUT",
        session.url(f"manifests/{reference.tag or 'latest'}"),
        headers={"Content-Type": media_type},
        body=data,
        expected=(201,),
    )
    check_digest(reference, answer, digest)
    return Pushed(
        reference=f"{reference.host}/{reference.repository}@{digest}",
        digest=digest,
        n_blobs=len(blobs),
        n_present=how["present"],
        n_mounted=how["mounted"],
        sent_bytes=session.sent_bytes,
    )


def _manifest(store: Store) -> tuple[bytes, str]:
    """The one manifest's bytes and type."""
    listed = json.loads(_read(store, "index.json")).get("manifests")
    hint = "give an image that `coldpress package` wrote, or an OCI layout with one image"
    if not isinstance(listed, list) or len(listed) != 1:
        raise InputError(f"{store.name} does not hold one image", hint)
    data = _read(store, blob_name(listed[0].get("digest")))
    if f"sha256:{hashlib.sha256(data).hexdigest()}" != listed[0]["digest"]:
        raise IntegrityError(f"{store.name}: the manifest is damaged", "build the image again")
    media_type = listed[0].get("mediaType")
    if not isinstance(media_type, str) or "manifest" not in media_type or "list" in media_type:
        raise InputError(f"{store.name} holds an index, not an image", hint)
    return data, media_type


def _blobs(store: Store, manifest: bytes) -> Iterator[_Blob]:
    """What a manifest is made of, layers first, each once."""
    read: dict[str, Any] = json.loads(manifest)
    seen: set[str] = set()
    for described in (*read.get("layers", ()), read["config"]):
        digest = described["digest"]
        size = store.size_bytes(blob_name(digest))
        if size is None or size != described["size"]:
            raise IntegrityError(
                f"{store.name}: {digest} has {size} bytes instead of {described['size']}",
                "build the image again",
            )
        if digest not in seen:
            seen.add(digest)
            yield _Blob(digest, size)


def _read(store: Store, name: str) -> bytes:
    size = store.size_bytes(name)
    if size is None or size > _MAX_JSON_BYTES:
        raise InputError(
            f"{store.name} has no usable {name}", "give an OCI layout or an OCI archive"
        )
    with store.open(name) as stream:
        return stream.read(size)


class _Upload:
    """One blob on its way."""

    def __init__(
        self, store: Store, session: Session, blob: _Blob, chunk_bytes: int, tick: Tick
    ) -> None:
        self._store = store
        self._session = session
        self._blob = blob
        self._chunk_bytes = chunk_bytes
        self._tick = tick

    def place(self, mount: Sequence[str]) -> str:
        """Bring the blob into the repository; how: present, mounted or sent."""
        blob, session = self._blob, self._session
        answer = session.ask("HEAD", session.url(f"blobs/{blob.digest}"), expected=(200, 404))
        if answer.status == 200:
            self._tick(blob.size_bytes)
            return "present"
        for repository in mount:
            answer = self._begin({"mount": blob.digest, "from": repository})
            if answer.status == 201:
                self._tick(blob.size_bytes)
                return "mounted"
        self._send()
        return "sent"

    def _begin(self, query: dict[str, str] | None = None) -> Answer:
        """Open an upload, or mount what another repository has."""
        asked = f"?{urlencode(query)}" if query else ""
        return self._session.ask(
            "POST",
            self._session.url(f"blobs/uploads/{asked}"),
            headers={"Content-Length": "0"},
            expected=(201, 202) if query else (202,),
        )

    def _send(self) -> None:
        """Send the bytes; what breaks off goes on from where the registry says it is."""
        location = self._location(self._begin())
        offset = furthest = failures = 0
        while True:
            try:
                if offset == self._blob.size_bytes or self._blob.size_bytes <= self._chunk_bytes:
                    self._finish(location, offset)
                    return
                location, offset = self._patch(location, offset)
                if (
                    offset > furthest
                ):  # else a registry that loses it every time would be asked for ever
                    furthest, failures = offset, 0
            except TransientError as error:
                failures += 1
                self._session.pause(failures, error)
                location, offset = self._resume(location)

    def _patch(self, location: str, offset: int) -> tuple[str, int]:
        """Send the next chunk."""
        data = self._bytes(offset, self._chunk_bytes)
        headers = _OCTETS | {"Content-Range": f"{offset}-{offset + len(data) - 1}"}
        answer = self._session.once("PATCH", location, headers=headers, body=data)
        if answer.status in (404, 416):
            raise TransientError(f"it lost the upload ({answer.status})")
        if answer.status != 202:
            raise refusal(self._session.reference, answer)
        self._tick(len(data))
        return self._location(answer, location), offset + len(data)

    def _finish(self, location: str, offset: int) -> None:
        """Send the rest with the digest, which the registry checks."""
        data = self._bytes(offset, self._blob.size_bytes - offset)
        join = "&" if "?" in location else "?"
        url = f"{location}{join}digest={quote(self._blob.digest)}"
        answer = self._session.once("PUT", url, headers=_OCTETS, body=data)
        if answer.status in (404, 416):
            raise TransientError(f"it lost the upload ({answer.status})")
        if answer.status == 400 and b"DIGEST_INVALID" in answer.data:
            raise IntegrityError(
                f"{self._session.reference.host} got other bytes than {self._blob.digest[:19]}…",
                f"check {self._store.name}, then push again",
            )
        if answer.status != 201:
            raise refusal(self._session.reference, answer)
        self._tick(len(data))
        check_digest(self._session.reference, answer, self._blob.digest)

    def _resume(self, location: str) -> tuple[str, int]:
        """Where the upload stands: by the registry, or anew where it has lost it.

        Docker's own registry gives an upload up when a chunk of it arrived in part.
        """
        session = self._session
        for attempt in range(1, session.patience.attempts + 1):
            try:
                answer = session.once("GET", location)
                break
            except TransientError as error:
                session.pause(attempt, error)
        found = _RANGE.fullmatch(answer.header("Range"))
        if answer.status == 204 and found:
            end = int(found[1])
            # "0-0" is said of an empty upload; one of a single byte does not occur.
            offset = end + 1 if end else 0
            if offset <= self._blob.size_bytes:
                return self._location(answer, location), offset
        return self._location(self._begin()), 0

    def _location(self, answer: Answer, before: str = "") -> str:
        stated = answer.header("Location")
        if not stated and not before:
            raise RemoteError(
                f"{self._session.reference.host} opens no upload", "check the registry"
            )
        return urljoin(self._session.url(""), stated) if stated else before

    def _bytes(self, offset: int, size: int) -> bytes:
        with self._store.open(blob_name(self._blob.digest), offset) as stream:
            return stream.read(size)
