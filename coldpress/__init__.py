"""coldpress makes language models small and starts them cold in seconds where there is no GPU."""

__version__ = "0.1.0"
