"""A model with fewer weights: blocks, neurons, heads or experts taken out."""

from .stage import Pruned, PruneOptions, prune

__all__ = ["PruneOptions", "Pruned", "prune"]
