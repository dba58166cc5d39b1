"""The model card: its golden bytes, that its commands make the same artifact, that it holds no path."""

import shlex
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from coldpress import artifact
from coldpress.artifact import Manifest
from coldpress.card import Card, Measured, contents
from coldpress.card.commands import commands
from coldpress.card.contents import Contents, Kind
from coldpress.convert import ConvertOptions, convert
from coldpress.errors import InputError
from coldpress.gptq import GptqOptions
from coldpress.gptq.stage import checkpoint as gptq_checkpoint
from coldpress.quantize import QuantizeOptions, quantize
from coldpress.report import ReportOptions, plan, report, rows
from tests import made_evaluations, tiny_gguf
from tests.test_cli import coldpress

GOLDEN = """\
---
base_model: tiny
library_name: gguf
license: apache-2.0
pipeline_tag: text-generation
tags:
- gguf
- coldpress
- Q4_K
base_model_relation: quantized
quantized_by: coldpress
---

# Q4_K imatrix

A GGUF of tiny, Q4_K; llama.cpp loads it as it is.

|  |  |
| --- | ---: |
| file | `model.gguf` |
| bytes | 4,300,000 |
| weights | 7,340,000 |
| bits per weight, of the tensors | 4.621 |
| tensors rounded with error feedback | 3 |

## Types

| type | tensors | weights | bytes | bits per weight |
| --- | ---: | ---: | ---: | ---: |
| Q4_K | 4 | 7,000,000 | 3,937,500 | 4.500 |
| F32 | 1 | 340,000 | 302,500 | 7.118 |

## Measured

|  | this file | bf16 |
| --- | ---: | ---: |
| bytes | 4,300,000 | 14,800,000 |
| accuracy by continuation | 92.0 % | 93.1 % |
| difference in points, 95 % | −1.1 [−1.9, −0.5] | – |
| accuracy by letter | 34.3 % | 34.4 % |
| perplexity | 18.3 | 18.2 |
| KL divergence from the base, nats | 0.0060 | – |
| same most likely token | 96.1 % | – |
| generated tokens/s | 253 | 137 |
| prompt tokens/s | 3,309 | 3,161 |
| peak memory | 44.3 MiB | 54.8 MiB |

- CPU: a CPU

## How it was made

```console
$ coldpress convert MODEL -o convert
$ coldpress calibrate MODEL --text TEXT --context 512 --max-tokens 65536 -o calibrate
$ coldpress quantize convert --type Q4_K --calibration calibrate --rounding compensated -o quantize
```

| input | sha256 |
| --- | ---: |
| MODEL | `aa` |
| TEXT | `bb` |

With coldpress 0.1.0, llama-cpp-python 0.3.36. All options, resolved:

```json
{
 "rounding": "compensated",
 "type": "Q4_K"
}
```
"""


def manifest(stage: str, inputs: dict[str, str], options: dict[str, object]) -> Manifest:
    tools = {"coldpress": "0.1.0", "llama-cpp-python": "0.3.36"}
    return Manifest(stage, "0" * 16, inputs, options, tools, ())


SOURCES = {
    "source": manifest("convert", {"model": "aa"}, {"name": "tiny", "outtype": "bf16"}),
    "calibration": manifest(
        "calibrate", {"model": "aa", "text": "bb"}, {"context": 512, "max_tokens": 65536}
    ),
}
MADE = manifest(
    "quantize",
    {"source": "cc", "calibration": "dd"},
    {"type": "Q4_K", "rounding": "compensated"},
)


def test_the_golden_card(tmp_path: Path) -> None:
    pair = [made_evaluations.DEMO[0], made_evaluations.DEMO[9]]
    folders = [made_evaluations.write(tmp_path / each[0], each) for each in pair]
    row, base = rows(folders)
    holds = Contents(
        file="model.gguf",
        library="gguf",
        name="Tiny",
        license="apache-2.0",
        size_bytes=4_300_000,
        n_weights=7_340_000,
        bits_per_weight=8 * 4_240_000 / 7_340_000,
        kinds=(Kind("Q4_K", 4, 7_000_000, 3_937_500), Kind("F32", 1, 340_000, 302_500)),
        n_compensated=3,
        n_fallback=0,
    )
    measured = Measured(row, base, (("CPU", "a CPU"),))
    made = Card(row.name, row.type, holds, MADE, SOURCES, measured)
    assert made.text().replace("\u00a0", " ") == GOLDEN
    assert ModelCard(made.text()).data.base_model == "tiny"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"type": "Q8_0", "rounding": "plain"}, "--type Q8_0"),
        ({"size": "1.9GB", "min_tok_s": 20.0}, "--size 1.9GB --min-tok-s 20.0"),
        ({"fit": "lambda:3008MB", "context": 512}, "--fit lambda:3008MB --context 512"),
        ({"bpw": 3.5, "heal": True}, "--bpw 3.5 --heal"),
        ({"type": "preset:Q4_0", "heal": False}, "--type preset:Q4_0"),
    ],
)
def test_inputs_that_are_no_artifacts_are_named_in_capitals(
    options: dict[str, object], words: str
) -> None:
    told = commands(manifest("quantize", {"source": "cc"}, options), {})
    assert told.lines == [f"coldpress quantize SOURCE {words} -o quantize"]
    assert told.given == [("SOURCE", "cc")]


def test_the_commands_make_the_same_artifacts(
    tmp_path: Path, random_llama: Path, random_gguf: Path, random_imatrix: Path
) -> None:
    """The oracle: run them where the names in capitals are the inputs."""
    out = tmp_path / "out"
    quantize(random_gguf, out, QuantizeOptions(type="Q4_0"), calibration=random_imatrix)
    sources = {"source": random_gguf, "calibration": random_imatrix}
    read = {role: artifact.read(folder) for role, folder in sources.items()}
    told = commands(artifact.read(out), read)
    place = tmp_path / "elsewhere"
    place.mkdir()
    (place / "MODEL").symlink_to(random_llama)
    text = str(random_imatrix.parent / "text.txt")  # its name is kept in the imatrix
    (place / "convert").symlink_to(random_gguf)
    converted, *lines = told.lines
    assert converted == "coldpress convert MODEL -o convert"
    for line in lines:
        done = coldpress(*shlex.split(line.replace("TEXT", text))[1:], cwd=place)
        assert done.returncode == 0, done.stderr
    assert artifact.read(place / "calibrate").run_id == read["calibration"].run_id
    assert artifact.read(place / "quantize").run_id == artifact.read(out).run_id
    assert (place / "quantize/README.md").read_text() == (out / "README.md").read_text()


def test_a_card_is_part_of_its_artifact_and_holds_no_path(tmp_path: Path) -> None:
    source = tiny_gguf.write(tmp_path / "source.gguf")
    for name in ("one", "other"):
        quantize(source, tmp_path / name, QuantizeOptions(type="Q8_0"))
    texts = [(tmp_path / name / "README.md").read_text() for name in ("one", "other")]
    assert texts[0] == texts[1]
    assert str(tmp_path) not in texts[0]
    assert "README.md" in [file.name for file in artifact.verify(tmp_path / "one").files]
    assert f"| SOURCE | `{artifact.sha256_file(source)}` |" in texts[0]
    assert f"| bytes | {(tmp_path / 'one/model.gguf').stat().st_size:,} |" in texts[0]
    assert ModelCard(texts[0]).data.to_dict()["base_model"] == "tiny"


def test_contents_of_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no model"):
        contents.read(tmp_path)


@pytest.mark.parametrize("bits", [3, 4])
def test_a_gptq_checkpoint_has_a_card_and_keeps_its_licence(
    tmp_path: Path, random_llama: Path, random_imatrix: Path, bits: int
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for path in random_llama.iterdir():
        (model / path.name).symlink_to(path)
    (model / "README.md").write_text("---\nlicense: mit\n---\n\nThe original's own card.\n")
    options = GptqOptions(bits=bits, group_size=64)
    written = gptq_checkpoint(model, tmp_path / "out", options, calibration=random_imatrix)
    made = ModelCard.load(tmp_path / "out/README.md")
    assert made.data.to_dict()["license"] == "mit"
    assert made.data.to_dict()["base_model"] == "model"
    assert made.data.library_name == "transformers"
    assert "The original's own card" not in made.content
    read = contents.read(tmp_path / "out")
    assert read.size_bytes == (tmp_path / "out/model.safetensors").stat().st_size
    assert read.bits_per_weight == pytest.approx(written.bits_per_weight)
    assert f"--format gptq --bits {bits} --calibration" in made.content
    # The card is read by llama.cpp's converter, which must take it.
    assert convert(tmp_path / "out", tmp_path / "gguf", ConvertOptions(outtype="f32")).tokens_agree
    assert contents.read(tmp_path / "gguf").license == "mit"


def test_the_report_has_a_card_per_file_and_finds_what_was_measured(tmp_path: Path) -> None:
    """Found by the digest of the folder or of the GGUF alone; where it is gone, the card says less."""
    options = {"type": "Q8_0", "rounding": "plain"}
    folder = tmp_path / "quantize" / "Q8_0"
    with artifact.create(folder, "quantize", inputs={}, options=options) as unfinished:
        tiny_gguf.write(unfinished.folder / "model.gguf")
    first = made_evaluations.write(tmp_path / "evaluate/a", made_evaluations.DEMO[0])
    second = made_evaluations.write(tmp_path / "evaluate/b", made_evaluations.DEMO[1], folder)
    third = made_evaluations.write(
        tmp_path / "evaluate/c", made_evaluations.DEMO[2], folder / "model.gguf"
    )
    given = [first, second, third]
    done = report(given, tmp_path / "report", ReportOptions())
    assert [Path(path).name for path in done.cards] == ["Q6_K.md", "Q8_0.md", "bf16.md"]
    texts = [Path(path).read_text(encoding="utf-8") for path in done.cards]
    assert ["## Types" in text for text in texts] == [True, True, False]
    assert all("## Measured" in text for text in texts)
    assert ["quantized_by: coldpress" in text for text in texts] == [True, True, False]
    artifact.verify(tmp_path / "report")
    inputs, resolved = plan(given, tmp_path / "report", ReportOptions())
    assert inputs["file 01"] == inputs["file 02"] == folder
    assert artifact.is_current(tmp_path / "report", "report", inputs, resolved)


def test_what_lies_near_and_is_no_artifact_is_passed_by(tmp_path: Path) -> None:
    """An artifact whose GGUF was deleted, and manifests of other programs."""
    folder = tmp_path / "quantize" / "Q8_0"
    with artifact.create(folder, "quantize", inputs={}, options={}) as unfinished:
        tiny_gguf.write(unfinished.folder / "model.gguf")
    evaluation = made_evaluations.write(tmp_path / "evaluate/a", made_evaluations.DEMO[1], folder)
    (folder / "model.gguf").unlink()
    for i, text in enumerate(['"a string"', "[1]", "{}", '{"files": 1}', "\x00", "7"]):
        (tmp_path / f"other{i}").mkdir()
        (tmp_path / f"other{i}" / "manifest.json").write_text(text)
    (tmp_path / "folder/manifest.json").mkdir(parents=True)
    (card_,) = report([evaluation], tmp_path / "report", ReportOptions()).cards
    assert "## Types" not in Path(card_).read_text(encoding="utf-8")


def test_names_that_make_one_file_name_get_two_cards(tmp_path: Path) -> None:
    made = made_evaluations.DEMO
    alike = [replace_name(made[1], "a b"), replace_name(made[2], "a/b"), made[0]]
    folders = [made_evaluations.write(tmp_path / str(i), each) for i, each in enumerate(alike)]
    done = report(folders, tmp_path / "report", ReportOptions())
    assert [Path(path).name for path in done.cards] == ["a-b.md", "a-b-2.md", "bf16.md"]


def replace_name(made: tuple[object, ...], name: str) -> tuple[object, ...]:
    return (name, *made[1:])
