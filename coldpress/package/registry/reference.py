"""What names an image in a registry: ``HOST[:PORT]/REPOSITORY[:TAG][@DIGEST]``."""

import re
from dataclasses import dataclass

from coldpress.errors import UsageError

_PART = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_FORM = re.compile(
    rf"(?P<repository>{_PART}(?:/{_PART})*)(?::(?P<tag>\w[\w.-]{{0,127}}))?"
    r"(?:@(?P<digest>sha256:[0-9a-f]{64}))?",
    re.ASCII,
)
_HOST = re.compile(r"([A-Za-z0-9.-]+|\[[0-9a-fA-F:]+\])(?::\d{1,5})?")
_LOOPBACK = re.compile(r"(localhost|127(\.\d{1,3}){3}|\[::1\])(:\d+)?")


@dataclass(frozen=True)
class Reference:
    """A name; ``tag`` and ``digest`` are empty where they are not given."""

    host: str
    repository: str
    tag: str = ""
    digest: str = ""

    def __str__(self) -> str:
        """As it is written."""
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.host}/{self.repository}{tag}" + (f"@{self.digest}" if self.digest else "")

    @property
    def wanted(self) -> str:
        """What to ask the registry for: the digest before the tag, ``latest`` without either."""
        return self.digest or self.tag or "latest"

    @property
    def address(self) -> str:
        """The host that answers; Docker Hub's is not its name."""
        return "registry-1.docker.io" if self.host == "docker.io" else self.host

    @property
    def is_loopback(self) -> bool:
        """Whether it is this machine."""
        return _LOOPBACK.fullmatch(self.host) is not None


def looks_like(text: str) -> bool:
    """Whether a text names a registry's image rather than a file."""
    first = text.partition("/")[0]
    named = "/" in text and (":" in first or "." in first.strip(".") or first == "localhost")
    return named and not text.startswith((".", "/"))


def parse(text: str) -> Reference:
    """Read a reference; without a host it is Docker Hub's.

    Raises:
        UsageError: it is none.
    """
    first, slash, rest = text.partition("/")
    if not (slash and ("." in first or ":" in first or first == "localhost")):
        first, rest = "docker.io", text if slash else f"library/{text}"
    found = _FORM.fullmatch(rest)
    if not found or not _HOST.fullmatch(first) or len(rest) > 512:
        raise UsageError(
            f"{text!r} names no image in a registry", "such as ghcr.io/me/model:1, in lower case"
        )
    return Reference(first, found["repository"], found["tag"] or "", found["digest"] or "")
