"""Where an answer was cut, signed: any instance that knows the secret goes on with it.

A cursor holds the answer's tokens and its seed; what is drawn for a token hangs on nothing else. It is
of one request to one model, which the signature binds, and it is good for an hour. It may be used
twice: the answer goes on in the same way.
"""

import base64
import binascii
import hashlib
import hmac
import os
import struct
import time
import zlib
from array import array
from dataclasses import dataclass
from functools import cache

SECRET = "COLDPRESS_RESUME_SECRET"  # noqa: S105  # the variable's name
_LIFETIME_S = 3600
_VERSION = 1
_HEAD = struct.Struct("<BQI")
_MAC_BYTES = 32
_MAX_CHARACTERS = 1 << 20


class CursorError(ValueError):
    """It was not made here, not for this request, or too long ago."""


@dataclass(frozen=True)
class Cursor:
    """The beginning of an answer: its tokens, and the seed of what is drawn."""

    tokens: tuple[int, ...]
    seed: int


def seal(cursor: Cursor, request: bytes) -> str:
    """A cursor as text.

    Args:
        request: digest of the request and the model.
    """
    tokens = array("I", cursor.tokens).tobytes()
    head = _HEAD.pack(_VERSION, int(time.time()) + _LIFETIME_S, cursor.seed)
    body = head + zlib.compress(tokens, 9)
    return base64.urlsafe_b64encode(body + _mac(body, request)).decode()


def unseal(text: str, request: bytes) -> Cursor:
    """Read a cursor.

    Raises:
        CursorError: see there.
    """
    try:
        if len(text) > _MAX_CHARACTERS:
            raise CursorError("it is too long")
        raw = base64.b64decode(text, altchars=b"-_", validate=True)
        if base64.urlsafe_b64encode(raw).decode() != text:
            raise CursorError("it is written otherwise than here")
    except (binascii.Error, ValueError) as error:
        raise CursorError(f"it is not readable: {error}") from error
    body, mac = raw[:-_MAC_BYTES], raw[-_MAC_BYTES:]
    if not hmac.compare_digest(mac, _mac(body, request)):
        raise CursorError("it is not of this request, or not of a server with the same secret")
    version, until_s, seed = _HEAD.unpack_from(body)  # signed: it is what ``seal`` has written
    if version != _VERSION:
        raise CursorError("it is of another version")
    if time.time() > until_s:
        raise CursorError("it has expired")
    return Cursor(tuple(array("I", zlib.decompress(body[_HEAD.size :]))), seed)


def _mac(body: bytes, request: bytes) -> bytes:
    return hmac.digest(_secret(), b"coldpress cursor\0" + request + body, hashlib.sha256)


@cache
def _secret() -> bytes:
    """The instances' common secret; without one, cursors are good for this process alone."""
    shared = os.environ.get(SECRET)
    return shared.encode() if shared else os.urandom(32)
