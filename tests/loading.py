"""What the loader's tests share: a small checkpoint of many chunks, and the logits of what was loaded."""

from pathlib import Path

from coldpress import checkpoint
from coldpress.serve.load.loader import open_model
from coldpress.serve.load.patience import Patience
from coldpress.serve.load.place import locate
from coldpress.serve.model import Context, Model
from coldpress.serve.trace import Trace
from tests import tiny_gguf

CHUNK_BYTES = 1 << 14
HASTY = Patience(stall_s=0.3, attempts=3, backoff_s=0.001, deadline_s=30)
_PROMPT = list(range(3, 40))


def made(folder: Path, **options: int) -> Path:
    """Write a tiny model's checkpoint, of some twenty chunks; its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    plain = tiny_gguf.write(folder / "plain.gguf")
    given = {"chunk_bytes": CHUNK_BYTES, **options}
    checkpoint.checkpoint(plain, folder / "made", checkpoint.CheckpointOptions(**given))
    return folder / "made"


def prepare(model: Model) -> Context:
    """A context as the engine makes it, but smaller."""
    return Context(model, cells=64, sequences=1, threads=1)


def logits(place: str | Path, *, trace: Trace | None = None, **options: object) -> bytes:
    """Load a model and decode a prompt: the last token's logits, every bit of them."""
    options = {"patience": HASTY, **options}
    _model, context = open_model(locate(place), prepare, trace or Trace(), **options)
    try:
        return decoded(context)
    finally:
        context.close()


def decoded(context: Context) -> bytes:
    """The logits after a prompt."""
    row = context.add(_PROMPT, 0, 0, wanted=True)
    context.decode()
    return context.logits(row).tobytes()
