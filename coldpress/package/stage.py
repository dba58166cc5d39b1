"""Build the image of a checkpoint for one platform, and the files that deploy it."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

from coldpress import __version__, artifact, disk, libllama, progress
from coldpress.errors import InputError, TooLargeError, UsageError
from coldpress.package import (
    app,
    build,
    contents,
    deploy,
    limits,
    model,
    provenance,
    runtime,
    sbom,
)
from coldpress.package.base import Base, architecture, pinned, resolve
from coldpress.package.blobs import Blob, cached, key_of
from coldpress.package.build import PackagedLayer, Parts
from coldpress.package.bytecode import compiler, with_bytecode
from coldpress.package.layer import Entry, File, unpacked_bytes
from coldpress.package.oci import Config
from coldpress.platforms import Target

MODEL = "opt/coldpress/model"
_INDEX = "model.index.json"
_PORT = 8080
# It goes into an image's configuration: no spaces, quotes or credentials.
_ADDRESS = re.compile(r"(https|s3|gs)://[\w.-]+(:\d+)?(/[\w.~%+=-]+)*/?")


@dataclass(frozen=True)
class PackageOptions:
    """How to build an image.

    ``base`` is ``debian``, an OCI layout (folder or archive) or a registry reference;
    ``limit_bytes`` the largest unpacked size, by default the platform's; ``memory_mib`` that of one
    instance, by default what the platform usually gives, or more where the model needs it;
    ``system_prompt`` a text file, evaluated here once so that no instance has to; ``weights`` an
    address (https, s3, gs) from which every instance fetches the checkpoint, instead of having it.
    """

    target: Target
    base: str = "debian"
    limit_bytes: int | None = None
    memory_mib: int | None = None
    system_prompt: str | None = None
    weights: str | None = None

    @property
    def fetches(self) -> bool:
        """Whether the weights are fetched when an instance starts."""
        return self.weights is not None or self.target == "lambda-snapstart"

    def __post_init__(self) -> None:
        if self.target not in get_args(Target):
            raise UsageError(f"no target {self.target!r}", f"one of: {', '.join(get_args(Target))}")
        for name in ("limit_bytes", "memory_mib"):
            number = getattr(self, name)
            if number is not None and number <= 0:
                raise UsageError(f"{name} is {number}", "give a positive number")
        if self.fetches and self.system_prompt is not None:
            raise UsageError(
                "a system prompt's state is shipped with the weights", "leave one of them out"
            )
        if self.target == "lambda-snapstart" and self.weights is not None:
            raise UsageError(
                "the template has the weights' address as a parameter", "leave --weights out"
            )
        if self.weights is not None and not _ADDRESS.fullmatch(self.weights):
            raise UsageError(f"{self.weights!r} is no address", "https://…, s3://… or gs://…")


@dataclass(frozen=True)
class Packaged:
    """A built image: ``digest`` is its manifest's, ``size_bytes`` the archive's.

    Of a zip the digest is its own, and there are no layers.
    """

    path: Path
    archive: Path
    target: Target
    digest: str
    size_bytes: int
    unpacked_bytes: int
    memory_mib: int
    layers: tuple[PackagedLayer, ...]


def plan(
    checkpoint: Path, out: Path, options: PackageOptions
) -> tuple[dict[str, Path], dict[str, object]]:
    """What the result depends on: inputs, options, and the software that goes into the image.

    Raises:
        ToolError: a distribution that serving needs is not installed.
        RemoteError: the registry that the base is in does not say which image it is.
    """
    inputs = {"checkpoint": checkpoint}
    plain: dict[str, object] = asdict(options) | {"base": pinned(options.base)}
    if options.base != "debian" and Path(options.base).exists():
        inputs["base"] = Path(options.base)
        del plain["base"]
    if (evaluation := model.evaluation_of(checkpoint)) is not None:
        inputs["evaluation"] = evaluation
    if options.system_prompt is not None:
        inputs["system_prompt"] = Path(options.system_prompt)
        # The state's bits are those of the kernels that this CPU takes.
        plain["system_prompt"] = libllama.cpu_variant()
    plain |= {
        "app": app.digest(),
        "runtime": runtime.versions(aws=_needs_boto3(options)),
        "python": compiler(),
    }
    return inputs, plain


def package(checkpoint: Path, out: Path, options: PackageOptions) -> Packaged:
    """Build ``image.tar``, an OCI archive, or ``function.zip``, and the platform's deployment files.

    Layers from below: base, runtime, weights, the system prompt's state, app; so new code leaves
    the weights' layers alone. Each shard is a layer of its own, fetched beside the others.

    Args:
        checkpoint: folder that ``checkpoint`` wrote; every byte is verified first.
        out: the artifact's folder.

    Raises:
        IntegrityError: the checkpoint is damaged.
        TooLargeError: the image or the memory it needs is over the platform's limit.
        ToolError: the base or the runtime cannot be made here; the hint says what else works.
    """
    from coldpress.checkpoint import verify

    weights = _weights(checkpoint)
    root_sha256 = verify(checkpoint).root_sha256
    inputs, plain = plan(checkpoint, out, options)
    facts = model.read(checkpoint, root_sha256, inputs.get("evaluation"))
    with _workplace(out) as work:
        state = _prefix(checkpoint, options, work)
        model_bytes = sum(unpacked_bytes(entries) for entries in (*weights, state))
        needed = model_bytes + model.memory(facts, options.target).needed_bytes
        size = limits.instance(options.target, needed, options.memory_mib)
        base = resolve(str(plain.get("base", options.base)), work)
        if base.reference not in ("", options.base):
            progress.note(
                f"  base: {options.base} is {base.reference} today; name it so to keep it"
            )
        fetched = options.fetches
        parts = Parts(
            base=base.layers,
            runtime=_python_layer(runtime.entries(base, aws=_needs_boto3(options))),
            weights=() if fetched else tuple(map(tuple, weights)),
            state=() if fetched else tuple(state),
            app=_python_layer(app.entries()),
        )
        unpacked = parts.unpacked_bytes
        _check_size(unpacked, 0 if fetched else model_bytes, options)
        config = _config(base, options.weights or f"/{MODEL}", facts.root_sha256)
        with artifact.create(out, "package", inputs=inputs, options=plain) as draft:
            built = build.write(draft.folder, options.target, parts, config, facts.name)
            described = deploy.Deployment(
                options.target,
                built.digest,
                architecture(),
                size,
                facts.name,
                config,
                built.layers,
            )
            deploy.write(draft.folder, described)
            found = [contents.of_blob(blob) for blob in (*base.layers, parts.runtime)]
            listed = sbom.write(built.digest, found, facts)
            (draft.folder / sbom.NAME).write_bytes(listed)
            stated = provenance.write(draft.folder, (built.name, built.digest), base, facts, plain)
            (draft.folder / provenance.NAME).write_bytes(stated)
    return Packaged(
        path=out,
        archive=out / built.name,
        target=options.target,
        digest=built.digest,
        size_bytes=(out / built.name).stat().st_size,
        unpacked_bytes=unpacked,
        memory_mib=size.memory_mib,
        layers=built.layers,
    )


@contextmanager
def _workplace(out: Path) -> Iterator[Path]:
    """A folder beside the artifact's for a base and a state; after ``kill -9`` the next build clears it.

    Not in the system's temporary folder, which may be small, and would keep what a killed build left.
    """
    folder = out.with_name(f"{out.name}.work")
    shutil.rmtree(folder, ignore_errors=True)
    with disk.room_for(folder):
        try:
            folder.mkdir(parents=True)
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _weights(checkpoint: Path) -> list[list[Entry]]:
    """The layers of the weights, one per file; the index lies beside the first."""
    from coldpress.checkpoint import index

    side = checkpoint / _INDEX
    if not side.is_file():
        raise InputError(
            f"{checkpoint} has no {_INDEX}", "give a folder that `coldpress checkpoint` wrote"
        )
    names = [file.name for file in index.read(side).files]
    layers: list[list[Entry]] = [[File(f"{MODEL}/{name}", checkpoint / name)] for name in names]
    layers[0].append(File(f"{MODEL}/{_INDEX}", side))
    return layers


def _prefix(checkpoint: Path, options: PackageOptions, work: Path) -> list[Entry]:
    """The layer of the system prompt's state; nothing without one."""
    if options.system_prompt is None:
        return []
    from coldpress.checkpoint import source
    from coldpress.package import prefix

    text = prefix.read_text(Path(options.system_prompt))
    built = prefix.build(source.locate(checkpoint), text, work)
    return [File(f"{MODEL}/{path.name}", path) for path in (built.key, built.state)]


def _python_layer(entries: list[Entry]) -> Blob:
    """A layer of Python code with its bytecode, from the cache where nothing in it has changed."""
    key = key_of(entries, "bytecode", compiler())
    return cached(key, lambda: with_bytecode(entries))


def _config(base: Base, where: str, root_sha256: str) -> Config:
    """How the image starts, the same for every target: Lambda does not mind a port."""
    env = {
        **dict(item.split("=", 1) for item in base.env if "=" in item),
        "HOME": "/tmp",  # noqa: S108  # the one writable folder on every platform
        # numpy is imported but multiplies nothing: its BLAS needs no threads, nor their memory.
        "OPENBLAS_NUM_THREADS": "1",
        # Cloud Run sets it too; the server listens on all addresses where it is set.
        "PORT": str(_PORT),
        "PYTHONPATH": f"/{app.APP}:/{runtime.SITE_PACKAGES}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONSAFEPATH": "1",
        "PYTHONUNBUFFERED": "1",
    }
    return Config(
        name="coldpress",
        architecture=architecture(),
        # It speaks Lambda's Runtime API where Lambda starts it, else HTTP.
        entrypoint=(base.python, "-m", "coldpress.serve", where),
        env=tuple(f"{key}={value}" for key, value in sorted(env.items())),
        labels={
            "coldpress.model.root_sha256": root_sha256,
            "org.opencontainers.image.title": "coldpress",
            "org.opencontainers.image.version": __version__,
        },
        port=_PORT,
    )


def _needs_boto3(options: PackageOptions) -> bool:
    """Whether the weights are fetched from S3, whose requests boto3 signs."""
    return options.target == "lambda-snapstart" or (options.weights or "").startswith("s3://")


def _check_size(unpacked: int, weights: int, options: PackageOptions) -> None:
    limit = options.limit_bytes or limits.image_bytes(options.target)
    if limit is not None and unpacked > limit:
        raise TooLargeError(
            f"the image has {_gb(unpacked)} unpacked, {_gb(weights)} of it weights; "
            f"the limit is {_gb(limit)}",
            "choose a smaller type"
            + (", or --target cloudrun" if options.target == "lambda" else ""),
        )


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
