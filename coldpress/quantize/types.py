"""The quantization types of ggml and the presets of llama.cpp, by name.

A *type* is how one tensor is stored; a file of one type has every matrix at it, the embeddings too.
A *preset* is llama.cpp's own mix of types (`llama-quantize`'s names). Some names are both: alone
they mean the type, ``preset:IQ3_XXS`` means the mix.
"""

from dataclasses import dataclass
from difflib import get_close_matches

from coldpress.errors import UnknownTypeError

PRESET_PREFIX = "preset:"


@dataclass(frozen=True)
class GgmlType:
    """A type of ggml: ``block_size`` weights are stored in ``block_bytes`` bytes.

    ``file_type`` is the ``llama_ftype`` that names a file of this type; ``needs_imatrix`` follows
    llama.cpp, which refuses the type for a block's matrices without one.
    """

    name: str
    ggml_id: int
    block_size: int
    block_bytes: int
    file_type: int
    needs_imatrix: bool = False

    @property
    def bits_per_weight(self) -> float:
        """Bits per stored weight, scales included."""
        return 8 * self.block_bytes / self.block_size

    def row_bytes(self, row_length: int) -> int:
        """Bytes of one row of ``row_length`` weights, a multiple of the block size."""
        return row_length // self.block_size * self.block_bytes


@dataclass(frozen=True)
class Preset:
    """A mix of llama.cpp's: its ``llama_ftype`` and the type that most of its tensors get."""

    name: str
    file_type: int
    base: str
    needs_imatrix: bool = False


# Source: ggml.h, ggml-common.h and llama.h of llama.cpp; held against the gguf package by a test.
_TYPES = (
    GgmlType("Q8_0", 8, 32, 34, 7),
    GgmlType("Q6_K", 14, 256, 210, 18),
    GgmlType("Q5_1", 7, 32, 24, 9),
    GgmlType("Q5_K", 13, 256, 176, 16),
    GgmlType("Q5_0", 6, 32, 22, 8),
    GgmlType("Q4_1", 3, 32, 20, 3),
    GgmlType("Q4_K", 12, 256, 144, 14),
    GgmlType("IQ4_NL", 20, 32, 18, 25),
    GgmlType("Q4_0", 2, 32, 18, 2),
    GgmlType("IQ4_XS", 23, 256, 136, 30),
    GgmlType("Q3_K", 11, 256, 110, 11),
    GgmlType("IQ3_S", 21, 256, 110, 26),
    GgmlType("IQ3_XXS", 18, 256, 98, 23, needs_imatrix=True),
    GgmlType("Q2_K", 10, 256, 84, 10),
    GgmlType("IQ2_S", 22, 256, 82, 29, needs_imatrix=True),
    GgmlType("IQ2_XS", 17, 256, 74, 20, needs_imatrix=True),
    GgmlType("IQ2_XXS", 16, 256, 66, 19, needs_imatrix=True),
    GgmlType("IQ1_M", 29, 256, 56, 31, needs_imatrix=True),
    GgmlType("IQ1_S", 19, 256, 50, 24, needs_imatrix=True),
)
_PRESETS = (
    Preset("Q8_0", 7, "Q8_0"),
    Preset("Q6_K", 18, "Q6_K"),
    Preset("Q5_K_M", 17, "Q5_K"),
    Preset("Q5_K_S", 16, "Q5_K"),
    Preset("Q5_1", 9, "Q5_1"),
    Preset("Q5_0", 8, "Q5_0"),
    Preset("Q4_K_M", 15, "Q4_K"),
    Preset("Q4_K_S", 14, "Q4_K"),
    Preset("Q4_1", 3, "Q4_1"),
    Preset("Q4_0", 2, "Q4_0"),
    Preset("IQ4_NL", 25, "IQ4_NL"),
    Preset("IQ4_XS", 30, "IQ4_XS"),
    Preset("Q3_K_L", 13, "Q3_K"),
    Preset("Q3_K_M", 12, "Q3_K"),
    Preset("Q3_K_S", 11, "Q3_K"),
    Preset("IQ3_M", 27, "IQ3_S"),
    Preset("IQ3_S", 26, "IQ3_S"),
    Preset("IQ3_XS", 22, "IQ3_S", needs_imatrix=True),
    Preset("IQ3_XXS", 23, "IQ3_XXS", needs_imatrix=True),
    Preset("Q2_K", 10, "Q2_K"),
    Preset("Q2_K_S", 21, "Q2_K", needs_imatrix=True),
    Preset("IQ2_M", 29, "IQ2_S", needs_imatrix=True),
    Preset("IQ2_S", 28, "IQ2_XS", needs_imatrix=True),
    Preset("IQ2_XS", 20, "IQ2_XS", needs_imatrix=True),
    Preset("IQ2_XXS", 19, "IQ2_XXS", needs_imatrix=True),
    Preset("IQ1_M", 31, "IQ1_M", needs_imatrix=True),
    Preset("IQ1_S", 24, "IQ1_S", needs_imatrix=True),
)
TYPES = {kind.name: kind for kind in _TYPES}
PRESETS = {preset.name: preset for preset in _PRESETS}

# What a row takes when its length is no multiple of 256, best first among equals in size.
_SHORT_BLOCKS = ("IQ4_NL", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")


def resolve(name: str) -> GgmlType | Preset:
    """The type or preset that ``name`` means, in any case.

    Raises:
        UnknownTypeError: there is none; the hint has the closest names.
    """
    wanted = name.strip().upper()
    prefix = PRESET_PREFIX.upper()
    if wanted.startswith(prefix) and (preset := PRESETS.get(wanted.removeprefix(prefix))):
        return preset
    if found := TYPES.get(wanted) or PRESETS.get(wanted):
        return found
    names = [*TYPES, *(name for name in PRESETS if name not in TYPES)]
    close = get_close_matches(wanted.removeprefix(prefix), names, n=3, cutoff=0.4)
    raise UnknownTypeError(
        f"no quantization type or preset {name!r}", f"close names: {', '.join(close or names)}"
    )


def fitting(kind: GgmlType, row_length: int) -> GgmlType | None:
    """``kind`` if rows of this length divide into its blocks, else the smallest type that does not
    store fewer bits, else None.
    """
    if row_length % kind.block_size == 0:
        return kind
    for name in _SHORT_BLOCKS:
        short = TYPES[name]
        fits = row_length % short.block_size == 0
        if fits and short.bits_per_weight >= kind.bits_per_weight:
            return short
    return None
