"""Byte ranges of one object over HTTP(S): a kept connection per thread, retries, no lie unnoticed.

The first answer settles the object's size and ETag; every later one is held against them, so that
an object that is replaced under way is never mixed with its successor.
"""

import contextlib
import random
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection

from coldpress.errors import IntegrityError, RemoteError
from coldpress.serve.address import Target, follow
from coldpress.serve.patience import Patience

READ_BYTES = 1 << 20
_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19})")
_MAX_REDIRECTS = 5
_REDIRECTS = (301, 302, 303, 307, 308)
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)


class _Transient(Exception):
    """An answer that another attempt may better."""


class HttpObject:
    """One remote object; its methods may be called from many threads.

    Args:
        size_bytes: what it must have; None: whatever the first answer says.
    """

    def __init__(self, target: Target, patience: Patience, size_bytes: int | None = None) -> None:
        self.target = target
        self.patience = patience
        self.size_bytes = size_bytes
        self.retries = 0
        self.requests = 0
        self._etag: str | None = None
        self._until_s = time.monotonic() + patience.deadline_s
        self._local = threading.local()
        self._open: set[HTTPConnection] = set()
        self._lock = threading.Lock()
        self._closed = threading.Event()

    def __str__(self) -> str:
        """The address without secrets."""
        return str(self.target)

    def whole(self, limit: int) -> bytes:
        """The object itself, if it has at most ``limit`` bytes.

        Raises:
            RemoteError: as ``stream``, or it is larger.
        """
        failures = 0
        while True:
            try:
                response = self._ask({})
                self._refuse(response)
                return self._all(response, limit)
            except (_Transient, OSError, HTTPException) as error:
                failures += 1
                self._pause(failures, error)

    def probe(self) -> int:
        """The object's size, by asking for its first byte.

        Raises:
            RemoteError: as ``stream``.
        """
        for _ in self.stream(0, 1):
            pass
        if self.size_bytes is None:
            raise RemoteError(f"{self} does not say its size", "check the address")
        return self.size_bytes

    def stream(self, start: int, end: int) -> Iterator[bytes]:
        """Bytes ``[start, end)`` in pieces as they arrive; what breaks off is resumed.

        Raises:
            RemoteError: the server has it not, forbids it, or fails too often or for too long.
            IntegrityError: the object is not the one that was begun with.
        """
        failures = 0
        while start < end:
            try:
                for data in self._range(start, end):
                    start += len(data)
                    failures = 0
                    yield data
            except (_Transient, OSError, HTTPException) as error:
                failures += 1
                self._pause(failures, error)

    def interrupt(self) -> None:
        """Make reads under way fail at once, and later ones too."""
        with self._lock:
            self._closed.set()
            for connection in self._open:
                _shut(connection)

    def close(self) -> None:
        """Close every connection, once nobody reads any more."""
        self.interrupt()
        for connection in self._open:
            connection.close()
        self._open.clear()

    def _all(self, response: HTTPResponse, limit: int) -> bytes:
        expected = response.getheader("Content-Length", "")
        data = bytearray()
        began = time.monotonic()
        while piece := response.read1(READ_BYTES):
            data += piece
            if len(data) > limit:
                raise RemoteError(f"{self} has more than {limit} bytes", "check the address")
            self._check_pace(began, len(data))
        if expected.isdecimal() and len(data) != int(expected):
            raise _Transient(f"{len(data)} of {expected} bytes came")
        return bytes(data)

    def _range(self, start: int, end: int) -> Iterator[bytes]:
        headers = {"Range": f"bytes={start}-{end - 1}"}
        # A weak ETag may stay the same when bytes change: RFC 9110 forbids it in If-Range.
        if self._etag and not self._etag.startswith("W/"):
            headers["If-Range"] = self._etag
        response = self._ask(headers)
        self._refuse(response)
        self._settle(response)
        if response.status != 206:
            raise _Transient("it answers 200 with the whole object instead of 206 with a range")
        self._check_range(response, start, end)
        began = time.monotonic()
        left = end - start
        while left:
            data = response.read1(min(READ_BYTES, left))
            if not data:
                raise _Transient(f"it broke off {left} bytes before the end")
            left -= len(data)
            yield data
            self._check_pace(began, end - start - left)
        if response.length == 0:
            response.close()  # of the answer, not of the connection: it is kept
        else:  # the end of a chunked body is still to come
            self._drop()

    def _check_pace(self, began: float, received: int) -> None:
        if self._closed.is_set():
            raise _Transient("it is no longer wanted")
        taken = time.monotonic() - began
        patience = self.patience
        if taken > patience.stall_s and received < taken * patience.slowest_bytes_per_s:
            raise _Transient(f"it sends {received / taken:.0f} bytes per second")

    def _ask(self, headers: dict[str, str]) -> HTTPResponse:
        for _ in range(_MAX_REDIRECTS + 1):
            target = self.target
            connection = self._connection(target)
            always = {"Accept-Encoding": "identity", "User-Agent": "coldpress"}
            self.requests += 1
            connection.request(
                "GET", target.request_path, headers={**always, **target.headers, **headers}
            )
            response = connection.getresponse()
            if response.status not in _REDIRECTS:
                return response
            moved = follow(target, response.getheader("Location", ""))
            self._drop()
            self.target = moved
        raise RemoteError(f"{self} redirects in circles", "check the address")

    def _connection(self, target: Target) -> HTTPConnection:
        place = target.scheme, target.host, target.port
        if getattr(self._local, "place", None) == place:
            kept: HTTPConnection = self._local.connection
            return kept
        self._drop()
        timeout = self.patience.stall_s
        connection: HTTPConnection
        if target.scheme == "https":
            context = ssl.create_default_context()
            connection = HTTPSConnection(target.host, target.port, timeout=timeout, context=context)
        else:
            connection = HTTPConnection(target.host, target.port, timeout=timeout)
        with self._lock:
            if self._closed.is_set():
                raise RemoteError(f"{self} is no longer wanted")
            self._open.add(connection)
        self._local.connection, self._local.place = connection, place
        return connection

    def _drop(self) -> None:
        """Close this thread's connection."""
        connection = getattr(self._local, "connection", None)
        if connection is not None:
            with self._lock:
                self._open.discard(connection)
            connection.close()
            self._local.connection = self._local.place = None

    def _refuse(self, response: HTTPResponse) -> None:
        """Turn every status but 200 and 206 into what it means."""
        match response.status:
            case 200 | 206:
                encoding = response.getheader("Content-Encoding", "identity")
                if encoding != "identity":
                    raise _Transient(f"it encodes the bytes ({encoding}) though it was told not to")
            case 404 | 410:
                raise MissingError(f"{self} does not exist", "check the address")
            case 401 | 403:
                raise RemoteError(
                    f"{self} is forbidden ({response.status})",
                    "set COLDPRESS_FETCH_TOKEN, or renew the presigned address",
                )
            case 416:
                raise IntegrityError(
                    f"{self} is shorter than its index says", "upload the checkpoint again"
                )
            case status if status in _TRANSIENT:
                raise _Transient(f"it answers {status}")
            case status:
                raise RemoteError(f"{self} answers {status}", "check the address")

    def _settle(self, response: HTTPResponse) -> None:
        """Learn the object's ETag from the first answer; refuse another one's."""
        etag = response.getheader("ETag")
        with self._lock:
            if self._etag is None:
                self._etag = etag
        if etag != self._etag:
            raise IntegrityError(
                f"{self} was replaced while it was fetched",
                "start again: the next try takes it whole",
            )

    def _check_range(self, response: HTTPResponse, start: int, end: int) -> None:
        stated = response.getheader("Content-Range", "")
        found = _CONTENT_RANGE.fullmatch(stated)
        if found is None:
            raise _Transient(f"its Content-Range is {stated[:80]!r}")
        first, last, size = (int(number) for number in found.groups())
        self._check_size(size)
        if (first, last + 1) != (start, end):
            raise _Transient(f"it answers bytes {first}-{last} to a request for {start}-{end - 1}")
        length = response.getheader("Content-Length")
        if length is not None and length != str(end - start):
            raise _Transient(f"it announces {length[:20]} bytes for a range of {end - start}")

    def _check_size(self, size: int) -> None:
        with self._lock:
            if self.size_bytes is None:
                self.size_bytes = size
        if size != self.size_bytes:
            raise IntegrityError(
                f"{self} has {size} bytes, {self.size_bytes} were expected",
                "upload the checkpoint again, index and all",
            )

    def _pause(self, failures: int, error: Exception) -> None:
        """Wait before the next attempt, or say why there is none."""
        self._drop()
        patience = self.patience
        now = time.monotonic()
        said = str(error) if isinstance(error, _Transient) else _words(error)
        if self._closed.is_set() or failures >= patience.attempts or now >= self._until_s:
            times = "once" if failures == 1 else f"{failures} times"
            raise RemoteError(f"{self} failed {times}: {said}", "try again later") from error
        with self._lock:
            self.retries += 1
        pause = min(patience.backoff_s * 2 ** (failures - 1), patience.longest_pause_s)
        pause *= random.uniform(0.5, 1)  # noqa: S311  # so that many clients do not come back at once
        self._closed.wait(min(pause, self._until_s - now))


class MissingError(RemoteError):
    """There is no such object."""


def _words(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "it sent nothing for too long"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _shut(connection: HTTPConnection) -> None:
    """Wake a thread that reads from the connection."""
    if connection.sock is not None:
        with contextlib.suppress(OSError):  # it is closed already
            connection.sock.shutdown(socket.SHUT_RDWR)
