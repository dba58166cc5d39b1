"""What a registry answers, and what that means."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from coldpress.errors import IntegrityError, RemoteError, one_line
from coldpress.package.registry.reference import Reference

TRANSIENT = (408, 425, 429, 500, 502, 503, 504)


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


def refusal(reference: Reference, answer: Answer) -> RemoteError:
    """What an unexpected status means."""
    said = _said(answer)
    match answer.status:
        case 401 | 403:
            text, hint = "is not allowed", f"log in: `docker login {reference.host}`"
        case 404:
            text, hint = "does not exist", "check the name"
        case status:
            text, hint = f"is answered by {status}", "check the registry"
    return RemoteError(f"{reference} {text}{said}", hint)


def check_digest(reference: Reference, answer: Answer, digest: str) -> None:
    """Hold the digest that a registry states against ours; it need not state one.

    Raises:
        IntegrityError: they differ.
    """
    stated = answer.header("Docker-Content-Digest")
    if stated and stated != digest:
        raise IntegrityError(
            f"{reference.host} speaks of {stated[:80]}, the bytes are {digest}",
            "do not deploy this; try again",
        )


def words(error: Exception) -> str:
    """What went wrong on the way."""
    if isinstance(error, TimeoutError):
        return "it sent nothing for too long"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _said(answer: Answer) -> str:
    """The registry's own words, if it has any."""
    try:
        first = json.loads(answer.data)["errors"][0]
        return one_line(f": {first.get('message') or first['code']}")
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        return ""
