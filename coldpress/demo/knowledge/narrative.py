"""A small slot grammar for simple English stories, so that there is plain text enough.

Each story has one person, one place, one thing and one helper, so a reader (or a model) can use
the beginning of the paragraph to guess the rest.
"""

from __future__ import annotations

import random
import tomllib
from pathlib import Path

PEOPLE = (
    ("Anna", "she", "her"), ("Ben", "he", "his"), ("Clara", "she", "her"), ("David", "he", "his"),
    ("Ella", "she", "her"), ("Felix", "he", "his"), ("Grace", "she", "her"), ("Hugo", "he", "his"),
    ("Ida", "she", "her"), ("Jonas", "he", "his"), ("Kate", "she", "her"), ("Leo", "he", "his"),
    ("Maya", "she", "her"), ("Nils", "he", "his"), ("Olive", "she", "her"), ("Paul", "he", "his"),
    ("Rosa", "she", "her"), ("Sam", "he", "his"), ("Tess", "she", "her"), ("Victor", "he", "his"),
)  # fmt: skip
SLOTS: dict[str, list[str]] = tomllib.loads(
    Path(__file__).with_suffix(".toml").read_text(encoding="utf-8")
)
OPENINGS = (
    "{when} {name} went to {place}.",
    "{when} {name} {verb} {thing} near {place}.",
    "{name} lived close to {place} and was often {mood}.",
    "{weather} when {name} came to {place}.",
    "{name} had a {animal} and {thing}.",
)
MIDDLES = (
    "There {they} {verb} {thing}.",
    "{weather}, but {name} was {mood}.",
    "{They} {search} for {time}.",
    "{helper_cap} came by and asked what {they} had found.",
    "The {animal} {did}.",
    "{name} showed {thing} to {helper}.",
    "Together they {search}.",
    "{They} {fix}, and it took {time}.",
    "{name} shared {food} with {helper}.",
    '"That is {thing}," said {helper}.',
    "At {place} nobody knew to whom it belonged.",
    "{Their} {animal} {did}, so {they} had to wait.",
    "{They} ate {food} and felt {mood} again.",
    '"I lost it {time} ago," said {helper}, and was {mood}.',
)
ENDINGS = (
    "In the end {name} {end}.",
    "That evening {they} {end}.",
    "{helper_cap} thanked {name}, and both of them {end}.",
    "{name} was {mood} and {end}.",
    "Since then {thing} has stood in {place}.",
)


def story(rng: random.Random) -> str:
    """Write one paragraph of five to nine sentences."""
    name, they, their = rng.choice(PEOPLE)
    fixed = {key: rng.choice(SLOTS[key]) for key in ("thing", "helper", "animal")}
    fixed |= {"name": name, "they": they, "They": they.capitalize(), "Their": their.capitalize()}
    fixed["helper_cap"] = fixed["helper"][0].upper() + fixed["helper"][1:]
    middles = rng.sample(MIDDLES, rng.randint(3, 7))
    plan = [rng.choice(OPENINGS), *middles, rng.choice(ENDINGS)]
    return " ".join(_sentence(pattern, fixed, rng) for pattern in plan)


def _sentence(pattern: str, fixed: dict[str, str], rng: random.Random) -> str:
    drawn = {key: rng.choice(values) for key, values in SLOTS.items()}
    return pattern.format(**(drawn | fixed))
