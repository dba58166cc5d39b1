"""Rules on the files in an image's layers."""

from collections.abc import Iterator
from pathlib import PurePosixPath

from coldpress.package.lint.rootfs import Node
from coldpress.package.lint.rule import ERROR, LAMBDA_IMAGES, WARNING, Host, Subject, rule
from coldpress.package.lint.scan import MAX_EXAMPLES, Noted

# Where programs and their data lie; a distribution's own folders, and homes, are closed by right.
_PROGRAM_FOLDERS = ("app", "code", "opt", "srv", "usr/local", "var/task", "workspace")
# ELF's numbers: (bits, machine).
_ELF = {"amd64": (64, 62), "arm64": (64, 183)}
_EXECUTABLE_KINDS = (2, 3)


@rule(
    "escaping-entry",
    ERROR,
    "a layer's entry would be written outside the image's root",
    "https://cwe.mitre.org/data/definitions/22.html",
)
def escaping_entry(subject: Subject, _target: Host) -> Iterator[str]:
    """Absolute, with `..`, or through a link that leads out."""
    yield from subject.noted("escaping-entry")


@rule(
    "device-node",
    WARNING,
    "a layer holds device nodes; the platforms mount their own, and unpacking them needs root",
    "https://github.com/opencontainers/runtime-spec/blob/main/config-linux.md#default-devices",
)
def device_node(subject: Subject, _target: Host) -> Iterator[str]:
    """The platforms mount their own /dev."""
    yield from subject.noted("device-node")


@rule(
    "setuid-file",
    WARNING,
    "programs gain another user's rights; nothing here needs them",
    "https://cwe.mitre.org/data/definitions/250.html",
)
def setuid_file(subject: Subject, _target: Host) -> Iterator[str]:
    """Executables with setuid or setgid."""
    yield from subject.noted("setuid-file")


@rule(
    "secret-in-layer",
    ERROR,
    "a layer holds credentials, and keeps them even where a later layer deletes them",
    "https://docs.docker.com/build/building/secrets/",
)
def secret_in_layer(subject: Subject, _target: Host) -> Iterator[str]:
    """Keys, tokens, password files."""
    yield from subject.noted("secret-in-layer")


@rule(
    "pickled-model",
    WARNING,
    "loading a pickled model runs the code in it",
    "https://huggingface.co/docs/hub/security-pickle",
)
def pickled_model(subject: Subject, _target: Host) -> Iterator[str]:
    """Ship GGUF or safetensors."""
    yield from subject.noted("pickled-model")


@rule(
    "unreadable-file",
    ERROR,
    "the user that the platform runs cannot read a file or enter a folder of the program",
    LAMBDA_IMAGES,
)
def unreadable_file(subject: Subject, target: Host) -> Iterator[str]:
    """Lambda's user owns nothing: files need o+r, folders o+rx."""
    found = Noted()
    for path, node in _program_nodes(subject):
        if node.kind == "file" and not subject.allows(node, 4, target):
            found.add(f"{path} has mode {node.mode:o}")
        elif node.kind == "folder" and not subject.allows(node, 1, target):
            found.add(f"{path}/ has mode {node.mode:o}")
    yield from _examples(found)


@rule(
    "mixed-architecture",
    WARNING,
    "programs or libraries are for another CPU than the image",
    "https://github.com/opencontainers/image-spec/blob/main/config.md#properties",
)
def mixed_architecture(subject: Subject, _target: Host) -> Iterator[str]:
    """64-bit ELF files of the image's architecture are expected."""
    expected = _ELF.get(str(subject.image.config.get("architecture")))
    found = Noted()
    for path, node in subject.scanned.rootfs.files():
        if expected and node.elf and node.elf[2] in _EXECUTABLE_KINDS and node.elf[:2] != expected:
            found.add(f"{path} is {node.elf[0]}-bit, machine {node.elf[1]}")
    yield from _examples(found)


@rule(
    "single-cpu-build",
    WARNING,
    "llama.cpp was built without variants for other CPUs: it may die of SIGILL on the platform's",
    "https://github.com/penkow/llama-lambda/issues/1",
)
def single_cpu_build(subject: Subject, _target: Host) -> Iterator[str]:
    """A `libggml-cpu.so`, and no `libggml-cpu-haswell.so` and the like."""
    names = [PurePosixPath(path).name for path, _ in subject.scanned.rootfs.files()]
    plain = any(name.startswith("libggml-cpu.so") for name in names)
    if plain and not any(name.startswith("libggml-cpu-") for name in names):
        yield "libggml-cpu.so has no variants"


def _program_nodes(subject: Subject) -> Iterator[tuple[str, Node]]:
    """Nodes below the folders of programs, and those that the image itself names."""
    image = subject.image
    named = [str(image.run.get("WorkingDir") or "/"), *image.env.get("PYTHONPATH", "").split(":")]
    folders = {*_PROGRAM_FOLDERS, *(name.strip("/") for name in named)} - {""}
    for path, node in subject.scanned.rootfs.files():
        if any(path == it or path.startswith(f"{it}/") for it in folders):
            yield path, node


def _examples(found: Noted) -> Iterator[str]:
    yield from found.examples
    if found.count > MAX_EXAMPLES:
        yield f"and {found.count - MAX_EXAMPLES} more"
