"""What a reader of a report needs to repeat it."""

import datetime
import os
import subprocess
from pathlib import Path
from typing import Any

from coldpress import libllama
from coldpress.evaluate.describe import cpu_model


def conditions(command: str) -> dict[str, Any]:
    """When, from which commit, by which command, on what."""
    git = ["git", "rev-parse", "HEAD"]
    root = Path(__file__).resolve().parents[1]
    commit = subprocess.run(git, capture_output=True, text=True, check=True, cwd=root)
    return {
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "commit": commit.stdout.strip(),
        "command": command,
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "llama_cpp": f"as vendored by llama-cpp-python {libllama.version()}",
    }
