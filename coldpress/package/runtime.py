"""The runtime layer: the installed distributions that serving needs, as they were tested.

They are taken from the environment that runs coldpress, file by file from each distribution's
RECORD: no network, no second resolution, and the image runs what evaluated the model.
"""

import re
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from coldpress.errors import ToolError
from coldpress.package.base import Base, python_version
from coldpress.package.layer import Entry, File, Symlink

SITE_PACKAGES = "opt/coldpress/site-packages"
_ROOTS = (
    "llama-cpp-python",
    "numpy",
    "jinja2",
    "starlette",
    "uvicorn",
    "websockets",
    "prometheus-client",
    "llguidance",
)
# Never imported when serving: headers, stubs, tests, build tools, a second copy of the libraries.
_DROP = re.compile(
    r"\.\./.*|(lib|share)/.*|(.*/)?(__pycache__|tests|include)/.*|.*\.(a|pyi|h|pxd|c|f90)"
    r"|numpy/(f2py|distutils|testing|typing/tests|_pyinstaller|conftest\.py).*"
    r"|llama_cpp/server/.*|.*/libmtmd\.so.*"
    r"|.*\.dist-info/(RECORD|INSTALLER|REQUESTED|direct_url\.json|WHEEL|entry_points\.txt)"
)
_LIBRARY = re.compile(r".*\.so(\.[\d.]+)?")
_BACKENDS = re.compile(r"bin/libggml-cpu-\w+\.so")
_NEEDS_GLIBC = re.compile(rb"GLIBC_2\.(\d+)")


def distributions(*, aws: bool = False) -> dict[str, Distribution]:
    """The distributions that serving needs, with all they need, by normalized name.

    Args:
        aws: boto3 too, for checkpoints that are fetched from S3.

    Raises:
        ToolError: one is not installed.
    """
    found: dict[str, Distribution] = {}
    wanted = [*_ROOTS, *(["boto3"] if aws else [])]
    while wanted:
        name = _normalize(wanted.pop())
        if name in found:
            continue
        try:
            found[name] = distribution(name)
        except PackageNotFoundError as error:
            raise ToolError(
                f"{name} is not installed", "pip install 'coldpress[serve,aws]'"
            ) from error
        wanted += _requires(found[name])
    return dict(sorted(found.items()))


def versions(*, aws: bool = False) -> dict[str, str]:
    """Name → version of what the runtime layer holds."""
    return {name: it.version for name, it in distributions(aws=aws).items()}


def entries(base: Base, *, aws: bool = False) -> list[Entry]:
    """The runtime layer's files.

    Raises:
        ToolError: a distribution is missing or damaged, llama-cpp-python was built for this
            machine's CPU alone, or the base has another Python or an older C library.
    """
    if base.python_version != python_version():
        raise ToolError(
            f"the base has Python {base.python_version}, this is Python {python_version()}",
            f"give a base with Python {python_version()}, or run coldpress with the base's Python",
        )
    files = [file for it in distributions(aws=aws).values() for file in _files(it)]
    if sum(1 for file in files if _BACKENDS.search(file.path)) < 2:
        raise ToolError(
            "llama-cpp-python was built for this machine's CPU alone",
            "build it for every CPU: run `make setup`",
        )
    _check_glibc(files, base)
    return list(_link_copies(files))


def _requires(found: Distribution) -> Iterator[str]:
    """Names of what a distribution needs here, without extras."""
    try:
        from packaging.requirements import Requirement
    except ImportError as error:
        raise ToolError("packaging is not installed", "pip install 'coldpress[package]'") from error
    for text in found.requires or ():
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield requirement.name


def _normalize(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _files(found: Distribution) -> Iterator[File]:
    if found.files is None:
        raise ToolError(f"{found.name} has no RECORD", "install it again with pip")
    for path in found.files:
        name = path.as_posix()
        if _DROP.fullmatch(name):
            continue
        source = Path(str(path.locate()))
        if not source.is_file():
            raise ToolError(f"{source} is missing", f"install {found.name} again")
        yield File(f"{SITE_PACKAGES}/{name}", source)


def _link_copies(files: Iterable[File]) -> Iterator[Entry]:
    """Replace copies of a library in one folder by links to the one with the longest name.

    Wheels cannot hold links, so each of llama.cpp's libraries is installed three times.
    """
    first: dict[tuple[str, str], str] = {}
    for file in sorted(files, key=lambda file: (-len(file.path), file.path)):
        folder, _, name = file.path.rpartition("/")
        if not _LIBRARY.fullmatch(name):
            yield file
            continue
        kept = first.setdefault((folder, file.sha256), name)
        yield file if kept == name else Symlink(file.path, kept)


def _check_glibc(files: Iterable[File], base: Base) -> None:
    """Refuse libraries that were linked against a newer C library than the base has."""
    if not base.glibc:
        return
    has = int(base.glibc.split(".")[1])
    for file in files:
        if _BACKENDS.search(file.path) or "/libllama.so" in file.path:
            data = Path(str(file.source)).read_bytes()
            needs = max((int(minor) for minor in _NEEDS_GLIBC.findall(data)), default=0)
            if needs > has:
                raise ToolError(
                    f"llama-cpp-python here needs glibc 2.{needs}, the base has {base.glibc}",
                    "build llama-cpp-python on the base's release, or give a newer base",
                )
