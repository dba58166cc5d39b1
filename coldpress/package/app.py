"""The app layer: coldpress itself, as far as serving reaches."""

import ast
from collections.abc import Iterator
from pathlib import Path

import coldpress
from coldpress.artifact import sha256_json
from coldpress.package.layer import Entry, File

APP = "opt/coldpress/app"
_ROOT = Path(coldpress.__file__).parent
_ENTRY_POINT = "coldpress.serve.__main__"


def entries() -> list[Entry]:
    """Every module that the serving entry point imports, directly or not, and the page it serves."""
    files = [*_modules(), _ROOT / "serve/api/page.html"]
    return [File(f"{APP}/{path.relative_to(_ROOT.parent)}", path) for path in files]


def digest() -> str:
    """Sha256 over the app layer's sources."""
    return sha256_json([[e.path, e.sha256] for e in entries() if isinstance(e, File)])


def _modules() -> list[Path]:
    """Follow import statements, those inside functions too, through our own package."""
    found: dict[str, Path] = {}
    wanted = [_ENTRY_POINT]
    while wanted:
        name = wanted.pop()
        path = _locate(name)
        if path is None or name in found:
            continue
        found[name] = path
        wanted += _imports(ast.parse(path.read_bytes()))
        parent = name.rpartition(".")[0]
        wanted += [parent] if parent else []
    return sorted(found.values())


def _locate(name: str) -> Path | None:
    """A module's file; nothing for names inside a module."""
    path = _ROOT.parent.joinpath(*name.split("."))
    for candidate in (path / "__init__.py", path.with_suffix(".py")):
        if candidate.is_file():
            return candidate
    return None


def _imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.startswith("coldpress"))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("coldpress"):
            yield str(node.module)
            # `from package import module` names a module too
            yield from (f"{node.module}.{name.name}" for name in node.names)
