"""An artifact is a folder of plain files; its ``manifest.json`` is written last.

A stage writes into ``OUT.partial`` and renames it when all is there, so a folder with a manifest is
complete, whatever was killed when. The manifest names the stage, the tool versions, the digests of
the inputs, the resolved options and, per file, its size and sha256. No clock and no machine fact is
in it except under ``measured``, which no digest covers.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from coldpress import __version__, disk
from coldpress.errors import InputError, IntegrityError

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
_READ_BYTES = 4 << 20


@dataclass(frozen=True)
class File:
    """One file of an artifact: ``name`` is its path inside the folder, with forward slashes."""

    name: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What an artifact is made of and from.

    ``run_id`` identifies the work (stage, inputs, options, code); ``digest`` the resulting bytes.
    """

    stage: str
    run_id: str
    inputs: dict[str, str]
    options: dict[str, Any]
    tools: dict[str, str]
    files: tuple[File, ...]
    measured: dict[str, Any] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    @property
    def digest(self) -> str:
        """Sha256 over the stage and every file's name and digest."""
        return sha256_json([self.stage, [[file.name, file.sha256] for file in self.files]])


@dataclass
class Draft:
    """An artifact being written: put files into ``folder``, figures into ``measured``.

    ``manifest`` is what it will be, but for the files; ``inputs`` role → path, as given.
    """

    folder: Path
    manifest: Manifest
    inputs: dict[str, Path]
    measured: dict[str, Any] = field(default_factory=dict)


def sha256_json(value: object) -> str:
    """Sha256 of a value's canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """Sha256 of a file's bytes, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(_READ_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def sha256_folder(folder: Path) -> str:
    """Sha256 over the names and bytes of every file below ``folder``, sorted, links followed."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return sha256_json([[path.relative_to(folder).as_posix(), sha256_file(path)] for path in files])


def digest_of(path: Path) -> str:
    """The digest of an input: an artifact's own, else that of the file's or folder's bytes."""
    if (path / MANIFEST).is_file():
        return read(path).digest
    if path.is_dir():
        return sha256_folder(path)
    if path.is_file():
        return sha256_file(path)
    raise InputError(f"{path} does not exist", "check the path")


def code_digest(stage: str) -> str:
    """Sha256 of a stage's own source, so that changed code is run again and other stages are not."""
    folder = Path(__file__).parent / stage
    sources = sorted(path for path in folder.rglob("*") if path.suffix in {".py", ".html", ".j2"})
    return sha256_json([[path.name, sha256_file(path)] for path in sources])


def run_id(stage: str, inputs: Mapping[str, str], options: Mapping[str, Any]) -> str:
    """Identify a piece of work by its stage, its inputs' digests, its options and its code."""
    return sha256_json([stage, dict(inputs), dict(options), code_digest(stage)])[:16]


def work_id(stage: str, inputs: Mapping[str, Path], options: Mapping[str, Any]) -> str:
    """``run_id`` of inputs given as paths."""
    digests = {role: digest_of(path) for role, path in sorted(inputs.items())}
    return run_id(stage, digests, options)


@contextmanager
def create(
    out: Path,
    stage: str,
    *,
    inputs: Mapping[str, Path],
    options: Mapping[str, Any],
    tools: Mapping[str, str] | None = None,
) -> Iterator[Draft]:
    """Write an artifact: whole by rename, or not at all.

    On an ordinary error the unfinished folder is removed; after ``kill -9`` it stays behind as
    ``OUT.partial``, which nothing reads and the next attempt clears away.

    Args:
        out: the artifact's folder; replaced if it is an artifact, refused if it is anything else.
        inputs: role → path of everything the result depends on.
        options: resolved options, plain JSON values.
        tools: versions of what made it, beside coldpress's own.

    Raises:
        InputError: ``out`` is something else than an artifact.
        DiskFullError: there is no room for it.
    """
    if out.exists() and not (out / MANIFEST).is_file() and (out.is_file() or any(out.iterdir())):
        raise InputError(f"{out} exists and is not a coldpress artifact", "choose another folder")
    digests = {role: digest_of(path) for role, path in sorted(inputs.items())}
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    with disk.room_for(out):
        partial.mkdir(parents=True)
    manifest = Manifest(
        stage=stage,
        run_id=run_id(stage, digests, options),
        inputs=digests,
        options=dict(options),
        tools={"coldpress": __version__, **(tools or {})},
        files=(),
    )
    draft = Draft(partial, manifest, dict(inputs))
    with disk.room_for(out):
        try:
            yield draft
            made = replace(manifest, files=_files(partial), measured=draft.measured)
            _write(partial / MANIFEST, made)
            _replace(partial, out)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def read(folder: Path) -> Manifest:
    """Read an artifact's manifest.

    Raises:
        InputError: there is none, or this version cannot read it.
    """
    path = folder / MANIFEST
    try:
        data = json.loads(path.read_bytes())
        files = tuple(File(**file) for file in data.pop("files"))
        manifest = Manifest(files=files, **data)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(
            f"{folder} is not a coldpress artifact", "no manifest.json there"
        ) from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"{path} is not a manifest: {error}", "build the artifact again"
        ) from error
    if manifest.format_version != FORMAT_VERSION:
        raise InputError(
            f"{path} has format {manifest.format_version}, this coldpress reads {FORMAT_VERSION}",
            "use the coldpress that wrote it, or build it again",
        )
    return manifest


def verify(folder: Path) -> Manifest:
    """Check every file of an artifact against its manifest.

    Raises:
        IntegrityError: a file is missing, or its size or sha256 differs.
    """
    manifest = read(folder)
    for file in manifest.files:
        path = folder / file.name
        if not path.is_file():
            raise IntegrityError(f"{path} is missing", "build the artifact again")
        if path.stat().st_size != file.size_bytes or sha256_file(path) != file.sha256:
            raise IntegrityError(f"{path} differs from its manifest", "build the artifact again")
    return manifest


def is_current(
    out: Path, stage: str, inputs: Mapping[str, Path], options: Mapping[str, Any]
) -> bool:
    """Whether ``out`` already holds the result of exactly this work."""
    if not (out / MANIFEST).is_file():
        return False
    return read(out).run_id == work_id(stage, inputs, options)


def _files(folder: Path) -> tuple[File, ...]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return tuple(
        File(path.relative_to(folder).as_posix(), path.stat().st_size, sha256_file(path))
        for path in paths
    )


def _write(path: Path, manifest: Manifest) -> None:
    data = {key: value for key, value in vars(manifest).items() if key != "files"}
    data["files"] = [vars(file) for file in manifest.files]
    with path.open("w", encoding="utf-8") as stream:
        json.dump(data, stream, indent=1, sort_keys=True, ensure_ascii=False)
        stream.write("\n")
        stream.flush()
        os.fsync(stream.fileno())


def _replace(partial: Path, out: Path) -> None:
    """Put ``partial`` in the place of ``out``; a folder cannot be renamed onto a full one."""
    old = out.with_name(out.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    partial.rename(out)
    shutil.rmtree(old, ignore_errors=True)
