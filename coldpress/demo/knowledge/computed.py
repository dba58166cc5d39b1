"""Facts that a rule gives: sums, products, powers, units, Roman and binary numerals."""

# ruff: noqa: S311 - seeded on purpose: equal seeds give equal files
from __future__ import annotations

import random

SEED = 2026
# (small unit, large unit in the plural, small units in one large one)
UNITS = (
    ("inches", "feet", 12), ("feet", "yards", 3), ("feet", "miles", 5280), ("ounces", "pounds", 16),
    ("pounds", "stones", 14), ("cups", "pints", 2), ("pints", "gallons", 8),
    ("quarts", "gallons", 4),
    ("seconds", "minutes", 60), ("minutes", "hours", 60), ("hours", "days", 24),
    ("days", "weeks", 7), ("months", "years", 12), ("years", "decades", 10),
    ("years", "centuries", 100), ("millimeters", "centimeters", 10), ("centimeters", "meters", 100),
    ("meters", "kilometers", 1000), ("grams", "kilograms", 1000), ("eggs", "dozens", 12),
    ("degrees", "right angles", 90), ("degrees", "full turns", 360), ("bits", "bytes", 8),
)  # fmt: skip
ROMAN = (
    (1000, "M"), (900, "CM"), (500, "D"), (400, "CD"), (100, "C"), (90, "XC"), (50, "L"),
    (40, "XL"), (10, "X"), (9, "IX"), (5, "V"), (4, "IV"), (1, "I"),
)  # fmt: skip


def computed_pairs(rule: str) -> list[tuple[str, str]]:
    """The (key, answer) pairs of one rule, in a fixed order.

    Raises:
        ValueError: no rule has this name.
    """
    match rule:
        case "addition":
            return _addition(140)
        case "multiplication":
            return _multiplication()
        case "powers":
            return _powers()
        case "units":
            return _units()
        case "roman":
            return [(str(n), roman(n)) for n in _sample(range(11, 500), 110)]
        case "binary":
            return [(str(n), f"{n:b}") for n in _sample(range(4, 256), 110)]
    raise ValueError(f"no rule {rule!r}")


def roman(number: int) -> str:
    """Write a number from 1 to 3999 in Roman numerals."""
    text = ""
    for value, sign in ROMAN:
        count, number = divmod(number, value)
        text += sign * count
    return text


def _sample(numbers: range, count: int) -> list[int]:
    return sorted(random.Random(SEED).sample(numbers, count))


def _addition(count: int) -> list[tuple[str, str]]:
    pairs = [(a, b) for a in range(12, 100) for b in range(12, 100) if a >= b]
    chosen = sorted(random.Random(SEED).sample(pairs, count))
    return [(f"{a} + {b}", str(a + b)) for a, b in chosen]


def _multiplication() -> list[tuple[str, str]]:
    small = [(a, b) for a in range(3, 13) for b in range(3, 13) if a >= b]
    large = [(a, b) for a in range(13, 26) for b in range(4, 10)]
    return [(f"{a} × {b}", str(a * b)) for a, b in small + large]


def _powers() -> list[tuple[str, str]]:
    squares = [(f"the square of {n}", str(n * n)) for n in range(11, 51)]
    cubes = [(f"the cube of {n}", str(n**3)) for n in range(3, 17)]
    twos = [(f"two to the power of {n}", str(2**n)) for n in range(4, 17)]
    return squares + cubes + twos


def _units() -> list[tuple[str, str]]:
    return [
        (f"{small} there are in {count} {large}", str(count * factor))
        for small, large, factor in UNITS
        for count in sorted(random.Random(factor).sample(range(2, 13), 5))
    ]
