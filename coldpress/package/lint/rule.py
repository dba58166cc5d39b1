"""What a rule is: one thing that a platform refuses or punishes, and who says so."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from coldpress.package.lint.image import Image
from coldpress.package.lint.rootfs import Node
from coldpress.package.lint.scan import Scanned

Host = Literal["lambda", "cloudrun"]
"""Whose rules."""
Severity = Literal["error", "warning"]
Check = Callable[["Subject", Host], Iterator[str]]

LAMBDA_ERROR: Mapping[Host, Severity] = {"lambda": "error"}
LAMBDA_WARNING: Mapping[Host, Severity] = {"lambda": "warning"}
CLOUDRUN_WARNING: Mapping[Host, Severity] = {"cloudrun": "warning"}
ERROR: Mapping[Host, Severity] = {"lambda": "error", "cloudrun": "error"}
WARNING: Mapping[Host, Severity] = {"lambda": "warning", "cloudrun": "warning"}

LAMBDA_IMAGES = "https://docs.aws.amazon.com/lambda/latest/dg/images-create.html"
CLOUDRUN_CONTRACT = "https://cloud.google.com/run/docs/container-contract"
IMAGE_SPEC = "https://github.com/opencontainers/image-spec/blob/main"


@dataclass(frozen=True)
class Subject:
    """An image and what its layers hold; ``limit_bytes`` is the largest unpacked size, if not the platform's."""

    image: Image
    scanned: Scanned
    limit_bytes: int | None = None

    def noted(self, rule: str) -> Iterator[str]:
        """What the scan of the layers found for a rule."""
        found = self.scanned.noted.get(rule)
        if found is None:
            return
        yield from found.examples
        if found.count > len(found.examples):
            yield f"and {found.count - len(found.examples)} more"

    def allows(self, node: Node, bit: int, target: Host) -> bool:
        """Whether the user that the platform runs may do ``bit`` (4 read, 1 execute) with a node.

        Lambda runs as a user that owns nothing; Cloud Run as the image says.
        """
        if target == "lambda":
            return bool(node.mode & bit)
        user, _, group = str(self.image.run.get("User") or "0").partition(":")
        if user in ("0", "root"):
            return bit == 4 or node.kind == "folder" or bool(node.mode & 0o111)
        if (
            not user.isdigit()
        ):  # its number is in /etc/passwd, which is not read: anyone's bit will do
            return bool(node.mode & bit * 0o111)
        if int(user) == node.uid:
            return bool(node.mode & bit << 6)
        if group.isdigit() and int(group) == node.gid:
            return bool(node.mode & bit << 3)
        return bool(node.mode & bit)


@dataclass(frozen=True)
class Rule:
    """A check with its name, what it means, where it applies how gravely, and its source."""

    id: str
    severities: Mapping[Host, Severity]
    sentence: str
    source: str
    check: Check


def rule(
    name: str, severities: Mapping[Host, Severity], sentence: str, source: str
) -> Callable[[Check], Rule]:
    """Make a rule of a function that yields what breaks it."""
    return lambda check: Rule(name, severities, sentence, source, check)
