"""Messages to a WebSocket that API Gateway holds: each is a signed request to its management API."""

import os
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from urllib.parse import quote, urlsplit

from coldpress.errors import ColdpressError
from coldpress.serve.aws import sigv4

ENDPOINT = "COLDPRESS_CONNECTIONS_ENDPOINT"
"""Where the management API is, if not at the domain that events name: behind a domain of one's own."""
_TIMEOUT_S = 10
_GONE = 410


class GoneError(ColdpressError):
    """The client has left."""


class Connection:
    """One client's WebSocket.

    Raises:
        ToolError: the function has no credentials.
    """

    def __init__(self, domain: str, stage: str, connection_id: str) -> None:
        root = os.environ.get(ENDPOINT) or f"https://{domain}/{stage}"
        self._url = f"{root.rstrip('/')}/@connections/{quote(connection_id, safe='')}"
        self._credentials = sigv4.from_environment()
        parts = urlsplit(self._url)
        make = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        self._path = parts.path
        self._connection = make(parts.netloc, timeout=_TIMEOUT_S)

    def send(self, message: bytes) -> None:
        """Send one message.

        Raises:
            GoneError: the client has left.
            ColdpressError: it cannot be sent.
        """
        try:
            response = self._post(message)
        except (OSError, HTTPException):
            # A kept connection may have been closed meanwhile.
            self._connection.close()
            response = self._post(message)
        told = response.read(1 << 12)
        if response.status == _GONE:
            raise GoneError("the client has left", "nothing is to be done")
        if response.status >= 300:
            raise ColdpressError(
                f"API Gateway refuses a message: {response.status} {told[:200]!r}",
                "allow the function execute-api:ManageConnections",
            )

    def close(self) -> None:
        """Close the connection to the management API, not the client's."""
        self._connection.close()

    def _post(self, message: bytes) -> HTTPResponse:
        signed = sigv4.headers("POST", self._url, message, "execute-api", self._credentials)
        self._connection.request("POST", self._path, message, signed)
        return self._connection.getresponse()
