"""A bf16 GGUF → a quantized GGUF that stock llama.cpp loads, in bytes that ggml itself decodes."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from coldpress import artifact, libllama
from coldpress.counts import parse_count
from coldpress.errors import UsageError
from coldpress.progress import note
from coldpress.quantize.types import PRESET_PREFIX, TYPES, GgmlType, Preset, resolve

if TYPE_CHECKING:
    from coldpress.calibrate.imatrix import Imatrix
    from coldpress.quantize.make import Made
    from coldpress.quantize.measure import TensorRecord

_DEFAULT_TYPE = "Q4_K_M"


@dataclass(frozen=True)
class QuantizeOptions:
    """What to quantize to: a type, or a budget that a type per tensor is searched for.

    Args:
        type: a ggml type for every matrix, or one of llama.cpp's presets; see ``types``. Q4_K_M if no budget.
        size: a budget for the file, ``1.9GB`` or ``700MiB``.
        bpw: a budget in bits per weight, over every weight of the file.
        fit: a budget from a platform's memory, ``lambda:3008MB`` or ``cloudrun:2GiB``.
        context: tokens of KV cache that ``fit`` leaves room for; the platform's default if None.
        min_tok_s: the fewest tokens per second that reading the weights may allow, on this machine's CPU.
        rounding: ``compensated`` feeds errors back under second moments, ``imatrix`` is ggml's own; None: the
            best that the calibration allows.
        probe_tokens: tokens that plans are judged on.
        tries: plans near the allocated one that are judged on the true KL.
        heal: train norms, block scales and codes after rounding, by KL to the model, on its own text.
        teach: the same with so many tokens of lessons, ``2M``: quantization-aware distillation.
    """

    type: str | None = None
    size: str | None = None
    bpw: float | None = None
    fit: str | None = None
    context: int | None = None
    min_tok_s: float | None = None
    rounding: Literal["compensated", "imatrix"] | None = None
    probe_tokens: int = 4096
    tries: int = 16
    heal: bool = False
    teach: str | None = None

    def __post_init__(self) -> None:
        from coldpress.quantize import budget

        wanted = [self.type, self.size, self.bpw, self.fit]
        if sum(each is not None for each in wanted) > 1:
            raise UsageError(
                "a type and a budget, or two budgets", "give one of --type, --size, --bpw, --fit"
            )
        if self.type is not None:
            resolve(self.type)
        if self.size is not None:
            budget.parse_size(self.size)
        if self.bpw is not None:
            budget.parse_bits(str(self.bpw))
        if self.teach is not None:
            parse_count(self.teach)
        if self.teach is not None and self.heal:
            raise UsageError("healing is teaching on the model's own text", "give one of the two")
        if self.rounding not in (None, "compensated", "imatrix"):
            raise UsageError(f"no rounding {self.rounding!r}", "compensated or imatrix")
        if self.min_tok_s is not None and not (self.searches and self.min_tok_s > 0):
            raise UsageError(
                "--min-tok-s needs a budget to search in", "add --size, --bpw or --fit"
            )
        if self.probe_tokens < 1 or self.tries < 0:
            raise UsageError(
                "probe_tokens is 1 or more, tries 0 or more", "leave them at their defaults"
            )

    @property
    def searches(self) -> bool:
        """Whether there is a budget to search a plan for."""
        return any(each is not None for each in (self.size, self.bpw, self.fit))

    @property
    def trains(self) -> bool:
        """Whether the rounded file is trained."""
        return self.heal or self.teach is not None

    @property
    def kind(self) -> GgmlType | Preset | None:
        """The type or preset; None where a plan is searched for."""
        return None if self.searches else resolve(self.type or _DEFAULT_TYPE)


@dataclass(frozen=True)
class Quantized:
    """The written file.

    ``bits_per_weight`` counts every tensor's bytes over every weight; ``n_fallback`` is the number
    of tensors whose rows the asked type's blocks do not divide, each listed in ``tensors.json``;
    ``n_compensated`` that of those whose error feedback was accepted on held-out inputs. ``kl_nats`` is the
    searched plan's KL on the probe tokens, before training; ``trained`` whether training improved the file.
    """

    path: str
    type: str
    size_bytes: int
    bits_per_weight: float
    n_tensors: int
    n_fallback: int
    n_compensated: int
    imatrix: bool
    kl_nats: float | None
    trained: bool


def plan(
    source: Path,
    out: Path,
    options: QuantizeOptions,
    *,
    calibration: Path | None = None,
    model: Path | None = None,
    teacher: Path | None = None,
    text: str | Path | None = None,
    against: Sequence[Path] = (),
) -> tuple[dict[str, Path], dict[str, object]]:
    """What a quantization depends on: (inputs, resolved options)."""
    given = {"source": source, "calibration": calibration, "model": model, "teacher": teacher}
    given["text"] = Path(text) if text is not None and Path(text).exists() else None
    given |= {f"against {index}": path for index, path in enumerate(against)}
    inputs = {name: path for name, path in given.items() if path is not None}
    resolved: dict[str, object] = {
        **asdict(options),
        "type": None if options.kind is None else _canonical(options.kind),
        "rounding": rounding(options, calibration),
        "encoder": f"llama-cpp-python {libllama.version()}",
    }
    if text is not None and "text" not in inputs:
        resolved["text"] = str(text)
    return inputs, resolved


def rounding(options: QuantizeOptions, calibration: Path | None) -> str:
    """How tensors are rounded: what is asked for, else the best that the calibration allows."""
    if options.rounding is not None and calibration is not None:
        return options.rounding
    if calibration is None:
        return "plain"
    return "compensated" if has_moments(calibration) else "imatrix"


def has_moments(calibration: Path | None) -> bool:
    """Whether a calibration is more than an imatrix."""
    return calibration is not None and (calibration / "statistics.json").is_file()


def quantize(
    source: Path,
    out: Path,
    options: QuantizeOptions,
    *,
    calibration: Path | None = None,
    model: Path | None = None,
    teacher: Path | None = None,
    text: str | Path | None = None,
    against: Sequence[Path] = (),
) -> Quantized:
    """Quantize a GGUF and write the artifact ``out`` with ``model.gguf`` and ``tensors.json``.

    Candidates and measured figures are kept in ``.bank`` beside ``out``: other budgets and an interrupted
    run go on from there.

    Args:
        source: a GGUF file of F32, F16 or BF16 tensors, or an artifact that holds ``model.gguf``.
        calibration: an artifact of calibrate, or an ``imatrix.gguf`` alone.
        model: the Hugging Face folder that ``source`` was converted from; to search and to train with.
        teacher: whose answers are taught; ``model`` itself if None.
        text: what they are answers to: files, a folder or a data set's name.
        against: texts that the file will be evaluated on.

    Raises:
        InputError: the source is not a GGUF or already quantized; the calibration is another model's.
        UsageError: what is asked needs a calibration or the model; a budget cannot be met; no type fits the
            model's rows.
    """
    from coldpress import card
    from coldpress.quantize import importance
    from coldpress.quantize import source as sources
    from coldpress.quantize.make import Lessons, Task, make

    path = sources.gguf_path(source)
    _check(options, calibration, model, text)
    reader = sources.open_unquantized(path)
    weights = None if calibration is None else importance.read(calibration, reader)
    inputs, resolved = plan(
        source,
        out,
        options,
        calibration=calibration,
        model=model,
        teacher=teacher,
        text=text,
        against=against,
    )
    tools = {"llama-cpp-python": libllama.version()}
    with artifact.create(out, "quantize", inputs=inputs, options=resolved, tools=tools) as draft:
        gguf = draft.folder / "model.gguf"
        kept = out.parent / ".lessons"
        lessons = None if text is None else Lessons(teacher, text, tuple(against), kept)
        banks = out.parent / ".bank"
        task = Task(path, reader, weights, calibration, model, banks, options, lessons)
        made = make(task, gguf)
        records = _measure(reader, gguf, options.kind, weights, made)
        _write_records(draft.folder / "tensors.json", records)
        card.write(draft, _describe(options))
        size_bytes = gguf.stat().st_size
    fallbacks = [record for record in records if record.instead_of is not None]
    if fallbacks:
        note(
            f"  note: {len(fallbacks)} of {len(records)} tensors have rows that the asked type does "
            f"not divide and took {', '.join(sorted({each.type for each in fallbacks}))}"
        )
    stored = sum(record.size_bytes for record in records)
    return Quantized(
        path=str(out / "model.gguf"),
        type=_describe(options),
        size_bytes=size_bytes,
        bits_per_weight=8 * stored / sum(int(tensor.n_elements) for tensor in reader.tensors),
        n_tensors=len(records),
        n_fallback=len(fallbacks),
        n_compensated=sum(record.rounding == "compensated" for record in records),
        imatrix=weights is not None,
        kl_nats=made.kl_nats,
        trained=made.trained,
    )


def sweep(out: Path, options: QuantizeOptions, bits: str | None) -> dict[Path, QuantizeOptions]:
    """Folder → options of each budget in ``bits`` (``2.5,3,4``); without one, only these in ``out``."""
    from coldpress.quantize import budget

    if bits is None:
        return {out: options}
    return {out / f"{each:g}bpw": replace(options, bpw=each) for each in budget.parse_sweep(bits)}


def _check(
    options: QuantizeOptions,
    calibration: Path | None,
    model: Path | None,
    text: str | Path | None,
) -> None:
    """Refuse what cannot be done with what is given, before anything is read."""
    kind = options.kind
    if kind is not None and kind.needs_imatrix and calibration is None:
        raise UsageError(
            f"{_canonical(kind)} needs an imatrix; without one the model answers nonsense",
            "make one with `coldpress calibrate` and give it with --calibration",
        )
    feeds_back = options.searches or options.trains or options.rounding == "compensated"
    if feeds_back and not has_moments(calibration):
        raise UsageError(
            "this needs second moments of the model's inputs",
            "make them with `coldpress calibrate` and give its folder with --calibration",
        )
    if (options.searches or options.trains) and model is None:
        raise UsageError(
            "a budget is searched, and a file trained, on the model itself",
            "give its Hugging Face folder with --model",
        )
    if (options.teach is None) != (text is None):
        raise UsageError(
            "teaching needs both a number of tokens and a text", "give --teach 2M and --text"
        )


def _measure(
    reader: Any,
    gguf: Path,
    kind: GgmlType | Preset | None,
    weights: "Imatrix | None",
    made: "Made",
) -> list["TensorRecord"]:
    """Read the written file back and compare it with the source, tensor by tensor."""
    from coldpress.quantize.measure import measure
    from coldpress.quantize.source import open_gguf

    asked = TYPES[kind.base] if isinstance(kind, Preset) else kind
    originals = {tensor.name: tensor for tensor in reader.tensors}
    return [
        measure(originals[tensor.name], tensor, weights, asked, made.notes.get(tensor.name))
        for tensor in open_gguf(gguf).tensors
    ]


def _write_records(path: Path, records: Iterable["TensorRecord"]) -> None:
    text = json.dumps({"tensors": [asdict(record) for record in records]}, indent=1)
    path.write_text(text + "\n", encoding="utf-8")


def _describe(options: QuantizeOptions) -> str:
    """What was asked for, in few words."""
    if options.kind is not None:
        return _canonical(options.kind)
    return options.size or options.fit or f"{options.bpw} bpw"


def _canonical(kind: GgmlType | Preset) -> str:
    """The one spelling of a name: ``preset:`` only where a type has the same name."""
    ambiguous = isinstance(kind, Preset) and kind.name in TYPES
    return PRESET_PREFIX + kind.name if ambiguous else kind.name
