"""Images in registries: push, pull, and reading them where they are."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from coldpress.package import modelpack
from coldpress.package.registry import reference
from coldpress.package.registry.reference import looks_like
from coldpress.package.registry.remote import RemoteImage
from coldpress.package.registry.session import Session
from coldpress.package.registry.upload import Pushed, upload
from coldpress.package.stores import open_store

__all__ = ["Pushed", "RemoteImage", "looks_like", "opened", "pull", "push"]


def push(path: Path, name: str, *, mount: tuple[str, ...] = (), insecure: bool = False) -> Pushed:
    """Send an image, or a checkpoint as a ModelPack artifact, to a registry; the tag changes last.

    Args:
        path: an OCI layout or archive, or a checkpoint's folder.
        name: such as ``ghcr.io/me/model:1``.
        mount: repositories of that registry that may have some of the layers.
        insecure: plain HTTP; to this machine it is always plain.

    Raises:
        InputError: there is no image and no checkpoint at ``path``.
        IntegrityError: bytes are not what their digest says.
        RemoteError: the registry refuses or fails.
    """
    is_checkpoint = (path / "model.index.json").is_file()
    store = modelpack.Artifact(path) if is_checkpoint else open_store(path)
    with Session(reference.parse(name), insecure=insecure) as session:
        return upload(store, session, mount)


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

    A ModelPack artifact becomes the folder of its files, a checkpoint again.

    Raises:
        InputError: ``folder`` exists, or the artifact's files are not plain ones.
        IntegrityError: bytes are not what their digest says.
        RemoteError: the registry refuses or fails.
    """
    with opened(name, architecture=architecture, insecure=insecure) as image:
        if modelpack.is_artifact(image):
            return modelpack.unpack(image, folder)
        return image.write(folder)
