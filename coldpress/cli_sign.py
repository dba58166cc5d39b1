"""`coldpress sign` and `coldpress verify`: checkpoints, images and packages."""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from coldpress.cli_output import Json, print_result
from coldpress.errors import InputError, UsageError

app = typer.Typer()


@app.command()
def sign(
    folder: Annotated[Path, typer.Argument(help="folder of a checkpoint or a package")],
    key: Annotated[Path, typer.Option(help="EC private key, PEM; see docs/supply-chain.md")],
    json_: Json = False,
) -> None:
    """Sign a checkpoint (as OpenSSF model-signing does) or a package's provenance."""
    from coldpress import checkpoint
    from coldpress.checkpoint import index, signing
    from coldpress.checkpoint.safetensors_folder import is_safetensors, verify_folder
    from coldpress.package import provenance
    from coldpress.package import verify as verify_package

    if not folder.is_dir():
        raise InputError(f"{folder} is no folder", "give what checkpoint or package wrote")
    # What is damaged must not become what somebody vouches for.
    if (folder / provenance.NAME).is_file():
        verify_package.folder(folder)
        path = provenance.sign(folder, key)
        print_result({"path": str(path)}, json_, str(path))
        return
    if (folder / index.INDEX_NAME).is_file():
        (verify_folder if is_safetensors(folder) else checkpoint.verify)(folder)
    print_result(signing.sign(folder, key), json_)


@app.command()
def verify(
    path: Annotated[
        str, typer.Argument(help="a checkpoint, a package, another artifact, or an image")
    ],
    public_key: Annotated[
        Path | None, typer.Option(help="EC public key, PEM: it must be signed with its other half")
    ] = None,
    provenance: Annotated[
        Path | None, typer.Option(help="of an image: a package's provenance.sigstore.json")
    ] = None,
    chunk: Annotated[
        list[str] | None, typer.Option(help="a chunk or a range, 7 or 0-5; repeatable")
    ] = None,
    tensor: Annotated[list[str] | None, typer.Option(help="a tensor's name; repeatable")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="default: one per CPU")] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="plain HTTP to a registry")] = False,
    json_: Json = False,
) -> None:
    """Check every byte, what documents say of them, and signatures; name what differs."""
    from coldpress import artifact

    place = Path(path)
    made = artifact.read(place).stage if (place / artifact.MANIFEST).is_file() else None
    is_image = not place.exists() or _is_image(place)
    if provenance is not None and (public_key is None or not is_image):
        raise UsageError(f"{provenance} goes with an image and --public-key", "give these too")
    has_chunks = made in (None, "checkpoint") and not is_image
    if (chunk or tensor) and not has_chunks:
        raise UsageError(f"{path} has no chunks", "only checkpoints have; leave --chunk out")
    if public_key is not None and provenance is None and not (has_chunks or made == "package"):
        raise UsageError(f"{path} carries no signature", "an image's is given with --provenance")
    if made == "package":
        _print(_package(place, public_key), json_)
    elif is_image:
        _print(_image(path, insecure, provenance, public_key), json_)
    elif has_chunks:
        _checkpoint(place, public_key, chunk, tensor, threads, json_)
    else:
        artifact.verify(place)
        print_result({"path": path, "verified": True}, json_, f"{path}: every file is intact")


def _checkpoint(
    path: Path,
    public_key: Path | None,
    chunk: list[str] | None,
    tensor: list[str] | None,
    threads: int | None,
    json_: bool,
) -> None:
    from coldpress import checkpoint as stage
    from coldpress.checkpoint import signing
    from coldpress.checkpoint.safetensors_folder import is_safetensors, verify_folder

    numbers = None if chunk is None else [n for text in chunk for n in stage.parse_chunks(text)]
    check = verify_folder if is_safetensors(path) else stage.verify
    checked = check(path, numbers=numbers, tensors=tensor, threads=threads)
    folder = path if path.is_dir() else path.parent
    if public_key is not None:
        count = signing.verify(folder, public_key)
        said = f"valid, {count} files"
    else:
        is_signed = (folder / signing.SIGNATURE).is_file()
        said = "not checked; give --public-key" if is_signed else "none"
    found = dataclasses.asdict(checked) | {"signature": said}
    if not json_:
        print("\n".join(f"  {name:<20} {value}" for name, value in found.items()), file=sys.stderr)
    print_result(found, json_, str(found["path"]))


def _is_image(path: Path) -> bool:
    """An OCI layout's folder, or an archive; a checkpoint's file ends in ``.gguf``."""
    if path.is_dir():
        return (path / "oci-layout").is_file()
    return path.suffix == ".tar"


def _package(path: Path, public_key: Path | None) -> Any:
    from coldpress.package import verify

    return verify.folder(path, public_key)


def _image(name: str, insecure: bool, statement: Path | None, key: Path | None) -> Any:
    from coldpress.package import registry, verify
    from coldpress.package.stores import open_store

    if not Path(name).exists() and registry.looks_like(name):
        with registry.opened(name, insecure=insecure) as remote:
            return verify.image(remote, statement, key)
    return verify.image(open_store(Path(name)), statement, key)


def _print(checked: Any, json_: bool) -> None:
    if not json_:
        print("\n".join(f"  {line}" for line in checked.checks), file=sys.stderr)
    print_result(checked, json_, checked.path)
