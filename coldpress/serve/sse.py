"""The client's side of an answer in pieces: server-sent events of OpenAI's API."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

from coldpress.errors import ToolError


def chunks(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """The chunks of an answer as they arrive.

    Raises:
        ToolError: the server says under way that it failed.
    """
    for line in lines:
        if line.startswith(b"data: {"):
            chunk: dict[str, Any] = json.loads(line.removeprefix(b"data: "))
            if "choices" not in chunk:
                raise ToolError(f"the runtime failed: {chunk['error']['message']}", "try again")
            yield chunk
