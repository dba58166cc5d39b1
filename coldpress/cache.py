"""Where downloads and built parts are kept between runs."""

import os
from pathlib import Path


def cache_dir() -> Path:
    """``$COLDPRESS_CACHE``, else ``coldpress`` in the user's cache folder."""
    if chosen := os.environ.get("COLDPRESS_CACHE"):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "coldpress"
