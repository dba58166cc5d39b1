"""Recipes: every shipped one loads; every mistake names file, section and key."""

from pathlib import Path

import pytest

from coldpress import recipe
from coldpress.errors import RecipeError
from coldpress.quantize import QuantizeOptions

GOOD = "name: r\nmodel: demo\nship: Q4_K\nquantize: {imatrix: [Q4_K, Q2_K], plain: [Q4_K]}\n"


@pytest.mark.parametrize("path", sorted(Path("recipes").rglob("*.yaml")), ids=str)
def test_every_shipped_recipe_loads(path: Path) -> None:
    assert recipe.load(path).quantize.options()


def test_variants_are_named_by_type_and_method(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    more = "compensated: [Q3_K_M], bpw: [2.5], heal: true, "
    path.write_text(GOOD.replace("{imatrix", "{" + more + "imatrix"))
    assert recipe.load(path).quantize.options() == {
        "Q4_K-plain": QuantizeOptions("Q4_K"),
        "Q4_K": QuantizeOptions("Q4_K", rounding="imatrix"),
        "Q2_K": QuantizeOptions("Q2_K", rounding="imatrix"),
        "Q3_K_M-compensated": QuantizeOptions("Q3_K_M", rounding="compensated"),
        "2.5bpw": QuantizeOptions(bpw=2.5, heal=True),
    }


@pytest.mark.parametrize(
    ("text", "words", "hint"),
    [
        (GOOD.replace("model", "modle"), "unknown key modle|missing key model", ""),
        (GOOD + "convert: {outype: f16}\n", r"unknown key convert\.outype", "outtype"),
        (GOOD + "package: [{target: lambda, bas: x}]\n", r"unknown key package\.0\.bas", "base"),
        (GOOD + "ask: {prompt: 3}\n", r"ask\.prompt: .*string", ""),
        (GOOD.replace("ship: Q4_K", "ship: Q5_K"), "no variant 'Q5_K'", "Q4_K-plain"),
        ("name: [", "not YAML", ""),
        ("- a\n- b\n", "the recipe", ""),
        ("", "the recipe", ""),
        ("name: 2020-01-01\n", "JSON", ""),
    ],
)
def test_a_mistake_is_named_with_its_place(
    tmp_path: Path, text: str, words: str, hint: str
) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=words) as caught:
        recipe.load(path)
    assert "r.yaml" in caught.value.message
    assert hint in caught.value.hint


def test_a_missing_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"nothing\.yaml: No such file"):
        recipe.load(tmp_path / "nothing.yaml")
