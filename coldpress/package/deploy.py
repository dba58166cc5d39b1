"""The files that put an image into service, beside it in the artifact."""

from dataclasses import dataclass
from pathlib import Path
from typing import assert_never

from coldpress.errors import UsageError
from coldpress.platforms import Size, Target

_TEMPLATES = Path(__file__).with_name("templates")


@dataclass(frozen=True)
class Deployment:
    """What the deployment files say: the image by digest, and the instance it runs on."""

    target: Target
    digest: str
    architecture: str
    size: Size
    model: str


def write(folder: Path, deployment: Deployment) -> tuple[str, ...]:
    """Write the platform's own file and ``DEPLOY.md``; return their names."""
    match deployment.target:
        case "lambda":
            files = {"template.yaml": "lambda.yaml.j2", "DEPLOY.md": "lambda.md.j2"}
        case "cloudrun":
            files = {"service.yaml": "cloudrun.yaml.j2", "DEPLOY.md": "cloudrun.md.j2"}
        case "lambda-snapstart" | "lambda-microvm" | "kserve" | "compose":
            raise UsageError(f"{deployment.target} is not built yet", "--target lambda or cloudrun")
        case _:
            assert_never(deployment.target)
    for name, template in files.items():
        (folder / name).write_text(_render(template, deployment), encoding="utf-8")
    return tuple(files)


def _render(name: str, deployment: Deployment) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        undefined=StrictUndefined,
        autoescape=False,  # noqa: S701  # YAML and Markdown; every value is ours
        keep_trailing_newline=True,
    )
    return environment.get_template(name).render(**vars(deployment))
