"""A client of AWS Lambda's Runtime API, by the standard library alone, with response streaming.

AWS's own runtime client for Python cannot stream.

Source: docs.aws.amazon.com/lambda, "Using the Lambda runtime API" and "Building a custom runtime".
"""

import base64
import json
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPConnection
from typing import Any

from coldpress.errors import ToolError

ROOT = "/2018-06-01/runtime"
HTTP_INTEGRATION = "application/vnd.awslambda.http-integration-response"


@dataclass(frozen=True)
class Invocation:
    """One event to be answered before ``deadline_s``, in seconds since the epoch."""

    request_id: str
    deadline_s: float
    event: Any


@dataclass(frozen=True)
class FunctionError:
    """What Lambda shows of a failure."""

    type: str
    message: str

    def body(self) -> bytes:
        """The JSON that Lambda expects."""
        return json.dumps({"errorType": self.type, "errorMessage": self.message}).encode()


class RuntimeApi:
    """The requests of the Runtime API over one kept connection; one invocation at a time."""

    def __init__(self, address: str) -> None:
        self._connection = HTTPConnection(address)  # no timeout: an idle function waits for hours

    def next(self) -> Invocation:
        """Wait for the next event."""
        self._connection.request("GET", f"{ROOT}/invocation/next")
        response = self._connection.getresponse()
        body = response.read()
        return Invocation(
            request_id=response.headers["Lambda-Runtime-Aws-Request-Id"],
            deadline_s=int(response.headers["Lambda-Runtime-Deadline-Ms"]) / 1000,
            event=_read(body),
        )

    def restored(self) -> None:
        """Say that all is ready for the snapshot; returns in each environment that is started from it.

        Source: AWS's runtime clients for Python and Java, which ask for ``/runtime/restore/next``; no
        manual tells of it.

        Raises:
            ToolError: Lambda takes no snapshot here.
        """
        self._connection.request("GET", f"{ROOT}/restore/next")
        response = self._connection.getresponse()
        response.read()
        # The snapshot's connection may be dead where it is restored.
        self.reset()
        if response.status != HTTPStatus.OK:
            raise ToolError(
                f"Lambda answered {response.status} to restore/next", "is SnapStart turned on?"
            )

    def respond(self, invocation: Invocation, body: bytes) -> None:
        """Answer in one piece."""
        self._post(f"/invocation/{invocation.request_id}/response", body, {})

    def fail(self, invocation: Invocation, error: FunctionError) -> None:
        """Report that an invocation failed."""
        path = f"/invocation/{invocation.request_id}/error"
        self._post(path, error.body(), {"Lambda-Runtime-Function-Error-Type": error.type})

    def fail_init(self, error: FunctionError) -> None:
        """Report that the function cannot start; only before the first ``next``."""
        self._post("/init/error", error.body(), {"Lambda-Runtime-Function-Error-Type": error.type})

    def stream(self, invocation: Invocation, prelude: dict[str, Any] | None) -> "ResponseStream":
        """Begin an answer in pieces; ``prelude``: HTTP status and headers for a function URL."""
        path = f"{ROOT}/invocation/{invocation.request_id}/response"
        return ResponseStream(self._connection, path, prelude)

    def reset(self) -> None:
        """Drop the connection; the next request opens another."""
        self._connection.close()

    def _post(self, path: str, body: bytes, headers: dict[str, str]) -> None:
        headers = {"Content-Type": "application/json", **headers}
        self._connection.request("POST", ROOT + path, body, headers)
        self._connection.getresponse().read()


def _read(event: bytes) -> Any:
    """An event; None for what cannot be read, such as JSON nested a thousandfold."""
    try:
        return json.loads(event)
    except (ValueError, RecursionError):
        return None


class ResponseStream:
    """One chunked POST. http.client writes no trailers, so the chunks are written here."""

    def __init__(
        self, connection: HTTPConnection, path: str, prelude: dict[str, Any] | None
    ) -> None:
        self._connection = connection
        connection.putrequest("POST", path)
        connection.putheader("Lambda-Runtime-Function-Response-Mode", "streaming")
        connection.putheader("Transfer-Encoding", "chunked")
        connection.putheader(
            "Trailer", "Lambda-Runtime-Function-Error-Type, Lambda-Runtime-Function-Error-Body"
        )
        kind = "application/octet-stream" if prelude is None else HTTP_INTEGRATION
        connection.putheader("Content-Type", kind)
        connection.endheaders()
        if prelude is not None:
            self.write(json.dumps(prelude).encode() + b"\0" * 8)

    def write(self, data: bytes) -> None:
        """Send one piece at once."""
        if data:  # an empty chunk would end the stream
            self._connection.send(b"%x\r\n%b\r\n" % (len(data), data))

    def close(self, error: FunctionError | None = None) -> None:
        """End the answer; an error after the first byte travels in the trailers."""
        trailers = b""
        if error is not None:
            body = base64.b64encode(error.body()).decode()
            trailers = (
                f"Lambda-Runtime-Function-Error-Type: {error.type}\r\n"
                f"Lambda-Runtime-Function-Error-Body: {body}\r\n"
            ).encode()
        self._connection.send(b"0\r\n" + trailers + b"\r\n")
        self._connection.getresponse().read()
