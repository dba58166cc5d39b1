"""Images in registries: push, pull, and reading them where they are."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from coldpress.package.registry import reference
from coldpress.package.registry.reference import looks_like
from coldpress.package.registry.remote import RemoteImage
from coldpress.package.registry.session import Session
from coldpress.package.registry.upload import Pushed, upload
from coldpress.package.stores import open_store

__all__ = ["Pushed", "RemoteImage", "looks_like", "opened", "pull", "push"]


def push(image: Path, name: str, *, mount: tuple[str, ...] = (), insecure: bool = False) -> Pushed:
    """Send an image folder or archive to a registry; the tag changes last.

    Args:
        name: such as ``ghcr.io/me/model:1``.
        mount: repositories of that registry that may have some of the layers.
        insecure: plain HTTP; to this machine it is always plain.

    Raises:
        InputError: there is no image at ``image``.
        IntegrityError: bytes are not what their digest says.
        RemoteError: the registry refuses or fails.
    """
    with Session(reference.parse(name), insecure=insecure) as session:
        return upload(open_store(image), session, mount)


@contextmanager
def opened(name: str, *, architecture: str = "", insecure: bool = False) -> Iterator[RemoteImage]:
    """An image in a registry, to be read there; of an index, only what is for ``architecture``.

    Raises:
        RemoteError: the registry refuses or fails.
    """
    with Session(reference.parse(name), insecure=insecure) as session:
        yield RemoteImage(session, architecture)


def pull(name: str, folder: Path, *, architecture: str = "", insecure: bool = False) -> Path:
    """Write a registry's image as an OCI layout into ``folder``; return it.

    Raises:
        IntegrityError: bytes are not what their digest says.
        RemoteError: the registry refuses or fails.
    """
    with opened(name, architecture=architecture, insecure=insecure) as image:
        image.write(folder)
    return folder
