"""`coldpress inspect`: every byte of the file is accounted for, under the reader's own names."""

import json
import subprocess
import sys
from pathlib import Path

import gguf
import pytest

from coldpress.errors import InputError
from coldpress.inspect import inspect
from coldpress.quantize import QuantizeOptions, quantize
from tests import tiny_gguf


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model at Q4_0, an artifact of quantize."""
    folder = tmp_path_factory.mktemp("inspect")
    source = tiny_gguf.write(folder / "model.gguf")
    result = quantize(source, folder / "q", QuantizeOptions(type="Q4_0"))
    return Path(result.path).parent


def run(*args: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "coldpress.cli", "inspect", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_it_says_what_ggufs_reader_says(quantized: Path) -> None:
    found, reader = inspect(quantized), gguf.GGUFReader(quantized / "model.gguf")
    assert [e.name for e in found.tensors] == [t.name for t in reader.tensors]
    for entry, tensor in zip(found.tensors, reader.tensors, strict=True):
        assert entry.type == tensor.tensor_type.name
        assert entry.shape == tuple(int(n) for n in reversed(tensor.shape))
        assert entry.size_bytes == tensor.n_bytes
        assert entry.bits_per_weight == pytest.approx(8 * tensor.n_bytes / tensor.n_elements)
    stored = sum(int(t.n_bytes) for t in reader.tensors)
    weights = sum(int(t.n_elements) for t in reader.tensors)
    assert found.bits_per_weight == pytest.approx(8 * stored / weights)
    assert found.size_bytes == (quantized / "model.gguf").stat().st_size
    assert {t.type: t.n_tensors for t in found.types} == {"Q4_0": 16, "F32": 5}
    assert sum(t.size_bytes for t in found.types) == stored


def test_the_records_of_quantize_are_shown(quantized: Path, tmp_path: Path) -> None:
    records = json.loads((quantized / "tensors.json").read_bytes())["tensors"]
    by_name = {e.name: e for e in inspect(quantized).tensors}
    for record in records:
        assert by_name[record["name"]].relative_rms_error == record["relative_rms_error"]
    bare = tmp_path / "model.gguf"
    bare.write_bytes((quantized / "model.gguf").read_bytes())
    assert all(e.relative_rms_error is None and e.kl_nats is None for e in inspect(bare).tensors)
    records[3]["kl_nats"] = 0.25
    (tmp_path / "tensors.json").write_text(json.dumps({"tensors": records}))
    assert inspect(tmp_path).tensors[3].kl_nats == 0.25


@pytest.mark.parametrize("text", ["{", "{}", '{"tensors": [{"name": "output.weight"}]}'])
def test_records_of_another_file_are_refused(quantized: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "model.gguf").write_bytes((quantized / "model.gguf").read_bytes())
    (tmp_path / "tensors.json").write_text(text)
    with pytest.raises(InputError):
        inspect(tmp_path)


def test_the_command_prints_whole_names_and_sums_and_json(quantized: Path, tmp_path: Path) -> None:
    shown = run(quantized)
    assert shown.returncode == 0, shown.stderr
    for words in ("blk.1.attn_output.weight", "Q4_0", "bits/weight", "the file", "error"):
        assert words in shown.stdout
    data = json.loads(run(quantized, "--json").stdout)
    assert data["tensors"][0]["shape"] == list(inspect(quantized).tensors[0].shape)
    refused = run(tmp_path)
    assert refused.returncode == 5
    assert len(refused.stderr.splitlines()) == 2
