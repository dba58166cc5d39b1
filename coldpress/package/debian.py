"""The default base: Debian packages unpacked by mmdebstrap, reduced to what Python needs.

Nothing of a package is run (``extract`` variant): no shell, no package manager and no setuid file is
in the image, and building takes seconds. ``/var/lib/dpkg/status`` lists the packages for scanners.
"""

import re
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

from coldpress import tools
from coldpress.errors import InputError, ToolError
from coldpress.package.base import Base, architecture, python_version
from coldpress.package.blobs import cached, key_of
from coldpress.package.bytecode import with_bytecode
from coldpress.package.layer import Entry, File, Folder, Symlink

# Bytecode and extension modules fit one minor version of Python, so Python chooses the release.
_SUITES = {"3.11": "bookworm", "3.13": "trixie"}
_PACKAGES = ("base-files", "ca-certificates", "libgomp1", "libstdc++6", "netbase", "python3")
_INSTALL = "apt-get install mmdebstrap and run as root, or give an image with --base"
# Runs when the packages are unpacked and still in the cache; $1 is the new root.
_LIST_PACKAGES = (
    'for deb in "$1"/var/cache/apt/archives/*.deb; do'
    ' dpkg-deb --field "$deb" | sed "/^Package:/a Status: install ok installed"; echo;'
    ' done > "$1"/var/lib/dpkg/status'
)
_ENV = ("PATH=/usr/bin:/bin", "LANG=C.UTF-8", "SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt")
_KEEP = re.compile(
    r"usr/lib/(?!binfmt|mime|systemd|valgrind).*|usr/lib64/.*|usr/bin/python3.*"
    r"|usr/share/(ca-certificates|common-licenses|zoneinfo)/.*|usr/share/doc/[^/]+/copyright"
    r"|var/lib/dpkg/status|etc/(debian_version|host\.conf|mime\.types|os-release|protocols|services)"
    r"|etc/(ssl|ld\.so\.conf\.d)/.*"
)
_DROP = re.compile(
    r".*/(gconv|krb5|engines-3|dist-packages|__pycache__)/.*"
    r"|usr/lib/python3[.\d]*/(test|idlelib|tkinter|lib2to3|ensurepip|pydoc_data|turtledemo)/.*"
    r"|usr/lib/python3[.\d]*/(config-|sitecustomize).*|usr/lib/ssl/(misc/.*|private)|.*/lib(db-5|krb5|gssapi_krb5|k5crypto).*"
)
# Older packages still put files into /lib, newer ones leave the folder to be a link.
_MERGED = re.compile(r"^(lib|lib64)(?=/)")
_LINKS = (Symlink("lib", "usr/lib"), Symlink("lib64", "usr/lib64"))
_ACCOUNTS = (
    File("etc/passwd", b"root:x:0:0::/root:/none\nnonroot:x:65532:65532::/tmp:/none\n"),
    File("etc/group", b"root:x:0:\nnonroot:x:65532:\n"),
    File("etc/nsswitch.conf", b"passwd: files\ngroup: files\nhosts: files dns\n"),
)
# Mount points, which a read-only root cannot get later, and the one place that is written.
_FOLDERS = (
    *(Folder(name) for name in ("dev", "proc", "run", "sys")),
    *(Folder(name, 0o1777) for name in ("tmp", "var/tmp")),
)


def base() -> Base:
    """Build the Debian base, or take it from the cache.

    The cache keeps one build for ever, so that images do not change by themselves; delete it to
    take up Debian's updates.

    Raises:
        ToolError: mmdebstrap is missing or fails, or no Debian release has this Python.
    """
    version = python_version()
    if version not in _SUITES:
        raise ToolError(
            f"no Debian release has Python {version}",
            f"give an image with Python {version} as --base, or use Python 3.11 or 3.13",
        )
    recipe: list[Entry] = [*_ACCOUNTS, *_FOLDERS, *_LINKS]
    salt = (_SUITES[version], architecture(), *_PACKAGES, _KEEP.pattern, _DROP.pattern)
    blob = cached(key_of(recipe, *salt), lambda: _build(_SUITES[version]))
    return Base(
        layers=(blob,),
        python="/usr/bin/python3",
        python_version=version,
        glibc={"bookworm": "2.36", "trixie": "2.41"}[_SUITES[version]],
        env=_ENV,
    )


def _build(suite: str) -> list[Entry]:
    program = tools.find("mmdebstrap", _INSTALL)
    with tempfile.TemporaryDirectory() as work:
        tree = Path(work) / "root.tar"
        tools.run(
            [
                program,
                "--quiet",
                "--variant=extract",
                "--format=tar",
                f"--include={','.join(_PACKAGES)}",
                f"--extract-hook={_LIST_PACKAGES}",
                suite,
                tree,
            ],
            timeout_s=600,
            install=_INSTALL,
            env={"SOURCE_DATE_EPOCH": "0"},
        )
        with tarfile.open(tree) as tar:
            entries = list(_select(tar))
    certificates = b"".join(
        entry.source
        for entry in sorted(entries, key=lambda entry: entry.path)
        if isinstance(entry, File)
        and isinstance(entry.source, bytes)
        and entry.path.startswith("usr/share/ca-certificates/mozilla/")
    )
    bundle = File("etc/ssl/certs/ca-certificates.crt", certificates)
    return with_bytecode([*entries, *_ACCOUNTS, *_FOLDERS, *_LINKS, bundle])


def _select(tar: tarfile.TarFile) -> Iterator[Entry]:
    """What is kept of an unpacked root, without owners, dates and device nodes."""
    for member in tar:
        path = _MERGED.sub(r"usr/\1", member.name.removeprefix("./"), count=1)
        if not _KEEP.fullmatch(path) or _DROP.fullmatch(path):
            continue
        if member.issym():
            yield Symlink(path, member.linkname)
        elif member.isreg() or member.islnk():
            data = tar.extractfile(member)
            if data is None:
                raise InputError(f"mmdebstrap's archive has no content for {path}", "try again")
            yield File(path, data.read(), executable=bool(member.mode & 0o111))
