"""Make the file that was asked for: choose types, round, train, write."""

import os
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from coldpress import artifact, libllama
from coldpress.calibrate import statistics
from coldpress.calibrate.imatrix import Imatrix
from coldpress.errors import UsageError
from coldpress.quantize import budget, fit, importance, presets, rates, write
from coldpress.quantize.bank import Bank
from coldpress.quantize.encode import Bytes, encode_tensor
from coldpress.quantize.layout import Metadata, uniform
from coldpress.quantize.measure import Note
from coldpress.quantize.search import Found, search
from coldpress.quantize.source import Floats, open_gguf
from coldpress.quantize.stage import QuantizeOptions, rounding
from coldpress.quantize.types import TYPES, GgmlType, Preset

if TYPE_CHECKING:
    from coldpress.quantize.heal import Healed, Tensors
    from coldpress.quantize.network import Network

T = TypeVar("T")

_QUANTIZATION_VERSION = 2  # GGML_QNT_VERSION
_ROUNDING_CODE = "quantize/rounding"


@dataclass(frozen=True)
class Lessons:
    """What a file is taught: whose answers (the model's own if None), to what text; see ``prepare.Source``."""

    teacher: Path | None
    text: str | Path
    against: tuple[Path, ...]
    kept: Path


@dataclass(frozen=True)
class Task:
    """What to make and from what; see ``quantize``."""

    path: Path
    reader: Any
    weights: Imatrix | None
    calibration: Path | None
    model: Path | None
    banks: Path
    options: QuantizeOptions
    lessons: "Lessons | None" = None


@dataclass(frozen=True)
class Made:
    """What is known of the written file beyond its bytes: notes by tensor, the plan's KL."""

    notes: Mapping[str, Note]
    kl_nats: float | None = None
    trained: bool = False


def make(task: Task, path: Path) -> Made:
    """Write the GGUF that the task's options ask for to ``path``."""
    kind = task.options.kind
    if rounding(task.options, task.calibration) != "compensated":
        return _plain(task, path)
    bank, network = _bank(task), None
    if task.options.searches or task.options.trains:
        network = _network(task)
    types, found = _types(task, bank, network, kind)
    candidates = {name: bank.candidate(name, each) for name, each in types.items()}
    data = {name: candidate.data for name, candidate in candidates.items()}
    values: dict[str, Floats] = {}
    trained = False
    if task.options.trains:
        data, values, trained = _train(task, _given(network), types, data)

    def encode(tensor: Any, _wanted: GgmlType) -> Bytes:
        return data[tensor.name]

    write.write(task.reader, types, _metadata(task, types), path, encode, values)
    notes = {
        name: Note(each.rounding, each.error, each.imatrix_error, each.damp, _kl(found, name))
        for name, each in candidates.items()
    }
    return Made(notes, None if found is None else found.kl_nats, trained)


def _plain(task: Task, path: Path) -> Made:
    """ggml's own rounding: a uniform type by our own loop, a preset by libllama."""
    kind, weights = task.options.kind, task.weights
    if isinstance(kind, Preset):
        presets.write(task.path, path, kind, weights, importance.metadata(weights))
        return Made({})
    types = uniform(task.reader, _given(kind))

    def encode(tensor: Any, wanted: GgmlType) -> Bytes:
        known = None if weights is None else weights.importance(tensor.name)
        return encode_tensor(tensor, wanted, known)

    write.write(task.reader, types, _metadata(task, types), path, encode)
    return Made({})


def _types(
    task: Task, bank: Bank, network: "Network | None", kind: GgmlType | Preset | None
) -> tuple[dict[str, GgmlType], Found | None]:
    """Tensor → type: searched for, a preset's, or one for all."""
    match kind:
        case None:
            found = _search(task, bank, _given(network))
            return found.types, found
        case Preset():
            return _preset_types(task, kind), None
        case GgmlType():
            return uniform(task.reader, kind), None


def _preset_types(task: Task, preset: Preset) -> dict[str, GgmlType]:
    """The types that libllama gives each matrix, from a file that it writes."""
    with tempfile.TemporaryDirectory(dir=task.banks) as scratch:
        path = Path(scratch) / "preset.gguf"
        presets.write(task.path, path, preset, task.weights, importance.metadata(task.weights))
        written = {each.name: each.tensor_type.name for each in open_gguf(path).tensors}
    unquantized = {each.name: each.tensor_type.name for each in task.reader.tensors}
    return {
        name: TYPES[kind]
        for name, kind in written.items()
        if kind in TYPES and kind != unquantized[name]
    }


def _search(task: Task, bank: Bank, network: "Network") -> Found:
    options = task.options
    metadata = _metadata(task, {})
    fields = {name: field.contents() for name, field in task.reader.fields.items()}
    if options.size is not None:
        file_bytes = budget.parse_size(options.size)
    elif options.bpw is not None:
        file_bytes = budget.file_bytes(options.bpw, task.reader, metadata)
    else:
        file_bytes = fit.fit(_given(options.fit), fields, options.context).weights_bytes
    speeds = None
    if options.min_tok_s is not None:
        speeds = rates.measure(TYPES.values(), os.cpu_count() or 1)
    return search(
        task.reader,
        metadata,
        bank,
        network,
        statistics.read(_given(task.calibration)),
        file_bytes,
        probe_tokens=options.probe_tokens,
        tries=options.tries,
        min_tok_s=options.min_tok_s,
        speeds=speeds,
    )


def _train(
    task: Task, network: "Network", types: Mapping[str, GgmlType], data: Mapping[str, Bytes]
) -> tuple[dict[str, Bytes], dict[str, Floats], bool]:
    from coldpress.quantize.heal import HealOptions, heal

    tensors = {name: (types[name], data[name]) for name in types}
    network.reset()
    if task.lessons is None:
        done = heal(network, tensors, HealOptions())
    else:
        done = _teach(task, task.lessons, network, tensors)
    return dict(done.tensors), dict(done.norms), done.healed


def _teach(task: Task, lessons: Lessons, network: "Network", tensors: "Tensors") -> "Healed":
    """Quantization-aware distillation: what the file decodes to learns a teacher's answers."""
    from coldpress.distill import DistillOptions, prepare
    from coldpress.quantize.heal import HealOptions, heal

    options = DistillOptions(tokens=_given(task.options.teach))
    teacher = lessons.teacher or _given(task.model)
    source = prepare.Source(teacher, lessons.text, lessons.against, lessons.kept)
    given = prepare.prepare(source, options)
    asked = HealOptions(
        steps=options.steps,
        batch_tokens=options.batch_tokens,
        autocast=options.precision == "bf16",
        evaluate_every=options.evaluate_every,
    )
    return heal(network, tensors, asked, given)


def _bank(task: Task) -> Bank:
    calibration = _given(task.calibration)
    key = {
        "source": artifact.digest_of(task.path),
        "calibration": artifact.digest_of(calibration),
        "rounding": artifact.code_digest(_ROUNDING_CODE),
        "encoder": libllama.version(),
    }
    return Bank(task.banks, task.reader, _given(task.weights), statistics.read(calibration), key)


def _network(task: Task) -> "Network":
    from coldpress.quantize.network import Network

    known = statistics.read(_given(task.calibration))
    return Network.load(_given(task.model), known, task.reader)


def _metadata(task: Task, types: Mapping[str, GgmlType]) -> Metadata:
    """The keys that llama-quantize sets; the type of most tensors names a mixed file."""
    kind = task.options.kind
    file_type = 0
    if kind is not None:
        file_type = kind.file_type
    elif types:
        file_type = Counter(each.file_type for each in types.values()).most_common(1)[0][0]
    return {
        "general.file_type": file_type,
        "general.quantization_version": _QUANTIZATION_VERSION,
        **importance.metadata(task.weights),
    }


def _kl(found: Found | None, name: str) -> float | None:
    return None if found is None else found.sensitivities.get(name)


def _given(value: T | None) -> T:
    """What ``quantize`` has checked to be given."""
    if value is None:
        raise UsageError("a calibration or the model is missing", "see `coldpress quantize --help`")
    return value
