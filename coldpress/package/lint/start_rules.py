"""Rules on how an image's container starts: platform, command, environment, ports, user."""

import json
import posixpath
import re
from collections.abc import Iterator

from coldpress.package.lint import content
from coldpress.package.lint.image import texts
from coldpress.package.lint.rootfs import Node
from coldpress.package.lint.rule import (
    CLOUDRUN_CONTRACT,
    CLOUDRUN_WARNING,
    ERROR,
    LAMBDA_ERROR,
    LAMBDA_IMAGES,
    LAMBDA_WARNING,
    Host,
    Subject,
    rule,
)

_ENVIRONMENT = "https://docs.aws.amazon.com/lambda/latest/dg/configuration-envvars.html"
_INVOCATION = "https://docs.aws.amazon.com/lambda/latest/dg/troubleshooting-invocation.html"
_ARCHITECTURES: dict[Host, tuple[str, ...]] = {
    "lambda": ("amd64", "arm64"),
    "cloudrun": ("amd64",),
}
_ELF = {"amd64": (64, 62), "arm64": (64, 183)}
# Not LAMBDA_TASK_ROOT and LAMBDA_RUNTIME_DIR: AWS's own base images set them.
_RESERVED = re.compile(
    r"_HANDLER|_X_AMZN_TRACE_ID|AWS_(DEFAULT_)?REGION|AWS_EXECUTION_ENV|AWS_LAMBDA_\w+"
)
_SECRET = re.compile(r"(\w*_)?(SECRET_ACCESS_KEY|SESSION_TOKEN|API_KEY|PASSWORD|SECRET|TOKEN)")
_WRITTEN = ("HOME", "TMPDIR", "XDG_CACHE_HOME", "HF_HOME", "TORCH_HOME", "MPLCONFIGDIR")
_MAX_ENVIRONMENT_BYTES = 4096
_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@rule("operating-system", ERROR, "the platforms run Linux", LAMBDA_IMAGES)
def operating_system(subject: Subject, _target: Host) -> Iterator[str]:
    """By the config."""
    system = subject.image.config.get("os")
    if system != "linux":
        yield f"the image is for {system or 'no system'}"


@rule(
    "architecture",
    ERROR,
    "Lambda runs amd64 and arm64, Cloud Run amd64; neither runs 32-bit programs",
    CLOUDRUN_CONTRACT,
)
def architecture(subject: Subject, target: Host) -> Iterator[str]:
    """By the config."""
    found = subject.image.config.get("architecture")
    if found not in _ARCHITECTURES[target]:
        yield f"the image is for {found or 'no CPU'}"


@rule("no-entrypoint", ERROR, "the image does not say what to start", LAMBDA_IMAGES)
def no_entrypoint(subject: Subject, _target: Host) -> Iterator[str]:
    """Neither Entrypoint nor Cmd."""
    if not _command(subject):
        yield "neither Entrypoint nor Cmd"


@rule(
    "entrypoint-missing",
    ERROR,
    "what the image starts is not in it (Runtime.InvalidEntrypoint)",
    _INVOCATION,
)
def entrypoint_missing(subject: Subject, _target: Host) -> Iterator[str]:
    """The program, or the interpreter that its first line names."""
    if not _command(subject) or "zstd-layer" in subject.scanned.noted:
        return
    program = _program(subject)
    if program is None:
        yield _command(subject)
    elif program.interpreter and not _find(subject, program.interpreter):
        yield f"{program.interpreter}, which interprets {_command(subject)}"


@rule(
    "entrypoint-not-executable",
    ERROR,
    "the user that the platform runs may not execute what the image starts",
    _INVOCATION,
)
def entrypoint_not_executable(subject: Subject, target: Host) -> Iterator[str]:
    """Lambda's user owns nothing: the file needs o+x, and every folder above it."""
    for node in _find(subject, _command(subject)):
        if not subject.allows(node, 1, target):
            kind = "a folder on the way to it" if node.kind == "folder" else "it"
            yield f"{_command(subject)}: {kind} has mode {node.mode:o}"


@rule(
    "entrypoint-architecture",
    ERROR,
    "what the image starts is for another CPU (exec format error)",
    CLOUDRUN_CONTRACT,
)
def entrypoint_architecture(subject: Subject, _target: Host) -> Iterator[str]:
    """A 32-bit program, or one of another machine."""
    program = _program(subject)
    expected = _ELF.get(str(subject.image.config.get("architecture")))
    if program and program.elf and expected and program.elf[:2] != expected:
        yield f"{_command(subject)} is {program.elf[0]}-bit, machine {program.elf[1]}"


@rule(
    "working-directory",
    LAMBDA_ERROR,
    "Lambda wants an absolute working directory (Runtime.InvalidWorkingDir)",
    "https://github.com/openbridge/ob_bulkstash/issues/20",
)
def working_directory(subject: Subject, _target: Host) -> Iterator[str]:
    """Where one is set."""
    folder = subject.image.run.get("WorkingDir")
    if folder and not str(folder).startswith("/"):
        yield str(folder)


@rule(
    "reserved-environment",
    LAMBDA_WARNING,
    "Lambda reserves these variables and sets them itself",
    _ENVIRONMENT,
)
def reserved_environment(subject: Subject, _target: Host) -> Iterator[str]:
    """Whoever reads them gets other values there."""
    yield from (name for name in subject.image.env if _RESERVED.fullmatch(name))


@rule(
    "environment-size",
    LAMBDA_WARNING,
    "Lambda gives a function's variables 4 KB in all",
    "https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html",
)
def environment_size(subject: Subject, _target: Host) -> Iterator[str]:
    """The limit is documented for the function's own; an image's are beside them."""
    size = sum(len(it.encode()) + 1 for it in texts(subject.image.run.get("Env")))
    if size > _MAX_ENVIRONMENT_BYTES:
        yield f"{size:,} bytes"


@rule(
    "secret-in-config",
    ERROR,
    "everyone who can pull the image reads this in its config",
    "https://docs.docker.com/reference/build-checks/secrets-used-in-arg-or-env/",
)
def secret_in_config(subject: Subject, _target: Host) -> Iterator[str]:
    """In variables, labels, arguments or the history."""
    named = [name for name, value in subject.image.env.items() if value and _SECRET.fullmatch(name)]
    yield from (f"the variable {name}" for name in named)
    if not named:
        yield from content.tokens(json.dumps(subject.image.config).encode())


@rule(
    "writes-outside-tmp",
    LAMBDA_WARNING,
    "on Lambda only /tmp can be written",
    LAMBDA_IMAGES,
)
def writes_outside_tmp(subject: Subject, _target: Host) -> Iterator[str]:
    """Variables that name folders to write into."""
    for name in _WRITTEN:
        value = subject.image.env.get(name)
        if value and value != "/tmp" and not value.startswith("/tmp/"):  # noqa: S108
            yield f"{name}={value}"


@rule(
    "port-mismatch",
    CLOUDRUN_WARNING,
    "Cloud Run sends requests to PORT, 8080 by default, and the image exposes others",
    CLOUDRUN_CONTRACT,
)
def port_mismatch(subject: Subject, _target: Host) -> Iterator[str]:
    """Set containerPort, or let the program listen on PORT."""
    exposed = subject.image.run.get("ExposedPorts")
    ports = sorted(exposed) if isinstance(exposed, dict) else []
    wanted = subject.image.env.get("PORT", "8080")
    if ports and not {wanted, f"{wanted}/tcp"} & set(ports):
        yield f"{', '.join(ports)}, not {wanted}"


@rule(
    "root-user",
    CLOUDRUN_WARNING,
    "the container runs as root",
    "https://docs.docker.com/build/building/best-practices/#user",
)
def root_user(subject: Subject, _target: Host) -> Iterator[str]:
    """Lambda runs its own user whatever the image says."""
    user = str(subject.image.run.get("User") or "").partition(":")[0]
    if user in ("", "0", "root"):
        yield f"User is {user or 'not set'}"


def _command(subject: Subject) -> str:
    run = subject.image.run
    words = texts(run.get("Entrypoint")) or texts(run.get("Cmd"))
    return words[0] if words else ""


def _program(subject: Subject) -> Node | None:
    trail = _find(subject, _command(subject))
    return trail[-1] if trail else None


def _find(subject: Subject, command: str) -> list[Node]:
    """The file that a command starts, by its path or by PATH, after the folders that lead there."""
    image, rootfs = subject.image, subject.scanned.rootfs
    if "/" in command:
        folders = [str(image.run.get("WorkingDir") or "/")]
    else:
        folders = image.env.get("PATH", _DEFAULT_PATH).split(":")
    for folder in folders if command else []:
        trail = rootfs.trail(posixpath.join(folder, command))
        if trail and trail[-1].kind == "file":
            return trail
    return []
