"""Who we are to a registry, as `docker login`, `skopeo login` or a credential helper knows it."""

import base64
import binascii
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coldpress import tools
from coldpress.errors import InputError, ToolError

_HELPER = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_HUB = "https://index.docker.io/v1/"
_MAX_BYTES = 1 << 20
_TIMEOUT_S = 60
# What a helper calls a user for whom it has a token instead of a password.
_TOKEN_USER = "<token>"  # noqa: S105


@dataclass(frozen=True)
class Credentials:
    """A user and a password, or a token to get others with."""

    user: str = ""
    password: str = ""
    identity_token: str = ""

    def __repr__(self) -> str:
        """Without secrets: tracebacks and logs show it."""
        return f"Credentials({self.user!r})"

    @property
    def basic(self) -> str:
        """The header's value."""
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()


def find(host: str) -> Credentials | None:
    """Look a registry up in docker's ``config.json``, then where podman and skopeo log in.

    Raises:
        InputError: a file cannot be read.
        ToolError: the helper that it names is missing or fails.
    """
    for path in _files():
        if path.is_file() and (found := _search(path, _read(path), host)):
            return found
    return None


def _files() -> Iterator[Path]:
    docker, podman = os.environ.get("DOCKER_CONFIG"), os.environ.get("REGISTRY_AUTH_FILE")
    yield (Path(docker) if docker else Path.home() / ".docker") / "config.json"
    if podman:
        yield Path(podman)
    elif running := os.environ.get("XDG_RUNTIME_DIR"):
        yield Path(running) / "containers" / "auth.json"
    else:  # where root's are
        yield Path(f"/run/containers/{os.getuid()}/auth.json")


def _search(path: Path, config: dict[str, Any], host: str) -> Credentials | None:
    keys = [host, f"https://{host}", f"https://{host}/v1/", f"https://{host}/v2/"]
    keys += [_HUB] if host == "docker.io" else []
    helpers = _mapping(config, "credHelpers")
    for key in keys:
        if key in helpers:
            return _ask(str(helpers[key]), key)
    auths = _mapping(config, "auths")
    for key in keys:
        if found := _decode(path, auths.get(key)):
            return found
    store = config.get("credsStore")
    return _ask(str(store), _HUB if host == "docker.io" else host) if store else None


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError("too long")
        config = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}", "mend it, or log in again") from error
    return config if isinstance(config, dict) else {}


def _mapping(config: dict[str, Any], name: str) -> dict[str, Any]:
    found = config.get(name)
    return found if isinstance(found, dict) else {}


def _decode(path: Path, entry: object) -> Credentials | None:
    if not isinstance(entry, dict) or not (entry.get("auth") or entry.get("identitytoken")):
        return None
    token = str(entry.get("identitytoken") or "")
    try:
        plain = base64.b64decode(str(entry.get("auth") or ""), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path} has a damaged entry", "log in again") from error
    user, _, password = plain.partition(":")
    return Credentials(user, password.rstrip("\0"), token)


def _ask(helper: str, server: str) -> Credentials | None:
    """Speak the helpers' protocol: the server's name goes in, JSON comes out."""
    if not _HELPER.fullmatch(helper):
        raise InputError(f"docker's config.json names the helper {helper!r}", "mend it")
    name = f"docker-credential-{helper}"
    program = tools.find(name, "install it, or log in again")
    try:
        said = tools.run([program, "get"], timeout_s=_TIMEOUT_S, stdin=server)
    except ToolError as error:
        if "not found" in error.message:  # the protocol's way of having none
            return None
        raise
    try:
        answer = json.loads(said)
        user, secret = str(answer["Username"]), str(answer["Secret"])
    except (ValueError, KeyError, TypeError) as error:
        raise ToolError(f"{name} does not answer as a helper does", "log in again") from error
    if user == _TOKEN_USER:
        return Credentials(identity_token=secret)
    return Credentials(user, secret)
