"""A Hugging Face model → the same with fewer weights, still an ordinary Hugging Face model."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, assert_never, get_args

from coldpress import artifact
from coldpress.counts import parse_count
from coldpress.errors import UsageError
from coldpress.progress import note

if TYPE_CHECKING:
    from coldpress.prune.kept import Kept

How = Literal["depth", "width", "experts"]
By = Literal["kl", "influence"]


@dataclass(frozen=True)
class PruneOptions:
    """What to take out, and how much: one of ``ratio``, ``params``, ``size``, ``speedup``.

    Args:
        how: whole blocks; feed-forward neurons and attention head groups; or experts of a mixture.
        ratio: share of the blocks' matrices to take out, above 0 and below 1.
        params: the most weights that may stay, ``5M``, embeddings and head included.
        size: the most bytes that they may take at ``bpw`` bits per weight.
        speedup: how many times fewer weights a generated token may read, ``1.5x``: what decoding gains where
            memory is the limit; reading a prompt gains as much or less.
        by: which blocks go: those that cost least KL, measured again after each; or those that change their
            input least (quicker, and worse).
        heterogeneous: each block its own shape: attention and feed-forward neurons go where they cost least, by
            ``depth`` and ``width`` alike; for Llama and Mistral, as llama.cpp's ``deci`` architecture.
        multiple: widths stay a multiple of it; None: 256, or the largest power of two below that divides the
            model's own, so that K-quants apply where they did.
        context: tokens of a sequence of the text that importance is measured on.
        max_tokens: tokens of it in all.
    """

    how: How = "depth"
    ratio: float | None = None
    params: str | None = None
    size: str | None = None
    bpw: float | None = None
    speedup: str | None = None
    by: By = "kl"
    heterogeneous: bool = False
    multiple: int | None = None
    context: int = 256
    max_tokens: int = 16384

    def __post_init__(self) -> None:
        from coldpress.prune import target

        if self.how not in get_args(How) or self.by not in get_args(By):
            raise UsageError(
                f"no way {self.how!r} to prune, or no measure {self.by!r}",
                "depth, width or experts; kl or influence",
            )
        given = [self.ratio, self.params, self.size, self.speedup]
        if sum(each is not None for each in given) != 1:
            raise UsageError(
                "one target is needed, and one only", "give --ratio, --params, --size or --speedup"
            )
        if self.ratio is not None and not 0 < self.ratio < 1:  # Also true for NaN.
            raise UsageError(f"a ratio of {self.ratio}", "a share of the blocks' weights: 0.25")
        if (self.size is None) != (self.bpw is None):
            raise UsageError("a size needs bits per weight", "give --size 2.4MB with --bpw 4.5")
        if self.heterogeneous and (self.how == "experts" or self.by != "kl"):
            raise UsageError("shapes by block are chosen by KL, of dense blocks", "leave --by out")
        if self.multiple is not None and self.multiple < 1:
            raise UsageError(f"a multiple of {self.multiple}", "256 suits K-quants")
        if self.context < 2 or self.max_tokens < 2 * self.context:
            raise UsageError(
                f"context {self.context} and max_tokens {self.max_tokens} leave nothing to run",
                "context is 2 or more, max_tokens at least two contexts",
            )
        if self.params is not None:
            parse_count(self.params)
        target.check(self.size, self.bpw, self.speedup)


@dataclass(frozen=True)
class Pruned:
    """The checkpoint; what it lost is in its ``prune.json``.

    ``kl_nats`` is KL(model ‖ pruned) on the text, before any teaching.
    """

    path: str
    how: str
    parameters_before: int
    parameters: int
    what: str
    kl_nats: float


def plan(
    model: Path, out: Path, options: PruneOptions, *, text: Path, against: Sequence[Path] = ()
) -> tuple[dict[str, Path], dict[str, object]]:
    """What a pruning depends on: (inputs, resolved options)."""
    others = {f"against {index}": path for index, path in enumerate(against)}
    return {"model": model, "text": text, **others}, asdict(options)


def prune(
    model: Path, out: Path, options: PruneOptions, *, text: Path, against: Sequence[Path] = ()
) -> Pruned:
    """Take weights out of a model and write the artifact ``out``, itself a model folder.

    The model is in memory in float32.

    Args:
        model: a Hugging Face model folder.
        text: plain text to measure importance on.
        against: texts that the result will be evaluated on.

    Raises:
        InputError: the text is missing, too short, or shared with one of ``against``.
        NotAModelError: the folder is no model.
        UnsupportedModelError: the model has no such part, or is built in a way that is not known here.
        UsageError: no shape meets the target.
    """
    from coldpress.calibrate import overlap
    from coldpress.calibrate import text as texts
    from coldpress.convert import checks, reference
    from coldpress.gptq.stream import copy_beside
    from coldpress.prune import checkpoint

    content = texts.read(text)
    for other in against:
        overlap.refuse(overlap.sketch(content), text, other)
    checks.read_config(model)
    checks.check_weights(model)
    tokenizer = reference.load_tokenizer(model)
    tokens = texts.blocks(tokenizer, content, options.context, options.max_tokens)
    inputs, resolved = plan(model, out, options, text=text, against=against)
    with artifact.create(out, "prune", inputs=inputs, options=resolved) as draft:
        loaded = reference.load_model(model).requires_grad_(False)
        before = checkpoint.count(loaded)
        kept = _prune(loaded, tokens, options)
        checkpoint.save(loaded, model, draft.folder)
        copy_beside(model, draft.folder, leave=checkpoint.NOT_COPIED)
        parameters = checkpoint.count(loaded) - kept.n_zeros
        record = {"parameters_before": before, "parameters": parameters}
        text_ = json.dumps({**record, **asdict(kept)}, indent=1)
        (draft.folder / "prune.json").write_text(text_ + "\n", encoding="utf-8")
    note(f"  {kept.what}; KL {kept.kl_nats:.4f} until it is taught: `coldpress distill`")
    return Pruned(path=str(out), how=options.how, what=kept.what, kl_nats=kept.kl_nats, **record)


def _prune(model: Any, tokens: Any, options: PruneOptions) -> "Kept":
    """Take out of the model in place."""
    from coldpress.prune import depth, experts, parts, width

    if options.heterogeneous:
        return parts.prune(model, tokens, options)
    match options.how:
        case "depth":
            return depth.prune(model, tokens, options)
        case "width":
            return width.prune(model, tokens, options)
        case "experts":
            return experts.prune(model, tokens, options)
        case _:
            assert_never(options.how)
