"""Hugging Face checkpoint → GGUF, by llama.cpp's own converter, proven against transformers."""

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from coldpress import artifact, libllama, shapes
from coldpress.errors import ColdpressError, UnsupportedModelError, UsageError
from coldpress.progress import note

if TYPE_CHECKING:
    from coldpress.convert.parity import Parity
    from coldpress.convert.pretokenizer import PreTokenizer

Outtype = Literal["bf16", "f16", "f32"]

# The largest rms logit difference that is rounding, as a share of the logits' spread. Measured on
# random models of nine families and two trained ones: f32 up to 0.00025 (ggml's GELU table), bf16
# up to 0.017 for dense models and 0.042 for mixtures of experts (a rounded router picks others).
# Wrong conversions: 0.18 (Qwen3-MoE's experts not normalised), 0.36 (a wrong attention scale).
_TOLERANCE: dict[Outtype, float] = {"bf16": 0.1, "f16": 0.05, "f32": 0.01}


@dataclass(frozen=True)
class ConvertOptions:
    """How to convert.

    Args:
        outtype: type of the matrices; norms stay F32.
        name: the model's name in the GGUF's metadata; the folder's name or hub id by default.
        revision: branch, tag or commit of a hub id.
        pre_tokenizer: llama.cpp's name of the BPE pre-tokenizer, where it cannot be recognised.
        llama_cpp: folder of a llama.cpp checkout to take the converter from, instead of the
            runtime's own source.
        verify: compare tokens and logits with transformers' (needs the model in float32 in memory).
    """

    outtype: Outtype = "bf16"
    name: str | None = None
    revision: str | None = None
    pre_tokenizer: str | None = None
    llama_cpp: str | None = None
    verify: bool = True

    def __post_init__(self) -> None:
        if self.outtype not in get_args(Outtype):
            raise UsageError(
                f"no outtype {self.outtype!r}", f"one of: {', '.join(get_args(Outtype))}"
            )
        if self.name is not None and (not self.name.strip(". ") or "/" in self.name):
            raise UsageError(f"{self.name!r} is no model name", "use letters, digits, - and .")


@dataclass(frozen=True)
class Converted:
    """The GGUF, and how near it is to the original; the figures are None without ``verify``.

    ``tokens_agree``: libllama and transformers split a hard test text into the same tokens.
    """

    path: str
    size_bytes: int
    architecture: str
    tokens_agree: bool | None
    greedy_agreement: float | None
    max_logit_diff: float | None
    relative_logit_diff: float | None


def plan(
    model: str | Path, out: Path, options: ConvertOptions
) -> tuple[dict[str, Path], dict[str, object]]:
    """What a conversion depends on: (inputs, resolved options). A hub id is downloaded."""
    from coldpress.convert import hub

    inputs = {"model": hub.resolve(model, options.revision)}
    resolved = asdict(options) | {"name": options.name or Path(model).resolve().name}
    if resolved.pop("llama_cpp") is None:
        resolved["converter"] = f"llama-cpp-python {libllama.version()}"
    else:
        inputs["converter"] = Path(str(options.llama_cpp)) / "conversion"
    return inputs, resolved


def convert(model: str | Path, out: Path, options: ConvertOptions) -> Converted:
    """Convert a model folder or hub id and write the artifact ``out`` with ``model.gguf``.

    A GPTQ checkpoint is unpacked first; it is held against transformers' logits of what it unpacks to. Of one
    with blocks of different shapes (see ``shapes``) the zeros are left out, as llama.cpp's ``deci``.

    Raises:
        NotAModelError: no model folder, no config, no weights or no tokenizer.
        UnsupportedModelError: llama.cpp lacks the architecture, a setting or the pre-tokenizer, or
            its tokens or logits differ from transformers' by more than rounding.
        CorruptModelError: a weights file is missing or truncated.
        ToolError: the converter cannot be fetched or fails.
    """
    from coldpress.convert import checks, hub, pretokenizer, trim, upstream
    from coldpress.gptq import layout

    folder = hub.resolve(model, options.revision)
    config = checks.read_config(folder)
    packed, kept = layout.find(folder, config), shapes.of(config)
    checks.check_weights(folder)
    tree = upstream.source_tree(options.llama_cpp)
    checks.check_architecture(config, checks.known_architectures(tree))
    if (window := checks.ignored_window(config)) is not None:
        note(
            f"  note: llama.cpp ignores the sliding window; past {window} tokens answers may differ"
        )
    choice = pretokenizer.choose(folder, tree, options.pre_tokenizer)
    if choice.name is not None:
        note(f"  pre-tokenizer {choice.name}, {choice.how}")

    inputs, resolved = plan(model, out, options)
    tools = {"llama-cpp-python": libllama.version()}
    with artifact.create(out, "convert", inputs=inputs, options=resolved, tools=tools) as draft:
        gguf = draft.folder / "model.gguf"
        with (
            layout.plain(folder, packed, draft.folder / "plain", options.outtype) as plain,
            tempfile.TemporaryDirectory() as scratch,
        ):
            # The converter takes the model's name from the folder's; a link gives it ours.
            named = Path(scratch) / str(resolved["name"])
            named.symlink_to(plain.resolve(), target_is_directory=True)
            upstream.run(tree, named, gguf, options.outtype, choice.name)
            if kept is not None:
                whole = gguf.rename(gguf.with_suffix(".whole"))
                trim.trim(whole, kept, gguf)
                whole.unlink()
            if options.verify:
                text = pretokenizer.recognised(tree).text
                agree, parity = _verify(plain, gguf, options, choice, text)
                draft.measured |= {"tokens_agree": agree, "parity": vars(parity)}
        size_bytes = gguf.stat().st_size
    path, architecture = str(out / "model.gguf"), config["architectures"][0]
    if not options.verify:
        return Converted(path, size_bytes, architecture, None, None, None, None)
    return Converted(
        path=path,
        size_bytes=size_bytes,
        architecture=architecture,
        tokens_agree=agree,
        greedy_agreement=parity.greedy_agreement,
        max_logit_diff=parity.max_logit_diff,
        relative_logit_diff=parity.rms_logit_diff / parity.logit_std,
    )


def _verify(
    folder: Path, gguf: Path, options: ConvertOptions, choice: "PreTokenizer", text: str
) -> tuple[bool, "Parity"]:
    """Compare tokens and logits; a difference beyond rounding is an error, not a smaller number."""
    from coldpress.convert import parity, reference

    tokenizer = reference.load_tokenizer(folder)
    with parity.load(gguf) as loaded:
        ours, theirs = loaded.tokenize(text), tokenizer(text)["input_ids"]
        at = parity.first_difference(ours, theirs)
        if at is not None:
            _report_tokens(at, ours, theirs, choice)
        sequences = parity.prompts(tokenizer, text, loaded.vocab_size)
        candidate = [loaded.logits(ids) for ids in sequences]
    result = parity.compare(candidate, parity.reference_logits(folder, sequences))
    share = result.rms_logit_diff / result.logit_std
    if not share <= _TOLERANCE[options.outtype]:  # Also true for NaN.
        raise UnsupportedModelError(
            f"libllama's logits differ from transformers' by {share:.1%} of their spread",
            "llama.cpp runs this model differently; choose another, or report it there",
        )
    return at is None, result


def _report_tokens(at: int, ours: list[int], theirs: list[int], choice: "PreTokenizer") -> None:
    """Refuse a pre-tokenizer of our own choice that splits differently; mention upstream's own."""
    where = f"token {at} of the test text: {ours[at : at + 3]}, not {theirs[at : at + 3]}"
    if choice.name is None:
        note(f"  note: tokens differ from transformers' at {where}")
        return
    error: type[ColdpressError] = UsageError if choice.how == "given" else UnsupportedModelError
    raise error(
        f"with pre-tokenizer {choice.name} the tokens differ at {where}",
        "name another one with --pre-tokenizer",
    )
