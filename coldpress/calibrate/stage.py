"""Text → imatrix: E[x²] of every linear layer's input, in llama.cpp's own format."""

from dataclasses import asdict, dataclass
from pathlib import Path

from coldpress import artifact
from coldpress.errors import UsageError


@dataclass(frozen=True)
class CalibrateOptions:
    """How much text to calibrate on.

    Args:
        context: tokens per sequence.
        max_tokens: tokens in all, from sequences spread evenly over the text.
    """

    context: int = 512
    max_tokens: int = 65536

    def __post_init__(self) -> None:
        if self.context < 2 or self.max_tokens < self.context:
            raise UsageError(
                f"context {self.context} and max_tokens {self.max_tokens} leave nothing to run",
                "context is 2 or more, max_tokens at least one context",
            )


@dataclass(frozen=True)
class Calibrated:
    """The imatrix: how many layers it covers and how many tokens it is from."""

    path: str
    n_layers: int
    n_tokens: int
    n_sequences: int


def plan(
    model: Path, out: Path, options: CalibrateOptions, *, text: Path
) -> tuple[dict[str, Path], dict[str, object]]:
    """What a calibration depends on: (inputs, resolved options)."""
    return {"model": model, "text": text}, asdict(options)


def calibrate(model: Path, out: Path, options: CalibrateOptions, *, text: Path) -> Calibrated:
    """Run a model over text and write the artifact ``out`` with ``imatrix.gguf``.

    Args:
        model: a Hugging Face model folder; it runs in float32.
        text: plain text; keep it apart from any text that the result is evaluated on.

    Raises:
        InputError: the text is missing, empty, binary, or shorter than one context.
        NotAModelError: the folder is no model.
        UnsupportedModelError: a layer has no GGUF name, or weights outside linear layers.
    """
    from coldpress.calibrate import text as texts
    from coldpress.convert import checks, reference

    content = texts.read(text)
    checks.read_config(model)
    checks.check_weights(model)
    blocks = texts.blocks(
        reference.load_tokenizer(model), content, options.context, options.max_tokens
    )
    inputs, resolved = plan(model, out, options, text=text)
    with artifact.create(out, "calibrate", inputs=inputs, options=resolved) as draft:
        network = reference.load_model(model)
        # Not before: they import torch, and the reference prepares its threads first.
        from coldpress.calibrate import imatrix, moments, names

        layers = names.linear_layers(network)
        found = moments.collect(network, layers, blocks, moments.sum_of_squares)
        imatrix.write(
            draft.folder / "imatrix.gguf",
            imatrix.from_sums(found.sums, found.counts, text.name, options.context, len(blocks)),
        )
    return Calibrated(
        path=str(out / "imatrix.gguf"),
        n_layers=len(found.sums),
        n_tokens=len(blocks) * options.context,
        n_sequences=len(blocks),
    )
