"""What recipes and tables say of themselves: their numbers, and what they do otherwise than their source."""

import re

import pytest

from pyvae.recipes import RECIPES
from pyvae.studies.published import STUDIES


def described(name):
    """The description of a recipe, and of those that it refers to."""
    text = RECIPES[name][0]
    known = "|".join(sorted(RECIPES, key=len, reverse=True))
    others = re.findall(rf"(?:else as|of the recipe|recipe) ({known})\b", text)
    return " ".join([text, *(described(other) for other in others)])


def rate(value):
    return f"{value:.0e}".replace("e-0", "e-")


@pytest.mark.parametrize("name", RECIPES)
def test_a_description_has_the_numbers_of_its_recipe(name):
    text, recipe = described(name), RECIPES[name][1]
    lengths = {f"{recipe.steps:,} steps", f"{recipe.steps / 1e6:g}M", f"in {recipe.steps:,}"}
    if recipe.lr_stage_steps is not None:
        lengths = {f"{30 * recipe.steps:,} steps a thirtieth"}
    assert any(length in text for length in lengths), lengths
    assert rate(recipe.lr) in text
    for field in ("beta", "gamma", "cycles", "discriminator_lr", "critic_lr", "penalty"):
        value = getattr(recipe.objective, field, None)
        # a weight of 1 is the plain term
        if value not in (None, 1.0):
            assert re.search(rf"\b({value:g}|{rate(value)})\b", text), field


@pytest.mark.parametrize(
    ("name", "departures"),
    [
        ("vae", ["first 10,000 steps", "kaiming_uniform"]),
        ("beta-vae", ["train 3D Chairs", "gamma 100, C to 20 nats"]),
        ("tc-vae", ["log sigma"]),
        ("dip-vae-ii", ["--sampling replacement"]),
        ("infogan", ["noise is uniform", "lambda 0.05", "contrastive regulariser joins at step 288,000"]),
        ("iwae", ["0.99", "two digits", "log-odds"]),
    ],
)
def test_departures_from_the_code_that_is_followed_are_named(name, departures):
    assert [words for words in departures if words not in described(name)] == []


def test_the_table_of_disentangling_vae_names_the_ramp_of_its_runs():
    notes = " ".join(STUDIES["beta-vae"].notes)
    assert "first 10,000 steps" in notes
    assert "kaiming_uniform" in notes
    assert all(n.source.count("every 50th minibatch") for _, n in STUDIES["beta-vae"].numbers())
