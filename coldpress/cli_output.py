"""What commands have in common: the folder they write, and how their result is printed."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

Out = Annotated[Path, typer.Option("--out", "-o", help="folder of the artifact to write")]
Json = Annotated[bool, typer.Option("--json", help="print the result as one JSON line")]


def print_result(result: Any, as_json: bool, text: str | None = None) -> None:
    """Print a result: as JSON, as ``text``, or its fields on stderr and its path on stdout."""
    if as_json:
        data = result if isinstance(result, dict) else dataclasses.asdict(result)
        print(json.dumps(data, default=str, ensure_ascii=False))
        return
    if text is not None:
        print(text)
        return
    for name, value in vars(result).items():
        print(f"  {name:<20} {value}", file=sys.stderr)
    print(getattr(result, "path", ""))
