"""Addresses of remote checkpoints, turned into HTTP requests: http(s), ``s3://`` and ``gs://``.

Whatever grants access (a presigned URL's query, a token) travels with requests only: it is in no
message, log line or ``repr``.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from urllib.parse import SplitResult, quote, urlsplit

from coldpress.errors import InputError, ToolError, UsageError

_SCHEME = re.compile(r"(https?|s3|gs)://", re.IGNORECASE)
_TOKEN = "COLDPRESS_FETCH_TOKEN"  # noqa: S105  # the variable's name
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_METADATA_S = 2.0
_MAX_TOKEN_BYTES = 64 << 10


@dataclass(frozen=True)
class Target:
    """One object on an HTTP server."""

    scheme: str
    host: str
    port: int
    path: str
    query: str = field(default="", repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    def __str__(self) -> str:
        """The address without its query."""
        standard = self.port == (443 if self.scheme == "https" else 80)
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}{'' if standard else f':{self.port}'}{self.path}"

    @property
    def request_path(self) -> str:
        """What stands in the request line."""
        return f"{self.path}?{self.query}" if self.query else self.path


@dataclass(frozen=True)
class Address:
    """Where a checkpoint lies on a network: a folder with an index, or one GGUF."""

    text: str = field(repr=False)

    def __str__(self) -> str:
        """The address without its query."""
        return self.text.partition("?")[0]

    @property
    def is_file(self) -> bool:
        """Whether it names a GGUF; else a folder."""
        return urlsplit(self.text).path.endswith(".gguf")

    def check(self) -> None:
        """Raise a ``UsageError`` if it cannot be fetched from, without asking anybody."""
        parts = urlsplit(self.text)
        if parts.scheme.lower() in ("http", "https"):
            self.target()
        elif not parts.netloc:
            raise UsageError(f"{self} names no bucket", "give s3://bucket/folder")

    def target(self, name: str | None = None) -> Target:
        """The request for the object itself, or for ``name`` in its folder.

        Raises:
            UsageError: the address is incomplete, or a token would travel unencrypted.
            ToolError: ``s3://`` without boto3, or without credentials.
        """
        parts = urlsplit(self.text)
        path = parts.path
        if name is not None:
            folder = path.rpartition("/")[0] if self.is_file else path.rstrip("/")
            path = f"{folder}/{name}"
        match parts.scheme.lower():
            case "s3":
                return _http(urlsplit(_presigned(parts.netloc, path.lstrip("/"))), {})
            case "gs":
                return _google(parts.netloc, path)
            case _:
                token = os.environ.get(_TOKEN)
                return _http(parts._replace(path=path), _bearer(token))


def is_address(text: str) -> bool:
    """Whether a place is on a network rather than in the file system."""
    return _SCHEME.match(text) is not None


def follow(target: Target, location: str) -> Target:
    """Where a redirect leads. A token is for the host that it was given for.

    Raises:
        InputError: it leaves http or https for another scheme.
    """
    parts = urlsplit(location)
    if not parts.scheme and not parts.netloc:
        return replace(target, path=parts.path, query=parts.query)
    moved = _http(parts._replace(scheme=parts.scheme or target.scheme), {})
    if moved.scheme != target.scheme:
        raise InputError(
            f"{target} redirects from {target.scheme} to {moved.scheme}",
            "give the address that it leads to",
        )
    same_host = (moved.host, moved.port) == (target.host, target.port)
    return replace(moved, headers=target.headers if same_host else {})


def _http(parts: SplitResult, headers: dict[str, str]) -> Target:
    try:
        scheme, host, port = parts.scheme.lower(), parts.hostname, parts.port
    except ValueError as error:  # the message would repeat the whole address
        raise UsageError("the address has no valid port", "give https://host:port/path") from error
    if scheme not in ("http", "https") or not host or parts.username is not None:
        raise UsageError(
            f"{parts.scheme}://{parts.hostname or ''} is not an address to fetch from",
            f"give https://host/path; a token goes into {_TOKEN}",
        )
    if headers and scheme == "http" and host not in _LOOPBACK:
        raise UsageError(f"{_TOKEN} would travel unencrypted to {host}", "give an https address")
    path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
    return Target(
        scheme, host, port or (443 if scheme == "https" else 80), path, parts.query, headers
    )


def _bearer(token: str | None) -> dict[str, str]:
    if token and not token.isprintable():
        raise UsageError(f"{_TOKEN} has unprintable characters", "set it to the token alone")
    return {"Authorization": f"Bearer {token}"} if token else {}


def _presigned(bucket: str, key: str) -> str:
    """An HTTPS address for an S3 object; boto3 knows credentials, regions and endpoints."""
    try:
        import boto3
        from botocore.exceptions import BotoCoreError
    except ImportError as error:
        raise ToolError("s3:// needs boto3", "pip install 'coldpress[aws]'") from error
    try:
        client = boto3.client("s3")
        given = {"Bucket": bucket, "Key": key}
        return str(client.generate_presigned_url("get_object", Params=given, ExpiresIn=3600))
    except (BotoCoreError, ValueError) as error:
        raise ToolError(f"s3://{bucket}: {error}", "check AWS credentials and region") from error


def _google(bucket: str, path: str) -> Target:
    """An object of Google Cloud Storage by its XML API; without any token it must be public."""
    base = os.environ.get("STORAGE_EMULATOR_HOST", "https://storage.googleapis.com")
    base = base if "://" in base else f"http://{base}"
    headers = _bearer(os.environ.get(_TOKEN) or _metadata_token())
    return _http(urlsplit(f"{base.rstrip('/')}/{bucket}{path}"), headers)


def _metadata_token() -> str | None:
    """The token of the machine's own service account; None outside Google Cloud."""
    from http.client import HTTPConnection, HTTPException

    host = os.environ.get("GCE_METADATA_HOST", "metadata.google.internal")
    connection = HTTPConnection(host, timeout=_METADATA_S)
    path = "/computeMetadata/v1/instance/service-accounts/default/token"
    try:
        connection.request("GET", path, headers={"Metadata-Flavor": "Google"})
        response = connection.getresponse()
        body = response.read(_MAX_TOKEN_BYTES)
        return str(json.loads(body)["access_token"]) if response.status == 200 else None
    except (OSError, HTTPException, ValueError, KeyError, TypeError):
        return None
    finally:
        connection.close()
