"""The card's words, and its front matter by ``huggingface_hub.ModelCardData``."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coldpress import artifact
from coldpress.card.commands import commands
from coldpress.card.contents import Contents, Kind, read
from coldpress.errors import ToolError
from coldpress.report import words

if TYPE_CHECKING:
    from coldpress.artifact import Draft, Manifest
    from coldpress.report import Row

FILE = "README.md"


@dataclass(frozen=True)
class Measured:
    """What the report says of a file, beside the base, and (what, value) of how it was measured."""

    row: "Row"
    base: "Row | None"
    conditions: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Card:
    """Everything a card may say; what is None is left out.

    ``sources``: role → manifest of those inputs that are artifacts.
    """

    name: str
    type: str
    contents: Contents | None = None
    manifest: "Manifest | None" = None
    sources: Mapping[str, "Manifest"] = field(default_factory=dict)
    measured: Measured | None = None

    def text(self) -> str:
        """The card as Markdown with its front matter."""
        card = _hub().ModelCard(f"---\n{self._data()}\n---\n\n{self._body()}")
        return str(card)

    def _data(self) -> str:
        gguf = self.contents is None or self.contents.library == "gguf"
        ours = any(each.stage == "quantize" for each in self._stages())
        data = _hub().ModelCardData(
            base_model=self._base(),
            base_model_relation="quantized" if ours and self._base() else None,
            library_name="gguf" if gguf else "transformers",
            license=self.contents.license if self.contents else None,
            pipeline_tag="text-generation",
            quantized_by="coldpress" if ours else None,
            tags=["gguf" if gguf else "gptq", "coldpress", self.type.replace(" ", "-")],
        )
        return str(data.to_yaml())

    def _stages(self) -> "list[Manifest]":
        """The manifests that are known, the artifact's own last."""
        return [*self.sources.values(), *([self.manifest] if self.manifest else [])]

    def _base(self) -> str | None:
        """The base's name: as a stage was given it, else as the file has it."""
        named = (each.options.get("name") for each in self._stages())
        return next((str(name) for name in named if name), None) or (
            self.contents.name if self.contents else None
        )

    def _body(self) -> str:
        parts = [f"# {self.name}", self._sentence()]
        if self.contents is not None:
            parts += [_file(self.contents), "## Types", _types(self.contents.kinds)]
        if self.measured is not None:
            parts += ["## Measured", _figures(self.measured), _list(self.measured.conditions)]
        if self.manifest is not None:
            parts += ["## How it was made", *_made(self.manifest, self.sources)]
        return "\n\n".join(part for part in parts if part) + "\n"

    def _sentence(self) -> str:
        base = f" of {base}" if (base := self._base()) else ""
        if self.contents is not None and self.contents.library == "transformers":
            return f"A GPTQ checkpoint{base}; transformers loads it with gptqmodel."
        return f"A GGUF{base}, {self.type}; llama.cpp loads it as it is."


def of_folder(
    name: str,
    type_: str,
    folder: Path,
    sources: Mapping[str, "Manifest"],
    measured: Measured | None = None,
) -> Card:
    """The card of a finished artifact."""
    return Card(name, type_, read(folder), artifact.read(folder), sources, measured)


def write(draft: "Draft", type_: str) -> None:
    """Write ``README.md`` into an artifact that is being written, when its model is there.

    Args:
        type_: what was asked for, in few words.
    """
    sources = {
        role: artifact.read(path)
        for role, path in draft.inputs.items()
        if (path / artifact.MANIFEST).is_file()
    }
    card = Card(type_, type_, read(draft.folder), draft.manifest, sources)
    (draft.folder / FILE).write_text(card.text(), encoding="utf-8")


def _file(contents: Contents) -> str:
    about = [
        ("file", f"`{contents.file}`"),
        ("bytes", f"{contents.size_bytes:,}"),
        ("weights", f"{contents.n_weights:,}"),
        ("bits per weight, of the tensors", f"{contents.bits_per_weight:.3f}"),
    ]
    if contents.n_compensated is not None:
        about.append(("tensors rounded with error feedback", str(contents.n_compensated)))
    if contents.n_fallback:
        about.append(
            ("tensors of another type than asked for, by their shape", str(contents.n_fallback))
        )
    return _table(("", ""), about)


def _types(kinds: Sequence[Kind]) -> str:
    return _table(
        ("type", "tensors", "weights", "bytes", "bits per weight"),
        [
            (
                kind.type,
                str(kind.n_tensors),
                f"{kind.n_weights:,}",
                f"{kind.size_bytes:,}",
                f"{8 * kind.size_bytes / kind.n_weights:.3f}",
            )
            for kind in kinds
        ],
    )


def _figures(measured: Measured) -> str:
    row, base = measured.row, measured.base
    difference = (
        ""
        if row.delta is None
        else f"{words.points(row.delta)} [{words.points(row.delta_low)}, {words.points(row.delta_high)}]"
    )
    other = "continuation" if row.scoring == "letter" else "letter"
    shown = [("this file", row)] + ([] if base is None or row.is_base else [(base.name, base)])
    lines: list[tuple[str, ...]] = [
        ("bytes", *(f"{of.size_bytes:,}" for _, of in shown)),
        (f"accuracy by {row.scoring}", *(words.percent(of.accuracy) for _, of in shown)),
        (f"accuracy by {other}", *(words.percent(of.other_accuracy) for _, of in shown)),
        ("perplexity", *(words.number(of.perplexity) for _, of in shown)),
        ("KL divergence from the base, nats", *(words.kl(of.kl_mean) for _, of in shown)),
        ("same most likely token", *(words.percent(of.same_top1) for _, of in shown)),
        ("generated tokens/s", *(words.number(of.generate_tok_per_s) for _, of in shown)),
        ("prompt tokens/s", *(words.number(of.prompt_tok_per_s) for _, of in shown)),
        ("peak memory", *(words.number(of.peak_rss_mib, "MiB") for _, of in shown)),
    ]
    if difference and not row.is_base:
        lines.insert(
            2, ("difference in points, 95 %", difference, *(words.NOTHING for _ in shown[1:]))
        )
    told = [line for line in lines if any(cell != words.NOTHING for cell in line[1:])]
    return _table(("", *(name for name, _ in shown)), told)


def _made(manifest: "Manifest", sources: Mapping[str, "Manifest"]) -> list[str]:
    told = commands(manifest, sources)
    runs = "\n".join(f"$ {line}" for line in told.lines)
    given = [(name, f"`{digest}`") for name, digest in told.given]
    options = json.dumps(manifest.options, indent=1, sort_keys=True, ensure_ascii=False)
    tools = ", ".join(f"{name} {of}" for name, of in sorted(manifest.tools.items()))
    return [
        f"```console\n{runs}\n```",
        _table(("input", "sha256"), given) if given else "",
        f"With {tools}. All options, resolved:",
        f"```json\n{options}\n```",
    ]


def _list(pairs: Iterable[tuple[str, str]]) -> str:
    return "\n".join(f"- {what}: {value}" for what, value in pairs)


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rule = ["---", *("---:" for _ in head[1:])]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *lines))


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ToolError(
            "huggingface_hub is not installed", "pip install 'coldpress[report]'"
        ) from error
    return huggingface_hub
