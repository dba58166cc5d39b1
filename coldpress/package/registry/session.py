"""Requests to one registry: a kept connection, tokens that are renewed, retries within limits.

Source: OCI distribution specification 1.1; docker's token authentication specification.
"""

import json
import random
import re
import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from urllib.parse import SplitResult, urlencode, urljoin, urlsplit

from coldpress.errors import IntegrityError, RemoteError, one_line
from coldpress.package.registry.credentials import Credentials, find
from coldpress.package.registry.reference import Reference

TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
_REDIRECTS = (301, 302, 303, 307, 308)
_MAX_REDIRECTS = 5
_MAX_ANSWER_BYTES = 16 << 20
_PARAMETER = re.compile(r'(\w+)="([^"]*)"')
# A token is renewed this long before its end; one that does not tell its end lasts a minute.
_TOKEN_MARGIN_S = 10
_TOKEN_DEFAULT_S = 60


@dataclass(frozen=True)
class Patience:
    """When to try again: attempts in a row without progress, and the pauses between them."""

    attempts: int = 6
    backoff_s: float = 0.5
    longest_pause_s: float = 20
    stall_s: float = 60


@dataclass(frozen=True)
class Answer:
    """A registry's answer, its body read."""

    status: int
    headers: Mapping[str, str]
    data: bytes

    def header(self, name: str) -> str:
        """A header, however its name is written; empty without one."""
        found = (value for key, value in self.headers.items() if key.lower() == name.lower())
        return next(found, "")


class TransientError(Exception):
    """Another attempt may go better."""


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
        self._authorization = ""
        self._valid_until_s = float("inf")
        self._challenge = ""
        self._credentials: Credentials | None = None
        self._asked_for_credentials = False

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
                raise self.refusal(answer)
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
            raise TransientError(_words(error)) from error
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
                self._challenge = response.headers.get("WWW-Authenticate", "")
                response.read()
                if not self._authenticate():
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
            raise TransientError(_words(error)) from error
        if response.status in TRANSIENT:
            self.drop()
            raise TransientError(f"it answers {response.status}")
        return response

    def refusal(self, answer: Answer) -> RemoteError:
        """What an unexpected status means."""
        said = _said(answer)
        match answer.status:
            case 401 | 403:
                text, hint = "is not allowed", f"log in: `docker login {self.reference.host}`"
            case 404:
                text, hint = "does not exist", "check the name"
            case status:
                text, hint = f"is answered by {status}", "check the registry"
        return RemoteError(f"{self.reference} {text}{said}", hint)

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
            if time.monotonic() > self._valid_until_s:
                self._authenticate()
                connection = self._connect(parts)
            if self._authorization:
                sent["Authorization"] = self._authorization
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

    def _authenticate(self) -> bool:
        """Answer the last challenge; False where we have nothing to answer with."""
        if not self._asked_for_credentials:
            self._asked_for_credentials = True
            self._credentials = find(self.reference.host)
        kind, _, rest = self._challenge.partition(" ")
        if kind.lower() == "basic" and self._credentials and self._credentials.user:
            self._authorization = self._credentials.basic
            return True
        if kind.lower() == "bearer":
            self._authorization = ""
            self._fetch_token(dict(_PARAMETER.findall(rest)))
            return True
        return False

    def _fetch_token(self, challenge: dict[str, str]) -> None:
        """Get a token from the service that the registry names."""
        self._valid_until_s = float("inf")
        realm = challenge.get("realm", "")
        wanted = {key: challenge[key] for key in ("service", "scope") if key in challenge}
        known = self._credentials
        headers: dict[str, str] = {}
        if known and known.identity_token:
            form = {"grant_type": "refresh_token", "refresh_token": known.identity_token}
            body = urlencode(wanted | form | {"client_id": "coldpress"}).encode()
            headers["Content-Type"] = "application/x-www-form-urlencoded"
            response = self._send("POST", realm, headers, body)
        else:
            if known:
                headers["Authorization"] = known.basic
            scopes = [("scope", it) for it in wanted.pop("scope", "").split(" ") if it]
            query = urlencode([*wanted.items(), *scopes])
            join = "&" if "?" in realm else "?"
            response = self._send("GET", f"{realm}{join}{query}", headers, None)
        data = response.read(_MAX_ANSWER_BYTES)
        if response.status in TRANSIENT:
            raise TransientError(f"its token service answers {response.status}")
        if response.status != 200:
            raise self.refusal(Answer(response.status, {}, data))
        try:
            answer = json.loads(data)
            token = answer.get("token") or answer["access_token"]
            lasts_s = float(answer.get("expires_in") or _TOKEN_DEFAULT_S)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RemoteError(
                f"{self.reference.host}'s token service gives no token", "try again later"
            ) from error
        self._authorization = f"Bearer {token}"
        self._valid_until_s = time.monotonic() + max(lasts_s - _TOKEN_MARGIN_S, lasts_s / 2)


def check_digest(session: Session, answer: Answer, digest: str) -> None:
    """Hold the digest that a registry states against ours; it need not state one.

    Raises:
        IntegrityError: they differ.
    """
    stated = answer.header("Docker-Content-Digest")
    if stated and stated != digest:
        raise IntegrityError(
            f"{session.reference.host} speaks of {stated[:80]}, the bytes are {digest}",
            "do not deploy this; try again",
        )


def _said(answer: Answer) -> str:
    """The registry's own words, if it has any."""
    try:
        first = json.loads(answer.data)["errors"][0]
        return one_line(f": {first.get('message') or first['code']}")
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        return ""


def _words(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "it sent nothing for too long"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
