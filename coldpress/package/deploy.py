"""The files that put an image or a zip into service, beside it in the artifact."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, assert_never

from coldpress.package import steps
from coldpress.package.oci import Config
from coldpress.platforms import Size, Target, table

if TYPE_CHECKING:
    from coldpress.package.build import PackagedLayer

COMMANDS = "deploy.json"
_TEMPLATES = Path(__file__).with_name("templates")
_LOADERS = {
    "amd64": ("usr/lib64/ld-linux-x86-64.so.2", "usr/lib/x86_64-linux-gnu"),
    "arm64": ("usr/lib/ld-linux-aarch64.so.1", "usr/lib/aarch64-linux-gnu"),
}


@dataclass(frozen=True)
class Deployment:
    """What the deployment files say: the image or zip by digest, and the instance it runs on.

    ``layers`` are the image's; a zip has none.
    """

    target: Target
    digest: str
    architecture: str
    size: Size
    model: str
    config: Config
    layers: tuple["PackagedLayer", ...] = ()


def write(folder: Path, deployment: Deployment) -> tuple[str, ...]:
    """Write the platform's own files, ``DEPLOY.md`` and its commands; return their names."""
    match deployment.target:
        case "lambda" | "lambda-snapstart":
            files = {"template.yaml": "lambda.yaml.j2"}
        case "lambda-microvm":
            files = {"microvm.json": "microvm.json.j2"}
        case "cloudrun":
            files = {"service.yaml": "cloudrun.yaml.j2"}
        case "kserve":
            files = {
                "inferenceservice.yaml": "inferenceservice.yaml.j2",
                "knative.yaml": "knative.yaml.j2",
            }
        case "compose":
            files = {"compose.yaml": "compose.yaml.j2", "Dockerfile": "Dockerfile.j2"}
        case _:
            assert_never(deployment.target)
    files["DEPLOY.md"] = "DEPLOY.md.j2"
    commands = steps.of(deployment.target, deployment.digest)
    given = {
        **vars(deployment),
        "limits": table().targets[deployment.target],
        "python": deployment.config.entrypoint[0],
        "parameters": commands.parameters,
        "commands": [step.line() for step in commands.steps],
    }
    for name, template in files.items():
        (folder / name).write_text(_render(template, given), encoding="utf-8")
    (folder / COMMANDS).write_text(json.dumps(asdict(commands), indent=1), encoding="utf-8")
    return (*files, COMMANDS)


def start_script(config: Config, model: str) -> bytes:
    """The program that a zip without a root of its own is started by.

    ``config`` is for an image: what it says of paths holds below the zip's folder.
    """
    env = {
        key: value.replace("/opt/", "$root/opt/")
        for key, value in (item.split("=", 1) for item in config.env)
        if key not in ("PATH", "PORT", "SSL_CERT_FILE")
    }
    loader, libraries = _LOADERS[config.architecture]
    given = {"model": model, "env": env, "loader": loader, "libraries": libraries}
    return _render("start.sh.j2", {**given, "python": config.entrypoint[0]}).encode()


def dockerfile(config: Config, model: str) -> bytes:
    """The Dockerfile of a MicroVM's zip."""
    return _render("microvm.Dockerfile.j2", {"config": config, "model": model}).encode()


def _render(name: str, given: Mapping[str, object]) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        undefined=StrictUndefined,
        autoescape=False,  # noqa: S701  # YAML and Markdown; every value is ours
        keep_trailing_newline=True,
    )
    return environment.get_template(name).render(**given)
