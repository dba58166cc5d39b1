"""One process or many, on CPUs or GPUs: accelerate's view of what torchrun started."""

from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any

from coldpress.distill.stage import DistillOptions
from coldpress.errors import UsageError

_PATIENCE = timedelta(days=7)  # the others wait while the first asks the teacher


def accelerator(options: DistillOptions) -> Any:
    """What places tensors and adds up gradients.

    Raises:
        UsageError: a step's windows cannot be shared out evenly.
    """
    import torch
    from accelerate import Accelerator, InitProcessGroupKwargs

    made = Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision="no",  # A process has one for all its runs; see ``products``.
        gradient_accumulation_steps=options.accumulate,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=_PATIENCE)],
    )
    parts = made.num_processes * options.accumulate
    if options.windows % parts:
        raise UsageError(
            f"{options.windows} windows a step cannot be shared by {made.num_processes} processes "
            f"in {options.accumulate} parts",
            f"choose batch_tokens as a multiple of {parts * options.context}",
        )
    return made


def products(options: DistillOptions, device: Any) -> AbstractContextManager[object]:
    """How matrix products are computed: in bf16, or as they are."""
    import torch

    return (
        torch.autocast(device.type, torch.bfloat16)
        if options.precision == "bf16"
        else nullcontext()
    )
