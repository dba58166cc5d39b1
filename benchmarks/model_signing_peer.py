"""OpenSSF's model-signing in an environment of its own: it brings sigstore and forty packages with it.

    python benchmarks/model_signing_peer.py

The tests sign with it what we verify, and let it verify what we sign.
"""

import venv
from pathlib import Path

from coldpress.cache import cache_dir
from coldpress.tools import run

VERSION = "1.1.1"
# pyOpenSSL: it imports it and does not say so.
_PACKAGES = (f"model-signing=={VERSION}", "pyOpenSSL==26.4.0")


def program() -> Path:
    """Where its command is, or would be."""
    return cache_dir() / "peers" / f"model-signing-{VERSION}" / "bin" / "model_signing"


def install() -> Path:
    """Make the environment unless it is there."""
    found = program()
    folder = found.parents[1]
    if not found.is_file():
        # Its commands hold the path of their interpreter, so it is made in its place.
        venv.create(folder, clear=True, with_pip=True)
        run([folder / "bin" / "pip", "install", "-q", *_PACKAGES], timeout_s=600)
    return found


if __name__ == "__main__":
    print(install())
