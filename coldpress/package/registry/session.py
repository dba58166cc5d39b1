"""Requests to one registry: a kept connection, logged in, retries within limits.

Source: OCI distribution specification 1.1.
"""

import random
import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from urllib.parse import SplitResult, urljoin, urlsplit

from coldpress.errors import RemoteError
from coldpress.package.registry.answers import TRANSIENT, Answer, TransientError, refusal, words
from coldpress.package.registry.login import Login
from coldpress.package.registry.reference import Reference

_REDIRECTS = (301, 302, 303, 307, 308)
_MAX_REDIRECTS = 5
_MAX_ANSWER_BYTES = 16 << 20


@dataclass(frozen=True)
class Patience:
    """When to try again: attempts in a row without progress, and the pauses between them."""

    attempts: int = 6
    backoff_s: float = 0.5
    longest_pause_s: float = 20
    stall_s: float = 60


class Session:
    """Requests about one repository; paths are below ``/v2/REPOSITORY/``."""

    def __init__(
        self, reference: Reference, *, insecure: bool = False, patience: Patience | None = None
    ) -> None:
        self.reference = reference
        self.patience = patience or Patience()
        self.sent_bytes = 0
        self._insecure = insecure or reference.is_loopback
        self._scheme = "http" if self._insecure else "https"
        self._connection: HTTPConnection | None = None
        self._place: tuple[str, str] = ("", "")
        self._login = Login(reference)

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_: object) -> None:
        self.drop()

    def url(self, path: str) -> str:
        """The address of something in the repository."""
        return f"{self._scheme}://{self.reference.address}/v2/{self.reference.repository}/{path}"

    def ask(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        expected: tuple[int, ...],
    ) -> Answer:
        """Ask until there is an answer.

        Raises:
            RemoteError: another status than those expected, or too many failures.
        """
        failures = 0
        while True:
            try:
                answer = self.once(method, url, headers=headers, body=body)
                if answer.status in expected:
                    return answer
                raise refusal(self.reference, answer)
            except TransientError as error:
                failures += 1
                self.pause(failures, error)

    def once(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> Answer:
        """One attempt, authenticated.

        Raises:
            TransientError: it broke off, or the registry is at a loss for now.
        """
        response = self.open(method, url, headers=headers, body=body)
        try:
            data = response.read(_MAX_ANSWER_BYTES + 1)
            if len(data) > _MAX_ANSWER_BYTES:
                raise RemoteError(f"{self.reference.host} answers without end", "check the name")
        except (OSError, HTTPException) as error:
            self.drop()
            raise TransientError(words(error)) from error
        return Answer(response.status, dict(response.headers.items()), data)

    def open(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> HTTPResponse:
        """Send a request and return the answer, its body unread.

        Raises:
            TransientError: as ``once``.
        """
        try:
            for _ in range(2):
                response = self._follow(method, url, dict(headers or {}), body)
                if response.status != 401:
                    break
                challenge = response.headers.get("WWW-Authenticate", "")
                response.read()
                if not self._login.answer(challenge, self._send):
                    break
        except ssl.SSLCertVerificationError as error:
            self.drop()
            raise RemoteError(
                f"{self.reference.host} has no certificate that is trusted here: {error.reason}",
                "check the name, or set SSL_CERT_FILE to your authority's",
            ) from error
        except (OSError, HTTPException) as error:
            self.drop()
            if isinstance(error, socket.gaierror) and error.errno == socket.EAI_NONAME:
                raise RemoteError(
                    f"{self.reference.host} is not found", "check the name, or the network"
                ) from error
            raise TransientError(words(error)) from error
        if response.status in TRANSIENT:
            self.drop()
            raise TransientError(f"it answers {response.status}")
        return response

    def pause(self, failures: int, error: Exception) -> None:
        """Wait before the next attempt, or raise where there is none."""
        self.drop()
        patience = self.patience
        if failures >= patience.attempts:
            raise RemoteError(
                f"{self.reference.host} failed {failures} times: {error}", "try again later"
            ) from error
        pause = min(patience.backoff_s * 2 ** (failures - 1), patience.longest_pause_s)
        time.sleep(pause * random.uniform(0.5, 1))  # noqa: S311  # spreads clients out

    def drop(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _follow(
        self, method: str, url: str, headers: dict[str, str], body: bytes | None
    ) -> HTTPResponse:
        """Send a request, and reads where the registry sends them, to storage for example."""
        for _ in range(_MAX_REDIRECTS + 1):
            response = self._send(method, url, headers, body)
            if response.status not in _REDIRECTS or method not in ("GET", "HEAD"):
                return response
            response.read()
            url = urljoin(url, response.headers.get("Location", ""))
        raise RemoteError(f"{self.reference.host} redirects in circles", "check the registry")

    def _send(
        self, method: str, url: str, headers: dict[str, str], body: bytes | None
    ) -> HTTPResponse:
        parts = urlsplit(url)
        connection = self._connect(parts)
        sent = {"User-Agent": "coldpress", **headers}
        # What another host is told, such as a storage service, must not be our password.
        if parts.netloc == self.reference.address:
            if self._login.is_stale:
                self._login.renew(self._send)
                connection = self._connect(parts)
            if self._login.authorization:
                sent["Authorization"] = self._login.authorization
        target = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
        try:
            connection.request(method, target, body=body, headers=sent)
        except (BrokenPipeError, ConnectionResetError):
            # It may have answered, with a 401 say, before it read all that was sent.
            if body is None:
                raise
        else:
            self.sent_bytes += len(body or b"")
        return connection.getresponse()

    def _connect(self, parts: SplitResult) -> HTTPConnection:
        if parts.scheme not in ("https", "http") or not parts.hostname:
            raise RemoteError(f"{self.reference.host} leads to no address", "check the registry")
        if parts.scheme == "http" and not self._insecure:
            raise RemoteError(
                f"{self.reference.host} leads to plain HTTP", "allow that with --insecure"
            )
        place = parts.scheme, parts.netloc
        if self._connection is not None and self._place == place:
            return self._connection
        self.drop()
        timeout = self.patience.stall_s
        if parts.scheme == "https":
            context = ssl.create_default_context()
            self._connection = HTTPSConnection(
                parts.hostname, parts.port, timeout=timeout, context=context
            )
        else:
            self._connection = HTTPConnection(parts.hostname, parts.port, timeout=timeout)
        self._place = place
        return self._connection
