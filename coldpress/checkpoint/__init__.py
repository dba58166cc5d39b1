"""GGUF laid out for a cold start: in execution order, page-aligned, with a digest per chunk."""

from coldpress.checkpoint.chunks import parse as parse_chunks
from coldpress.checkpoint.plain import plain
from coldpress.checkpoint.stage import Checkpointed, CheckpointOptions, checkpoint, plan
from coldpress.checkpoint.verify import Verified, verify

__all__ = [
    "CheckpointOptions",
    "Checkpointed",
    "Verified",
    "checkpoint",
    "parse_chunks",
    "plain",
    "plan",
    "verify",
]
