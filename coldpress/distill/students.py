"""Who learns: a checkpoint with the teacher's tokenizer, or some of the teacher's own blocks."""

from pathlib import Path
from typing import Any

from coldpress.convert import reference
from coldpress.distill.stage import DistillOptions
from coldpress.errors import UsageError

_SHOWN = 5


def load(teacher: Path, student: Path | None, options: DistillOptions) -> Any:
    """The student in float32, ready to train.

    Raises:
        UsageError: neither or both of a student and a number of blocks; the tokenizers differ.
    """
    if (student is None) == (options.layers is None):
        raise UsageError(
            "a student, or a number of the teacher's blocks, is needed, and not both",
            "give --student, for example what `coldpress prune` wrote, or --layers",
        )
    if student is not None:
        _check_tokenizers(teacher, student)
    model = reference.load_model(student or teacher)
    if options.layers is not None:
        _keep_evenly(model, options.layers)
    if options.checkpointing:
        model.activation_checkpointing_enable()
    return model.train()


def stored_type(folder: Path) -> Any:
    """The type that a checkpoint's weights are stored in."""
    import torch
    from transformers import AutoConfig

    dtype = AutoConfig.from_pretrained(folder, local_files_only=True).dtype
    return torch.bfloat16 if dtype is None else dtype


def _check_tokenizers(teacher: Path, student: Path) -> None:
    """The same pieces with the same numbers: the teacher's distribution is over them."""
    theirs, ours = (reference.load_tokenizer(each).get_vocab() for each in (teacher, student))
    if theirs == ours:
        return
    differ = [piece for piece, number in theirs.items() if ours.get(piece) != number]
    shown = ", ".join(repr(piece) for piece in differ[:_SHOWN]) or f"{len(ours)} pieces"
    raise UsageError(
        f"{student} has another tokenizer than {teacher}: {len(theirs)} against {len(ours)} pieces, "
        f"other numbers for {shown}",
        "a teacher's answers are over its own tokens; take a student of the same family",
    )


def _keep_evenly(model: Any, count: int) -> None:
    """Keep so many of the blocks, the first and the last among them."""
    import numpy as np

    from coldpress.calibrate import blocks
    from coldpress.prune import depth

    _, layers = blocks.find(model)
    if not 1 <= count <= len(layers):
        raise UsageError(f"{count} of {len(layers)} blocks", "choose fewer than the teacher has")
    depth.keep(model, np.linspace(0, len(layers) - 1, count).round().astype(int).tolist())
