"""The one way to run another program: no shell, a deadline, its output captured."""

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from coldpress.errors import ToolError


def find(program: str, install: str) -> str:
    """Return the full path of ``program``; ``install`` tells how to get it if it is missing."""
    path = shutil.which(program)
    if path is None:
        raise ToolError(f"{program} is not installed", install)
    return path


def run(
    argv: Sequence[str | Path],
    *,
    timeout_s: float,
    install: str = "",
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: str = "",
) -> str:
    """Run a program to its end and return its standard output.

    Args:
        argv: program and arguments; never passed through a shell.
        timeout_s: seconds after which the program is killed.
        install: how to install the program, for the hint.
        env: variables set on top of the current environment.
        stdin: what the program reads.

    Raises:
        ToolError: the program is missing, fails (with the last lines of its stderr) or is late.
    """
    command = [str(arg) for arg in argv]
    name = Path(command[0]).name
    try:
        done = subprocess.run(
            command,
            input=stdin,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            env={**os.environ, **(env or {})},
            cwd=cwd,
            check=False,
        )
    except FileNotFoundError as error:
        raise ToolError(f"{name} is not installed", install) from error
    except subprocess.TimeoutExpired as error:
        raise ToolError(f"{name} did not finish in {timeout_s:.0f} s", install) from error
    if done.returncode != 0:
        last = [line for line in done.stderr.strip().splitlines() if line.strip()][-3:]
        raise ToolError(f"{name} failed ({done.returncode}): {' | '.join(last)}", install)
    return done.stdout
