"""Hugging Face's hub: parts of a repository, fetched into its own cache."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from coldpress.errors import InputError, ToolError

ID = re.compile(r"[\w.-]+/[\w.-]+")


class NoSuchRepositoryError(InputError):
    """The hub has no such repository, or not for this user."""


def snapshot(
    repository: str,
    kind: Literal["model", "dataset"],
    files: Sequence[str],
    revision: str | None = None,
) -> Path:
    """The folder of a repository's files in the cache, after a download if needed.

    Args:
        files: patterns of those that are wanted.
        revision: branch, tag or commit.

    Raises:
        NoSuchRepositoryError: the hub has none, or wants a token.
        ToolError: the hub cannot be reached and the cache lacks it; or its client is not installed.
    """
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import (
            HfHubHTTPError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )
    except ImportError as error:
        raise ToolError(
            "huggingface_hub is not installed", "pip install 'coldpress[compress]'"
        ) from error
    try:
        found = snapshot_download(
            repository, repo_type=kind, revision=revision, allow_patterns=list(files)
        )
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise NoSuchRepositoryError(
            f"no {kind} {repository} at revision {revision or 'main'} on the hub",
            f"check the id; a gated or private {kind} needs HF_TOKEN",
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ToolError(
            f"cannot reach the hub for {repository}, and its cache has no copy",
            "check the network and HF_HUB_OFFLINE, or give a folder",
        ) from error
    return Path(found)
