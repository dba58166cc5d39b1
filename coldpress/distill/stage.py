"""A teacher's answers → a student that gives them too, as an ordinary Hugging Face checkpoint."""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from coldpress import artifact
from coldpress.counts import parse_count
from coldpress.errors import UsageError
from coldpress.progress import note

if TYPE_CHECKING:
    from coldpress.distill.lessons import Lessons
    from coldpress.distill.saved import State

Loss = Literal["forward", "reverse", "mix"]
Precision = Literal["bf16", "float32"]


@dataclass(frozen=True)
class DistillOptions:
    """How to teach.

    Args:
        tokens: tokens to train on in all, ``2M``; text that has fewer is read again.
        text_tokens: most tokens that are taken of the text; as many as are trained on if None.
        layers: without a student: as many of the teacher's blocks, evenly spaced, are the student.
        context: tokens of a window.
        batch_tokens: tokens of a step, over all processes.
        accumulate: parts that a process takes a step's windows in, one after the other.
        rate: AdamW's highest, reached after a warm-up; a cosine brings it to zero.
        loss: ``forward`` KL(teacher ‖ student), ``reverse``, or the ``mix`` of both.
        temperature: of both distributions.
        hidden_weight: weight of the squared error of the last hidden states; their widths must agree.
        top_k: the teacher's likeliest tokens that are kept of each position; 0 asks it anew at every step.
        cache: the most that kept answers may take on disk; beyond it the teacher is asked anew.
        evaluate_every: steps between two looks at held-out text, each of which saves the state.
        patience: looks without a gain after which training ends; 0: never.
        precision: of matrix products; weights and moments are float32.
        checkpointing: compute activations again in the backward pass, for memory.
    """

    tokens: str = "2M"
    text_tokens: str | None = None
    layers: int | None = None
    context: int = 256
    batch_tokens: int = 4096
    accumulate: int = 1
    rate: float = 2e-4
    weight_decay: float = 0.0
    loss: Loss = "forward"
    temperature: float = 1.0
    hidden_weight: float = 0.0
    top_k: int = 64
    cache: str = "4GB"
    evaluate_every: int = 50
    patience: int = 5
    precision: Precision = "bf16"
    checkpointing: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        from coldpress.quantize.budget import parse_size

        parse_size(self.cache)
        if self.loss not in get_args(Loss) or self.precision not in get_args(Precision):
            raise UsageError(
                f"no loss {self.loss!r} or no precision {self.precision!r}",
                "forward, reverse or mix; bf16 or float32",
            )
        if self.context < 2 or self.accumulate < 1 or self.windows % self.accumulate:
            raise UsageError(
                f"{self.batch_tokens} tokens are no whole number of {self.accumulate} parts of windows "
                f"of {self.context}",
                "choose batch_tokens as a multiple of context times accumulate",
            )
        if self.steps < 1:
            raise UsageError(
                f"{self.tokens} tokens are less than one step of {self.batch_tokens}",
                "raise --tokens, or lower --batch-tokens",
            )
        positive = (self.rate, self.temperature, self.evaluate_every)
        if min(positive) <= 0 or min(self.hidden_weight, self.top_k, self.patience) < 0:
            raise UsageError(
                "rate, temperature and evaluate_every are above 0, the others not below",
                "leave them at their defaults",
            )

    @property
    def windows(self) -> int:
        """Windows of a step, over all processes."""
        return self.batch_tokens // self.context

    @property
    def steps(self) -> int:
        """Steps until the tokens are used up."""
        return parse_count(self.tokens) // self.batch_tokens


@dataclass(frozen=True)
class Distilled:
    """The taught student, a folder that transformers loads.

    Divergences are from the teacher on held-out windows of the text, in nats per token, over the tokens that
    are kept of the teacher's answers; ``tokens`` are those trained on until the kept state.
    """

    path: str
    parameters: int
    tokens: int
    steps: int
    kept_step: int
    kl_before_nats: float
    kl_after_nats: float


def plan(
    teacher: Path,
    out: Path,
    options: DistillOptions,
    *,
    text: str | Path,
    student: Path | None = None,
    against: Sequence[Path] = (),
) -> tuple[dict[str, Path], dict[str, object]]:
    """What a distillation depends on: (inputs, resolved options)."""
    inputs = {"teacher": teacher}
    inputs |= {f"against {index}": path for index, path in enumerate(against)}
    resolved: dict[str, object] = asdict(options)
    if student is not None:
        inputs["student"] = student
    if Path(text).exists():
        inputs["text"] = Path(text)
    else:
        resolved["text"] = str(text)
    return inputs, resolved


def distill(
    teacher: Path,
    out: Path,
    options: DistillOptions,
    *,
    text: str | Path,
    student: Path | None = None,
    against: Sequence[Path] = (),
) -> Distilled:
    """Teach a student and write the artifact ``out``: the checkpoint, ``curve.json`` and its figure.

    Started by torchrun, every process trains on its share of each step's windows; the first one writes. The
    teacher's answers are kept in ``.lessons`` beside ``out`` for other students, a run's states in ``.distill``:
    an interrupted run goes on from the last one.

    Args:
        teacher: a Hugging Face model folder.
        text: files, a folder, or a data set's name; see ``documents``.
        student: another one with the same tokenizer, for example a pruned one.
        against: texts that the result will be evaluated on.

    Raises:
        InputError: too little text, or text that ``against`` shares.
        UsageError: the student's tokenizer is another one, or what is asked does not go together.
        TrainingError: the loss is no number.
    """
    from coldpress.convert import checks
    from coldpress.distill import cpu, prepare, students, train
    from coldpress.distill.processes import accelerator as make_accelerator

    for folder in {teacher, student or teacher}:
        checks.read_config(folder)
        checks.check_weights(folder)
    with cpu.training():
        accelerator = make_accelerator(options)
        inputs, resolved = plan(teacher, out, options, text=text, student=student, against=against)
        model = students.load(teacher, student, options)
        beside = student or teacher
        with _draft(out, inputs, resolved, accelerator.is_main_process) as draft:
            source = prepare.Source(teacher, text, tuple(against), out.parent / ".lessons")
            with accelerator.main_process_first():
                lessons = prepare.prepare(source, options, accelerator.device)
            _check_vocabularies(lessons, model)
            states = out.parent / ".distill" / artifact.work_id("distill", inputs, resolved)
            run = train.Run(model, lessons, options, accelerator, states, beside)
            state = train.train(run)
            if draft is not None:
                _write(draft.folder, model, state, beside)
        if accelerator.is_main_process:
            shutil.rmtree(states)
    return Distilled(
        path=str(out),
        parameters=model.num_parameters(),
        tokens=state.best_step * options.batch_tokens,
        steps=state.step,
        kept_step=state.best_step,
        kl_before_nats=state.history[0].held_kl_nats,
        kl_after_nats=state.best_kl_nats,
    )


@contextmanager
def _draft(
    out: Path, inputs: dict[str, Path], options: dict[str, object], writes: bool
) -> Iterator[artifact.Draft | None]:
    """The artifact, for the one process that writes it."""
    if not writes:
        yield None
        return
    with artifact.create(out, "distill", inputs=inputs, options=options) as draft:
        yield draft


def _check_vocabularies(lessons: "Lessons", student: Any) -> None:
    """Padded vocabularies of one family differ; kept answers name tokens, whole ones do not."""
    if lessons.teacher is None:
        return
    theirs, ours = (each.config.get_text_config().vocab_size for each in (lessons.teacher, student))
    if theirs != ours:
        raise UsageError(
            f"the teacher's vocabulary is padded to {theirs}, the student's to {ours}",
            "keep the teacher's answers: --top-k 64, and a --cache that holds them",
        )


def _write(folder: Path, model: Any, state: "State", beside: Path) -> None:
    """The student in its own type, what lay beside it, and how it learned."""
    from coldpress.distill import students
    from coldpress.gptq.stream import copy_beside

    model.to(students.stored_type(beside)).save_pretrained(folder)
    copy_beside(beside, folder, leave=["config.json", "generation_config.json", "manifest.json"])
    curve = {"kept_step": state.best_step, "history": [asdict(each) for each in state.history]}
    (folder / "curve.json").write_text(json.dumps(curve, indent=1) + "\n", encoding="utf-8")
    try:
        from coldpress.distill.curve import draw
    except ImportError:
        note("  note: no figure of the learning curve; pip install 'coldpress[report]'")
    else:
        draw(folder / "curve.svg", state.history, state.best_step)
