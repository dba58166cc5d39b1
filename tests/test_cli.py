"""The command line as a person meets it: fast help, clean stdout, errors of two lines."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from coldpress import artifact, demo


def coldpress(*args: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "coldpress.cli", *map(str, args)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=300, cwd=cwd, check=False
    )


def refused(done: subprocess.CompletedProcess[str], code: int, words: str) -> None:
    """Exactly two lines on stderr, nothing on stdout, the class's exit code."""
    lines = done.stderr.splitlines()
    assert done.returncode == code, done.stderr
    assert len(lines) == 2, done.stderr
    assert lines[0].startswith("error: ")
    assert lines[1].startswith(" hint: ")
    assert re.search(words, lines[0]), lines[0]
    assert done.stdout == ""


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_help_lists_the_stages_and_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom coldpress import cli\nsys.argv = ['coldpress', '--help']\n"
        "try: cli.main()\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'numpy', 'llama_cpp', 'pydantic', 'yaml', 'lm_eval'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert "HEAVY []" in done.stdout
    for stage in (
        "convert",
        "quantize",
        "evaluate",
        "report",
        "checkpoint",
        "plan",
        "package",
        "deploy",
        "serve",
    ):
        assert re.search(rf"^\W+{stage} ", done.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    "module",
    [
        "convert",
        "calibrate",
        "quantize",
        "evaluate",
        "report",
        "checkpoint",
        "plan",
        "package",
        "recipe",
    ],
)
def test_importing_a_stage_loads_no_heavy_library(module: str) -> None:
    code = (
        f"import sys, coldpress.{module}\n"
        "heavy = {'torch', 'transformers', 'numpy', 'llama_cpp', 'lm_eval', 'matplotlib'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


def test_a_folder_without_config_json(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    done = coldpress("convert", tmp_path / "model", "-o", tmp_path / "out")
    refused(done, 10, r"config\.json")
    assert files(tmp_path) == ["model"]


def test_an_unknown_architecture(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(demo.MODEL_DIR, model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(
        json.dumps({**config, "architectures": ["GalaxyBrainForCausalLM"]})
    )
    refused(coldpress("convert", model, "-o", tmp_path / "out"), 11, "GalaxyBrainForCausalLM")
    assert files(tmp_path) == ["model"]


def test_a_truncated_safetensors_file(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(demo.MODEL_DIR, model)
    weights = model / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 1000)
    refused(coldpress("convert", model, "-o", tmp_path / "out"), 12, r"model\.safetensors.*1,?000")
    assert files(tmp_path) == ["model"]


def test_an_unknown_quantization_type(tmp_path: Path, demo_gguf: Path) -> None:
    done = coldpress("quantize", demo_gguf, "--type", "Q4_X", "-o", tmp_path / "out")
    refused(done, 13, "Q4_X")
    assert files(tmp_path) == []


def test_a_recipe_with_a_misspelt_key(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("name: r\nmodel: demo\nship: Q4_K\nquantize: {plan: [Q4_K]}\n")
    done = coldpress("run", recipe, "-o", tmp_path / "out")
    refused(done, 14, r"r\.yaml: unknown key quantize\.plan")
    assert "plain" in done.stderr
    assert files(tmp_path) == ["r.yaml"]


def test_a_flipped_byte_is_found_and_its_chunk_named(tmp_path: Path, demo_checkpoint: Path) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(demo_checkpoint, folder)
    done = coldpress("verify", folder)
    assert done.returncode == 0, done.stderr
    with (folder / "model.gguf").open("r+b") as stream:
        stream.seek(-1000, os.SEEK_END)
        byte = stream.read(1)[0]
        stream.seek(-1000, os.SEEK_END)
        stream.write(bytes([byte ^ 1]))
    refused(coldpress("verify", folder), 15, r"chunk \d+")


def test_an_image_over_the_limit(tmp_path: Path, demo_checkpoint: Path) -> None:
    done = coldpress(
        "package",
        demo_checkpoint,
        "--target",
        "lambda",
        "--limit-bytes",
        "1000",
        "-o",
        tmp_path / "out",
    )
    refused(done, 16, "1,?000|limit")
    assert files(tmp_path) == []


def test_a_port_in_use(demo_checkpoint: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        refused(
            coldpress("serve", demo_checkpoint, "--host", "127.0.0.1", "--port", port), 17, port
        )


def test_an_over_long_prompt(tmp_path: Path, demo_checkpoint: Path) -> None:
    done = coldpress("ask", demo_checkpoint, "word " * 3000, "-o", tmp_path / "out")
    refused(done, 18, r"\d+ tokens")
    assert files(tmp_path) == []


def test_json_is_one_line_on_stdout(tmp_path: Path, demo_gguf: Path) -> None:
    done = coldpress("quantize", demo_gguf, "--type", "q4_0", "-o", tmp_path / "q", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert Path(result["path"]).is_file()
    assert result["size_bytes"] == Path(result["path"]).stat().st_size


RECIPE = """
name: small
model: demo
ship: Q4_0-plain
quantize: {plain: [Q4_0, Q8_0]}
data: {questions: null}
evaluate: {profile: fast, n_chunks: 4, speed: false}
"""


def test_kill_9_in_the_middle_of_a_run_then_the_next_run_continues(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE)
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "coldpress.cli",
        "run",
        str(tmp_path / "r.yaml"),
        "-o",
        str(out),
    ]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not (out / "quantize/Q4_0-plain/manifest.json").exists():
        assert started.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    started.send_signal(signal.SIGKILL)
    started.communicate()
    for manifest in out.rglob("manifest.json"):
        if ".partial" not in str(manifest):
            artifact.verify(manifest.parent)
    done = coldpress("run", tmp_path / "r.yaml", "-o", out)
    assert done.returncode == 0, done.stderr
    assert re.search(r"convert +reused", done.stderr)
    assert re.search(r"quantize Q4_0-plain +reused", done.stderr)
    assert not list(out.rglob("*.partial"))
    assert (out / "report/report.html").is_file()
    again = coldpress("run", tmp_path / "r.yaml", "-o", out)
    assert all("reused" in line for line in again.stderr.splitlines() if line.startswith("  ")), (
        again
    )
    ls = coldpress("runs", "ls", "--json", "--store", tmp_path / ".store")
    first, second = (each["record"] for each in json.loads(ls.stdout)["records"])
    assert first == second  # of the same work; the killed run left none
    assert (first["command"], first["name"]) == ("run", "small")
    assert sorted(first["figures"]) == ["Q4_0", "Q8_0", "bf16"]
    gated = coldpress("gate", out, "--max-kl", "1", "--json")
    assert gated.returncode == 0, gated.stderr
    assert [each["name"] for each in json.loads(gated.stdout)["checks"]] == ["Q4_0"]
    assert (out / "report/cards/Q4_0.md").read_text().count("$ coldpress ") == 2


def test_ask_takes_an_address_and_draws_its_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests import loading
    from tests.range_server import serving

    monkeypatch.setenv("COLDPRESS_CACHE_BYTES", "0")
    folder = loading.made(tmp_path / "checkpoint")
    with serving(folder) as (address, _):
        done = coldpress("ask", address, "the sea", "--out", tmp_path / "answer", "--trace")
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip()
        drawn = {line.split()[0] for line in done.stderr.splitlines() if "|" in line}
        assert drawn == {"import", "fetch", "verify", "load", "context", "first_token"}
        refused(
            coldpress("ask", f"{address}/none.gguf", "x", "--out", tmp_path / "x"), 4, "not exist"
        )
    refused(coldpress("serve", "ftp://host/x"), 2, "no address of ours")
    refused(coldpress("serve", "http://user:secret@host/x"), 2, "not an address")
    refused(coldpress("serve", tmp_path, "--load", "quick"), 2, "no way to load")
