"""The commands that put an artifact into service: data, so that they can be shown and run alike.

``${NAME}`` in an argument stands for a parameter. Nothing here goes through a shell.
"""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from string import Template
from typing import assert_never

from coldpress.errors import UsageError
from coldpress.platforms import Target


@dataclass(frozen=True)
class Step:
    """One program, run in the artifact's folder.

    ``input_of`` is a program whose output is its input (a password, which is never an argument);
    ``output`` a file for its own.
    """

    argv: tuple[str, ...]
    input_of: tuple[str, ...] = ()
    output: str = ""

    def fill(self, values: Mapping[str, str]) -> "Step":
        """Put the parameters' values in."""

        def filled(argv: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(Template(word).substitute(values) for word in argv)

        return Step(filled(self.argv), filled(self.input_of), self.output)

    def line(self) -> str:
        """The step as a shell would take it."""
        text = _words(self.argv)
        if self.input_of:
            text = f"{_words(self.input_of)} | {text}"
        return f"{text} > {shlex.quote(self.output)}" if self.output else text


@dataclass(frozen=True)
class Steps:
    """Parameters with what they mean, and the steps in order."""

    parameters: dict[str, str]
    steps: tuple[Step, ...]

    def fill(self, values: Mapping[str, str]) -> tuple[Step, ...]:
        """The steps with their parameters' values.

        Raises:
            UsageError: a parameter is missing, unknown or empty.
        """
        wrong = sorted(set(values) - set(self.parameters))
        missing = [name for name in self.parameters if not values.get(name)]
        if wrong or missing:
            names = ", ".join(f"{name} ({what})" for name, what in self.parameters.items())
            what = f"no parameter {wrong[0]}" if wrong else f"{missing[0]} is missing"
            raise UsageError(what, f"give --set NAME=VALUE for {names}")
        return tuple(step.fill(values) for step in self.steps)


_IMAGE = "${REGISTRY}/${NAME}"
_REGISTRY = {"NAME": "the image's name there"}
_PUSH = Step(("coldpress", "push", "image.tar", f"{_IMAGE}:latest"))
_SAM = (
    *("sam", "deploy", "--template-file", "template.yaml", "--stack-name", "coldpress"),
    *("--capabilities", "CAPABILITY_IAM"),
)


def of(target: Target, digest: str) -> Steps:
    """The steps for a target; ``digest`` is the image's."""
    match target:
        case "lambda":
            login = ("skopeo", "login", "--username", "AWS", "--password-stdin", "${REGISTRY}")
            registry = {"REGISTRY": "ACCOUNT.dkr.ecr.REGION.amazonaws.com", **_REGISTRY}
            deploy = (*_SAM, "--resolve-image-repos", "--parameter-overrides")
            return Steps(
                registry,
                (
                    Step(login, ("aws", "ecr", "get-login-password")),
                    _PUSH,
                    Step((*deploy, f"ImageUri={_IMAGE}@{digest}")),
                ),
            )
        case "lambda-snapstart":
            overrides = ("ModelBucket=${BUCKET}", "ModelPrefix=${PREFIX}")
            return Steps(
                {
                    "CHECKPOINT": "the folder that `coldpress checkpoint` wrote",
                    "BUCKET": "an S3 bucket in the region you deploy to",
                    "PREFIX": "a folder in the bucket, without slashes around it",
                },
                (
                    Step(("aws", "s3", "sync", "${CHECKPOINT}", "s3://${BUCKET}/${PREFIX}")),
                    Step((*_SAM, "--s3-bucket", "${BUCKET}", "--parameter-overrides", *overrides)),
                ),
            )
        case "lambda-microvm":
            code = "s3://${BUCKET}/coldpress/function.zip"
            create = (
                *("aws", "lambda-microvms", "create-microvm-image"),
                *("--cli-input-json", "file://microvm.json", "--code-artifact", f"uri={code}"),
                *("--base-image-arn", "${BASE_IMAGE_ARN}", "--build-role-arn", "${BUILD_ROLE_ARN}"),
            )
            return Steps(
                {
                    "BUCKET": "an S3 bucket in the region you deploy to",
                    "BASE_IMAGE_ARN": "from `aws lambda-microvms list-managed-microvm-images`",
                    "BUILD_ROLE_ARN": "a role that may read the zip and write logs",
                },
                (
                    Step(("aws", "s3", "cp", "function.zip", code)),
                    Step(create),
                ),
            )
        case "cloudrun":
            user = ("--username", "oauth2accesstoken", "--password-stdin")
            replace = ("gcloud", "run", "services", "replace", "deployed.yaml")
            return Steps(
                {
                    "REGISTRY": "REGION-docker.pkg.dev",
                    "NAME": "PROJECT/REPOSITORY/coldpress",
                    "REGION": "such as europe-west1",
                },
                (
                    Step(
                        ("skopeo", "login", *user, "${REGISTRY}"),
                        ("gcloud", "auth", "print-access-token"),
                    ),
                    _PUSH,
                    _named("service.yaml"),
                    Step((*replace, "--region", "${REGION}")),
                ),
            )
        case "kserve":
            return Steps(
                {"REGISTRY": "one that the cluster pulls from", **_REGISTRY},
                (
                    _PUSH,
                    _named("inferenceservice.yaml"),
                    Step(("kubectl", "apply", "--filename", "deployed.yaml")),
                ),
            )
        case "compose":
            load = ("skopeo", "copy", "oci-archive:image.tar", "docker-daemon:coldpress:latest")
            return Steps({}, (Step(load), Step(("docker", "compose", "up", "--detach"))))
        case _:
            assert_never(target)


def _named(file: str) -> Step:
    """Name the image in a manifest, which knows its digest alone."""
    return Step(("sed", f"s|IMAGE@|{_IMAGE}@|", file), output="deployed.yaml")


def _words(argv: tuple[str, ...]) -> str:
    return " ".join(f'"{word}"' if "${" in word else shlex.quote(word) for word in argv)
