"""The file system that an image's layers make, names and modes only."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["folder", "file", "link", "other"]
_MAX_LINKS = 40


class EscapeError(Exception):
    """A path leads out of the root."""


@dataclass(slots=True)
class Node:
    """One file, folder or link; ``implied`` folders have no entry of their own.

    ``elf`` is (class in bits, machine, type) of an ELF file, ``interpreter`` what a script names
    in its first line.
    """

    kind: Kind
    mode: int = 0o755
    uid: int = 0
    gid: int = 0
    size_bytes: int = 0
    target: str = ""
    layer: int = 0
    implied: bool = False
    elf: tuple[int, int, int] | None = None
    interpreter: str = ""
    children: dict[str, "Node"] = field(default_factory=dict)


class Rootfs:
    """A tree of nodes, changed layer by layer."""

    def __init__(self) -> None:
        self.root = Node("folder")
        self.count = 0
        self.hidden_bytes = 0

    def parent(self, parts: list[str], layer: int) -> tuple[Node, str | None]:
        """The folder that an entry goes into, made where it is missing, and what was missing first.

        Raises:
            EscapeError: a link on the way leads out of the root, or out of the layer that has it.
        """
        node, missing = self.root, None
        for depth, part in enumerate(parts[:-1]):
            child = node.children.get(part)
            if child is not None and child.kind == "link":
                climbs = _climbs(parts[:depth], child.target)
                # A layer that is a difference of file systems never writes through its own links.
                if climbs or (child.layer == layer and child.target.startswith("/")):
                    raise EscapeError(f"through {'/'.join(parts[: depth + 1])} → {child.target}")
                child = self.find("/".join(parts[: depth + 1]))
            if child is None or child.kind != "folder":
                child = Node("folder", layer=layer, implied=True)
                self.put(node, part, child)
                missing = missing or "/".join(parts[: depth + 1])
            node = child
        return node, missing

    def put(self, folder: Node, name: str, node: Node) -> None:
        """Place a node; a folder onto a folder keeps what is in it."""
        old = folder.children.get(name)
        if old is not None and old.kind == node.kind == "folder":
            node.children = old.children
        elif old is not None:
            self.remove(folder, name, node.layer)
        self.count += old is None
        folder.children[name] = node

    def remove(self, folder: Node, name: str, layer: int) -> None:
        """Take a node away; the bytes of files in lower layers stay in the image all the same."""
        node = folder.children.pop(name, None)
        if node is not None:
            self.hidden_bytes += sum(
                each.size_bytes for _, each in walk(node, name) if each.layer != layer
            )

    def find(self, path: str) -> Node | None:
        """What a path leads to, through links, which cannot leave the root."""
        trail = self.trail(path)
        return trail[-1] if trail else None

    def trail(self, path: str) -> list[Node]:
        """The folders on the way to a path, and what is there; nothing where nothing is."""
        links = 0
        todo = [part for part in reversed(path.split("/")) if part]
        trail = [self.root]
        while todo:
            part = todo.pop()
            if part == ".":
                continue
            if part == "..":
                trail = trail[:-1] or [self.root]
                continue
            child = trail[-1].children.get(part)
            if child is None:
                return []
            if child.kind == "link":
                links += 1
                if links > _MAX_LINKS:
                    return []
                trail = [self.root] if child.target.startswith("/") else trail
                todo += [it for it in reversed(child.target.split("/")) if it]
                continue
            trail.append(child)
        return trail

    def files(self) -> Iterator[tuple[str, Node]]:
        """Every node but the root by its path, parents first."""
        return ((path, node) for path, node in walk(self.root, "") if path)


def walk(node: Node, path: str) -> Iterator[tuple[str, Node]]:
    """A node and all below it by their paths, parents first."""
    todo = [(path, node)]
    while todo:
        path, node = todo.pop()
        yield path, node
        prefix = f"{path}/" if path else ""
        todo += [
            (prefix + name, node.children[name]) for name in sorted(node.children, reverse=True)
        ]


def _climbs(folder: list[str], target: str) -> bool:
    """Whether a relative target has more ``..`` than there are folders above it."""
    depth = 0 if target.startswith("/") else len(folder)
    for part in target.split("/"):
        depth += {"..": -1, ".": 0, "": 0}.get(part, 1)
        if depth < 0:
            return True
    return False
