"""Run an image as the platforms do: not as root, on a read-only root, with little memory."""

import os
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError

import pytest

# In some sandboxes podman cannot tell the two cgroup hierarchies apart; elsewhere nothing is mounted there.
_WITHOUT_UNIFIED = 'umount /sys/fs/cgroup/unified 2>/dev/null || true; exec "$@"'
_LIMITS = ["--read-only", "--memory", "512m", "--user", "65532:65532"]
_LIMITS += ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1000:1000"]


class Store:
    """A podman of our own: its images and containers are in a folder that goes away."""

    def __init__(self, folder: Path) -> None:
        self._podman = ["unshare", "-m", "sh", "-c", _WITHOUT_UNIFIED, "sh", "podman"]
        self._podman += ["--storage-driver", "vfs", "--root", str(folder / "root")]
        self._podman += ["--runroot", str(folder / "run"), "--tmpdir", str(folder / "tmp")]

    def load(self, archive: Path) -> str:
        """Take an OCI archive in; the image's id."""
        done = self._run("load", "--quiet", "--input", str(archive))
        return done.rpartition(" ")[2].strip()

    @contextmanager
    def container(
        self, image: str, arguments: Sequence[str] = (), options: Sequence[str] = ()
    ) -> Iterator[subprocess.Popen[bytes]]:
        """Run a container on the host's network until the block ends, then stop it by SIGTERM."""
        argv = [*self._podman, "run", "--rm", "--network", "host", *_LIMITS, *options, image]
        with tempfile.TemporaryFile() as log:
            process = subprocess.Popen([*argv, *arguments], stdout=log, stderr=log)
            try:
                yield process
            finally:
                process.terminate()
                process.wait(60)
                log.seek(0)
                print(log.read().decode(errors="replace"))

    def remove(self) -> None:
        """Delete every container and image."""
        self._run("rm", "--all", "--force")
        self._run("rmi", "--all", "--force")

    def _run(self, *arguments: str) -> str:
        done = subprocess.run(
            [*self._podman, *arguments], capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@contextmanager
def store() -> Iterator[Store]:
    """An empty store; the test is skipped where podman cannot run."""
    if os.geteuid() != 0 or not shutil.which("podman"):
        pytest.skip("needs root and podman")
    if subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs a mount namespace of its own; this is an unprivileged container")
    # Not below pytest's folders: podman's sockets need short paths.
    with tempfile.TemporaryDirectory(prefix="cp") as folder:
        made = Store(Path(folder))
        try:
            yield made
        finally:
            made.remove()


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def get(process: subprocess.Popen[bytes], request: urllib.request.Request | str) -> bytes:
    """Ask until somebody listens; fails when the container has ended."""
    deadline = time.monotonic() + 120
    while True:
        try:
            with urllib.request.urlopen(request, timeout=120) as response:
                body: bytes = response.read()
                return body
        except (URLError, ConnectionError):
            assert process.poll() is None, "the container ended"
            assert time.monotonic() < deadline, "nothing answers"
            time.sleep(0.2)
