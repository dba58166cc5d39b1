"""What Lambda's callers send."""

import base64
from typing import Any

from coldpress.serve.api.fields import ApiError


def at(event: Any, *keys: str) -> Any:
    """A value inside nested objects; None where there is none."""
    value = event
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def body_of(event: dict[str, Any]) -> bytes:
    """An event's body.

    Raises:
        ApiError: 400: it cannot be read.
    """
    text = event.get("body") or ""
    try:
        return base64.b64decode(text) if event.get("isBase64Encoded") else text.encode()
    except (ValueError, AttributeError, TypeError) as error:
        raise ApiError(400, "the event's body cannot be read", "bad_event") from error
