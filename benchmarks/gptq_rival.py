"""GPTQ checkpoints as files to judge: their true bytes, and their weights as an F32 GGUF.

The bytes are those of ``model.safetensors``, its 16-bit embeddings and head included. In F32 llama.cpp
does not round activations, which it does for every quantized file: the handicap is ours.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from benchmarks import ours
from benchmarks.rivals import File
from benchmarks.subjects import Subject
from coldpress import artifact
from coldpress.calibrate import statistics
from coldpress.convert import ConvertOptions, convert
from coldpress.gptq.options import BITS, GptqOptions
from coldpress.gptq.write import write


def files(subject: Subject, folder: Path) -> Iterator[tuple[File, int]]:
    """Write a checkpoint per number of bits; yields the dequantized GGUF and the checkpoint's bytes."""
    calibration = ours.calibration(subject, folder / "ours")
    key = [artifact.read(calibration).digest, artifact.code_digest("gptq")]
    for bits in BITS:
        out, gguf = folder / f"gptq-{bits}", folder / f"gptq-{bits}-f32"
        made_of = out / "made_of.json"
        if not made_of.is_file() or json.loads(made_of.read_text()) != key:
            write(subject.model, statistics.read(calibration), out, GptqOptions(bits=bits))
            convert(out, gguf, ConvertOptions(outtype="f32", name="gptq", verify=False))
            made_of.write_text(json.dumps(key))
        size = (out / "model.safetensors").stat().st_size
        yield File("gptq", f"{bits} bit", gguf / "model.gguf"), size
