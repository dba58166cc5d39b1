"""Teacher and student → a student that answers more like the teacher."""

from .stage import Distilled, DistillOptions, distill

__all__ = ["DistillOptions", "Distilled", "distill"]
