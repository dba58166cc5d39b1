"""Building, pushing and planning images: ``reports/package.json``.

``python -m benchmarks.package`` takes the checkpoint of Llama-3.2-1B's dimensions (0.95 GB). Parts:

    build     our image against copying the weights twice, and against `buildah bud` of the equivalent Dockerfile,
              in turns; each in a process of its own, with its peak memory. Base and runtime are in our cache, and
              buildah is given them as layers
    push      what a rebuild with other app code sends to a registry that has the image
    plan      `coldpress plan` of three sizes against podman (benchmarks/package_plan.py)
    variants  tok/s of the demo model on each CPU backend that runs here
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

from benchmarks import load_model, package_plan, serve_models
from benchmarks.conditions import conditions
from benchmarks.serve_report import Quiet
from coldpress import libllama
from coldpress.package import PackageOptions, app, package
from coldpress.package.layer import File
from coldpress.package.lint import RULES
from coldpress.package.registry import pull, push
from tests.registries import registry

REPORT = Path(__file__).resolve().parents[1] / "reports/package.json"
PARTS = ("build", "push", "plan", "variants")
_BUILD = """
import os, re, sys
from pathlib import Path
from coldpress.package import PackageOptions, package
os.umask(int(sys.argv[3], 8))
print(package(Path(sys.argv[1]), Path(sys.argv[2]), PackageOptions(target="compose")).digest)
# The kernel's ru_maxrss would count what started this process, too.
print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""
_COPY = """
import shutil, sys
for number in range(2):
    shutil.copyfile(sys.argv[1], f"{sys.argv[2]}/{number}")
"""
_ON = """
import runpy, sys
from pathlib import Path
from coldpress import libllama
if not libllama.register(Path(sys.argv.pop(1))):
    sys.exit(77)
runpy.run_module("benchmarks.serve_engine", run_name="__main__")
"""
_UNSUPPORTED = 77
Run = dict[str, float]


def build(rounds: int, scratch: Path) -> dict[str, Any]:
    """Ours, two copies and buildah in turns."""
    checkpoint = load_model.checkpoint()
    context = _context(checkpoint, scratch)
    bud = ["buildah", "--storage-driver", "vfs", "--root", str(scratch / "root")]
    bud += ["--runroot", str(scratch / "run"), "bud", "--quiet", "--layers=false"]
    bud += ["--isolation", "chroot", "--tag", "image", str(context)]
    runs: dict[str, list[Run]] = {"coldpress": [], "copy twice": [], "buildah": []}
    digests = set()
    for number in range(rounds):
        # Another folder and another umask each time: the image is the same.
        out, copies, umask = (
            scratch / f"out{number}",
            scratch / "copies",
            ("022", "077")[number % 2],
        )
        copies.mkdir()
        argv = [sys.executable, "-c", _BUILD, str(checkpoint), str(out), umask]
        taken, said = _timed(argv)
        digest, peak_kib = said.split()
        digests.add(digest)
        runs["coldpress"].append({**taken, "peak_rss_mib": round(int(peak_kib) / 1024, 1)})
        shutil.rmtree(out)
        weights = str(checkpoint / "model.gguf")
        runs["copy twice"].append(_timed([sys.executable, "-c", _COPY, weights, str(copies)])[0])
        shutil.rmtree(copies)
        runs["buildah"].append(_timed(bud)[0])
        for folder in ("root", "run"):
            shutil.rmtree(scratch / folder, ignore_errors=True)
        print({name: taken[-1] for name, taken in runs.items()}, file=sys.stderr)
    if len(digests) != 1:
        raise SystemExit(f"the same image has several digests: {digests}")
    size = (checkpoint / "model.gguf").stat().st_size
    return {"size_bytes": size, "digest": digests.pop(), "runs": runs}


def _context(checkpoint: Path, scratch: Path) -> Path:
    """A folder with our image's Dockerfile and its layers, the weights' as files to copy."""
    made = package(checkpoint, scratch / "image", PackageOptions(target="compose"))
    layout, context = scratch / "layout", scratch / "context"
    copy = ["skopeo", "copy", "--quiet", f"oci-archive:{made.archive}", f"dir:{layout}"]
    subprocess.run(copy, check=True)
    (context / "layers").mkdir(parents=True)
    lines = []
    for line in (made.path / "Dockerfile").read_text(encoding="utf-8").splitlines():
        if not line.startswith("ADD layers/"):
            lines.append(line)
            continue
        digest = line.split()[1].removeprefix("layers/")
        (layer,) = [each for each in made.layers if each.digest.endswith(digest)]
        if layer.purpose == "weights":
            lines.append("COPY model /opt/coldpress/model")
        else:
            lines.append(line)
            shutil.copyfile(layout / digest, context / "layers" / digest)
    shutil.copytree(checkpoint, context / "model")
    (context / "Dockerfile").write_text("\n".join(lines) + "\n", encoding="utf-8")
    shutil.rmtree(layout)
    shutil.rmtree(made.path)
    return context


def _timed(argv: Sequence[str]) -> tuple[Run, str]:
    """Wall and CPU seconds of a process and those that it waits for; what it printed."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        began = time.monotonic()
        process = subprocess.Popen(argv, stdout=out, stderr=err)
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.monotonic() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        for stream in (out, err):
            stream.seek(0)
        if process.returncode:
            said = err.read().decode(errors="replace")[-500:]
            raise SystemExit(f"{argv[0]} failed: {said}")
        taken = {
            "seconds": round(seconds, 3),
            "cpu_s": round(used.ru_utime + used.ru_stime, 3),
        }
        return taken, out.read().decode()


def pushes(scratch: Path) -> dict[str, Any]:
    """Push the image, the same again, and one with a changed app; pull it back."""
    checkpoint = load_model.checkpoint()
    extra = scratch / "extra.py"
    extra.write_text("CHANGED = True\n")
    entries = app.entries

    def changed() -> Any:
        return [*entries(), File(f"{app.APP}/coldpress/extra.py", extra)]

    found: dict[str, Any] = {}
    options = PackageOptions(target="compose")
    with registry(scratch) as host:
        first = package(checkpoint, scratch / "first", options)
        found["first"] = _pushed(first.archive, f"{host}/model:1")
        found["again"] = _pushed(first.archive, f"{host}/model:1")
        first.archive.unlink()
        with mock.patch.object(app, "entries", changed):
            second = package(checkpoint, scratch / "second", options)
        found["app_changed"] = _pushed(second.archive, f"{host}/model:2")
        began = time.monotonic()
        pull(f"{host}/model:2", scratch / "pulled")
        found["pull_s"] = round(time.monotonic() - began, 3)
    return found


def _pushed(archive: Path, name: str) -> dict[str, Any]:
    began = time.monotonic()
    sent = push(archive, name)
    seconds = round(time.monotonic() - began, 3)
    return {"sent_bytes": sent.sent_bytes, "n_present": sent.n_present, "seconds": seconds}


def variants() -> dict[str, Any]:
    """tok/s of our engine on each backend of the wheel; None where this CPU cannot run it."""
    gguf = str(serve_models.gguf("demo"))
    found: dict[str, Any] = {}
    for backend in libllama.backends():
        done = subprocess.run(
            [sys.executable, "-c", _ON, str(backend), gguf],
            capture_output=True,
            text=True,
            check=False,
        )
        name = backend.stem.removeprefix("libggml-cpu-")
        if done.returncode not in (0, _UNSUPPORTED):
            raise SystemExit(f"{name}: {done.stderr[-500:]}")
        found[name] = None if done.returncode else json.loads(done.stdout)
        print(name, found[name], file=sys.stderr)
    return {"tok_s": found, "taken_here": libllama.cpu_variant()}


def headline(report: dict[str, Any]) -> dict[str, float]:
    """The figures of the parts that are there."""
    found: dict[str, float] = {"lint_rules": len(RULES)}
    if "build" in report:
        runs = report["build"]["runs"]
        seconds = {name: median(run["seconds"] for run in taken) for name, taken in runs.items()}
        found["build_vs_copy_twice"] = seconds["coldpress"] / seconds["copy twice"]
        found["build_speedup_vs_buildah"] = seconds["buildah"] / seconds["coldpress"]
        found["build_peak_rss_mib"] = max(run["peak_rss_mib"] for run in runs["coldpress"])
    if "push" in report:
        found["rebuild_pushed_bytes"] = report["push"]["app_changed"]["sent_bytes"]
    if "plan" in report:
        found |= package_plan.errors(report["plan"]["sizes"])
    return {name: round(value, 3) for name, value in found.items()}


def main() -> None:
    """Measure the parts asked for and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=PARTS, action="append")
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    report = json.loads(REPORT.read_text()) if REPORT.exists() else {}
    for part in asked.only or PARTS:
        quiet = Quiet()
        with tempfile.TemporaryDirectory(dir=serve_models.scratch()) as folder:
            scratch = Path(folder)
            match part:
                case "build":
                    measured = build(asked.rounds, scratch)
                case "push":
                    measured = pushes(scratch)
                case "plan":
                    measured = {"sizes": package_plan.compare(scratch)}
                case _:
                    measured = variants()
        about = {**conditions("python -m benchmarks.package"), "others_cpus": quiet.others_cpus()}
        report[part] = {"conditions": about, **measured}
    report = {"headline": headline(report), **{k: v for k, v in report.items() if k != "headline"}}
    REPORT.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report["headline"], indent=1))


if __name__ == "__main__":
    main()
