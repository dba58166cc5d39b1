"""The model card: what a file is, what is in it, what it lost and how it was made, in the hub's form.

Equal inputs give equal bytes: no clock and no path goes in, inputs are named by their digests.
"""

from .text import Card, Measured, of_folder, write

__all__ = ["Card", "Measured", "of_folder", "write"]
