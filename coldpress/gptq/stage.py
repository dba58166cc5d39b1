"""``coldpress quantize --format gptq``: a Hugging Face folder → the same model as a GPTQ checkpoint."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from coldpress import artifact
from coldpress.gptq.options import GptqOptions

if TYPE_CHECKING:
    from coldpress.gptq.write import Written


def checkpoint(model: Path, out: Path, options: GptqOptions, *, calibration: Path) -> "Written":
    """Write the artifact ``out``: a folder that transformers loads with optimum and gptqmodel.

    Args:
        model: a Hugging Face model folder.
        calibration: what calibrate wrote for it.

    Raises:
        InputError: the calibration has no second moments, or is another model's.
        UnsupportedModelError: a layer that the format has no place for.
    """
    from coldpress import card
    from coldpress.calibrate import statistics
    from coldpress.gptq import write

    known = statistics.read(calibration)
    inputs = {"model": model, "calibration": calibration}
    resolved: dict[str, object] = {"format": "gptq", "name": model.resolve().name}
    resolved |= asdict(options)
    with artifact.create(out, "quantize", inputs=inputs, options=resolved) as draft:
        written = write.write(model, known, draft.folder, options)
        card.write(draft, f"GPTQ {options.bits} bits")
    return replace(written, path=str(out))
