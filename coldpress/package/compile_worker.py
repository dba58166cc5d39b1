"""Compile every ``.py`` below a folder into pycs whose bytes depend on the sources alone.

Run as a program, ``python -s -S compile_worker.py FOLDER``: a fresh interpreter, so that nothing
that the caller has loaded shows in the result. A path below FOLDER is the path in the image.
"""

import importlib.util
import marshal
import sys
from pathlib import Path

# PEP 552: hash-based and never checked, so a read-only file system and a date of 1970 do no harm.
_UNCHECKED = b"\x01\x00\x00\x00"
# Later versions mark shared objects, and sharing depends on reference counts of the moment.
_MARSHAL_VERSION = 2


def compile_folder(root: Path) -> None:
    """Write ``__pycache__/NAME.pyc`` beside every source that compiles."""
    for path in sorted(root.rglob("*.py")):
        source = path.read_bytes()
        where = f"/{path.relative_to(root).as_posix()}"
        try:
            code = compile(source, where, "exec", dont_inherit=True, optimize=0)
        except (SyntaxError, ValueError):
            continue  # templates and tests of syntax errors; importing them fails as before
        pyc = Path(importlib.util.cache_from_source(str(path)))
        pyc.parent.mkdir(exist_ok=True)
        head = importlib.util.MAGIC_NUMBER + _UNCHECKED + importlib.util.source_hash(source)
        pyc.write_bytes(head + marshal.dumps(code, _MARSHAL_VERSION))


if __name__ == "__main__":
    compile_folder(Path(sys.argv[1]))
