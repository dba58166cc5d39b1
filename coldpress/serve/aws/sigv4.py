"""Signs a request to an AWS service, by the standard library alone.

Source: docs.aws.amazon.com/IAM, "Create a signed AWS API request" (Signature Version 4).
"""

import hashlib
import hmac
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import quote, urlsplit

from coldpress.errors import ToolError

_ALGORITHM = "AWS4-HMAC-SHA256"


@dataclass(frozen=True)
class Credentials:
    """Who signs, and for which region."""

    key_id: str
    secret: str
    token: str
    region: str


def from_environment() -> Credentials:
    """The credentials that Lambda gives its functions.

    Raises:
        ToolError: there are none.
    """
    try:
        return Credentials(
            os.environ["AWS_ACCESS_KEY_ID"],
            os.environ["AWS_SECRET_ACCESS_KEY"],
            os.environ.get("AWS_SESSION_TOKEN", ""),
            os.environ["AWS_REGION"],
        )
    except KeyError as error:
        raise ToolError(f"{error.args[0]} is not set", "give the function a role") from error


def headers(
    method: str, url: str, body: bytes, service: str, by: Credentials, now: datetime | None = None
) -> dict[str, str]:
    """The headers that sign a request without a query; ``url`` with its path encoded once."""
    parts = urlsplit(url)
    moment = (now or datetime.now(UTC)).strftime("%Y%m%dT%H%M%SZ")
    scope = f"{moment[:8]}/{by.region}/{service}/aws4_request"
    signed = {"host": parts.netloc, "x-amz-date": moment}
    if by.token:
        signed["x-amz-security-token"] = by.token
    names = ";".join(sorted(signed))
    canonical = "\n".join(
        [
            method,
            quote(parts.path or "/", safe="/-_.~"),  # once more: all services do, but S3
            "",
            *(f"{name}:{signed[name]}" for name in sorted(signed)),
            "",
            names,
            hashlib.sha256(body).hexdigest(),
        ]
    )
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    key = f"AWS4{by.secret}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    to_sign = f"{_ALGORITHM}\n{moment}\n{scope}\n{digest}".encode()
    signature = hmac.digest(key, to_sign, "sha256").hex()
    authorization = (
        f"{_ALGORITHM} Credential={by.key_id}/{scope}, SignedHeaders={names}, Signature={signature}"
    )
    return {**signed, "authorization": authorization}
