"""GGUF → what it still knows, how far it is from its base, how fast it is: measured in process."""

from .stage import Evaluated, EvaluateOptions, evaluate, plan

__all__ = ["EvaluateOptions", "Evaluated", "evaluate", "plan"]
