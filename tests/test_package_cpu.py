"""One image on CPUs from 2006 to today, by qemu: each takes kernels that it can run, and answers right."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import Request

import pytest

from coldpress.package import Packaged
from tests.containers import free_port, get
from tests.test_package_image import build

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

_WITH_PROC = 'mount --bind /proc "$1/proc" && exec /usr/sbin/chroot "$@"'
QUESTION = "Question: What is 12 × 11?\nAnswer:"
# qemu's name for a CPU → the backend. Of AVX-512 qemu emulates nothing.
CPUS = {
    "Conroe": "x64",  # x86-64-v1
    "Nehalem": "sse42",  # x86-64-v2
    "SandyBridge": "sandybridge",
    "Haswell": "haswell",  # x86-64-v3
}
AVX512 = {
    *("skylakex", "cannonlake", "cascadelake", "icelake"),
    *("cooperlake", "zen4", "sapphirerapids"),
}


@pytest.fixture(scope="module")
def image(demo_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Packaged:
    return build(demo_checkpoint, tmp_path_factory.mktemp("cpu") / "image", target="cloudrun")


@pytest.fixture(scope="module")
def root(image: Packaged, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image's files, unpacked by umoci."""
    for program in ("skopeo", "umoci", "qemu-x86_64-static"):
        if not shutil.which(program):
            pytest.skip(f"needs {program}")
    folder = tmp_path_factory.mktemp("unpacked")
    layout, bundle = folder / "layout", folder / "bundle"
    copy = ["skopeo", "copy", "--quiet", f"oci-archive:{image.archive}", f"oci:{layout}:image"]
    subprocess.run(copy, check=True)
    unpack = ["umoci", "unpack", "--image", f"{layout}:image", str(bundle)]
    subprocess.run(unpack, check=True, capture_output=True)
    shutil.copy(str(shutil.which("qemu-x86_64-static")), bundle / "rootfs/qemu")
    return bundle / "rootfs"


@contextmanager
def container(root: Path, cpu: str | None, port: int) -> "Iterator[subprocess.Popen[bytes]]":
    """The image's entrypoint in its files, on an emulated CPU or on this one."""
    process = json.loads((root.parent / "config.json").read_text())["process"]
    env = dict(each.split("=", 1) for each in process["env"]) | {"PORT": str(port)}
    emulated = [] if cpu is None else ["/qemu", "-cpu", cpu]
    argv = ["unshare", "--mount", "/bin/sh", "-c", _WITH_PROC, "sh", str(root), *emulated]
    argv += [*process["args"], "--threads", "1"]
    with (root.parent / "log").open("wb") as log:
        running = subprocess.Popen(argv, stdout=log, stderr=log, env=env)
        try:
            yield running
        finally:
            running.terminate()
            running.wait(60)
            print((root.parent / "log").read_text(errors="replace"))


def answer(root: Path, cpu: str | None) -> tuple[str, str]:
    """The CPU backend by the log, and what follows the question."""
    port = free_port()
    body = {"prompt": QUESTION, "max_tokens": 8, "temperature": 0, "stop": ["\n"]}
    with container(root, cpu, port) as process:
        url = f"http://127.0.0.1:{port}"
        get(process, f"{url}/readyz")
        asked = Request(f"{url}/v1/completions", json.dumps(body).encode())
        text = json.loads(get(process, asked))["choices"][0]["text"]
    log = (root.parent / "log").read_text(errors="replace").splitlines()
    (said,) = [json.loads(line) for line in log if '"cold_start"' in line]
    return said["cpu_variant"], text.strip()


@pytest.mark.parametrize(("cpu", "variant"), CPUS.items(), ids=CPUS)
def test_an_old_cpu_gets_its_kernels_and_the_right_answer(
    root: Path, cpu: str, variant: str
) -> None:
    assert answer(root, cpu) == (variant, "132")


def test_this_cpu_gets_its_best_kernels(root: Path) -> None:
    has_avx512 = " avx512vl " in Path("/proc/cpuinfo").read_text()
    variant, text = answer(root, None)
    assert text == "132"
    if not has_avx512:
        pytest.skip(f"no AVX-512 here; {variant} was taken")
    assert variant in AVX512
