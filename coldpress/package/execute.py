"""Show or run the commands that an artifact of ``package`` is deployed by."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from coldpress import artifact, progress, tools
from coldpress.errors import InputError
from coldpress.package.deploy import COMMANDS
from coldpress.package.steps import Step, Steps

_TIMEOUT_S = 3600
_MAX_BYTES = 1 << 20


@dataclass(frozen=True)
class Deployed:
    """The commands in order, and whether they were run."""

    path: Path
    commands: tuple[str, ...]
    executed: bool


def deploy(folder: Path, values: Mapping[str, str], *, execute: bool) -> Deployed:
    """Fill an artifact's commands in, and run them if asked to; the first failure ends it.

    Raises:
        InputError: the folder is no artifact of ``package``.
        IntegrityError: it is damaged.
        UsageError: a parameter is missing or unknown.
        ToolError: a program is missing or fails.
    """
    steps = _read(folder).fill(values)
    if execute:
        artifact.verify(folder)
        for step in steps:
            tools.find(step.argv[0], f"install {step.argv[0]}; see DEPLOY.md")
        for step in steps:
            progress.note(f"  {step.line()}")
            _run(step, folder)
    return Deployed(folder, tuple(step.line() for step in steps), execute)


def _read(folder: Path) -> Steps:
    path = folder / COMMANDS
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError("too long")
        data = json.loads(path.read_bytes())
        steps = tuple(
            Step(tuple(each["argv"]), tuple(each["input_of"]), each["output"])
            for each in data["steps"]
        )
        return Steps(data["parameters"], steps)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder} has no commands to deploy it by", "give a folder that package wrote"
        ) from error


def _run(step: Step, folder: Path) -> None:
    given = tools.run(step.input_of, timeout_s=_TIMEOUT_S, cwd=folder) if step.input_of else ""
    said = tools.run(step.argv, timeout_s=_TIMEOUT_S, cwd=folder, stdin=given)
    if step.output:
        (folder / step.output).write_text(said, encoding="utf-8")
