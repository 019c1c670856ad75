"""Seeds and sweeps: what they expand into, and what is refused in one line."""

from dataclasses import fields, replace

import pytest

from pyvae.engine import grid
from pyvae.engine.grid import (
    MOST,
    check_seeds,
    directory_of,
    expand,
    field_of,
    parse_seeds,
    parse_sweep,
    vary,
)
from pyvae.engine.recipe import Recipe
from pyvae.errors import RecipeError
from pyvae.objectives import OBJECTIVES, BetaVAE, ControlVAE, FactorVAE

RECIPE = Recipe(objective=BetaVAE(), seed=5)


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("3", (3,)), ("0-3", (0, 1, 2, 3)), ("0-2,9, 4-4", (0, 1, 2, 9, 4)), (f"{2**64 - 1}", (2**64 - 1,))],
)
def test_seeds(text, seeds):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is no seed; give some as 3, 0-7 or 0-7,9"),
        ("a", "'a' is no seed"),
        ("1,,2", "'' is no seed"),
        ("-1", "'-1' is no seed"),
        ("1.5", "'1.5' is no seed"),
        ("7-0", "7-0 runs backwards; write 0-7"),
        ("1,0-2", "1 stands there twice"),
        ("0-99999999999999999999", "more than 10,000"),
        ("0-9999,10000", "more than 10,000"),
        (f"{2**64}", "seed must be at most"),
        ("٣", "is no seed"),
    ],
)
def test_what_are_no_seeds(text, message):
    with pytest.raises(RecipeError, match=message) as caught:
        parse_seeds(text)
    assert "\n" not in str(caught.value)


def test_seeds_of_a_list():
    assert check_seeds([1, 0]) == (1, 0)
    for seeds, message in (
        ([], "there is none"),
        ([True], "must be an integer"),
        ([1, 1], "1 stands there twice"),
    ):
        with pytest.raises(RecipeError, match=message):
            check_seeds(seeds)


@pytest.mark.parametrize(
    ("recipe", "text", "name", "values"),
    [
        (RECIPE, "beta=1,2.5,1e3", "beta", [1.0, 2.5, 1000.0]),
        (RECIPE, "lr = 1e-4, 5e-4", "lr", [1e-4, 5e-4]),
        (RECIPE, "batch-size=16,32", "batch_size", [16, 32]),
        (RECIPE, "lr_stage_steps=none,7", "lr_stage_steps", [None, 7]),
        (RECIPE, "binarise=none", "binarise", ["none"]),
        (RECIPE, "architecture=mlp,kim", "architecture", ["mlp", "kim"]),
        (Recipe(objective=ControlVAE()), "beta-max=None,2", "beta_max", [None, 2.0]),
        (Recipe(objective=OBJECTIVES["infogan"](), latents=5, architecture="kim"), "batch-norm=true,False",
         "batch_norm", [True, False]),
    ],
)  # fmt: skip
def test_a_sweep(recipe, text, name, values):
    found = parse_sweep(recipe, text)
    assert found == (name, values)
    assert [type(value) for value in found[1]] == [type(value) for value in values]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("beta", "give a name and its values, as beta=1,2,4"),
        ("=1", "give a name and its values"),
        ("beta=", "it names no value"),
        ("beta=1,,2", "beta must be a number, got ''"),
        ("beta=x", "beta must be a number, got 'x'"),
        ("beta=nan", "beta must be finite, got nan"),
        ("beta=-1", "beta must be at least 0, got -1"),
        ("latents=2.5", "latents must be an integer, got 2.5"),
        ("architecture=nope", "architecture must be 'burgess' or .*, got 'nope'"),
        ("betta=1", r"BetaVAE has no setting 'betta' \(did you mean beta\?\): there are beta, data, "),
        ("gamma=1", r"BetaVAE has no setting 'gamma'.*: there are beta, data, "),
        ("seed=1,2", "sweep seed: it cannot be swept: give it as seeds"),
        ("data=a,b", "sweep data: .* one data set"),
        ("image-size=32", "sweep image_size: .* one data set"),
        ("keep_at=1,2", "sweep keep_at: "),
        ("objective=vae", "has no setting 'objective'"),
    ],
)
def test_what_is_no_sweep(text, message):
    with pytest.raises(RecipeError, match=message) as caught:
        parse_sweep(RECIPE, text)
    assert "\n" not in str(caught.value)


def test_settings_are_of_the_recipe_or_of_its_objective():
    varied = vary(RECIPE, {"beta": 2, "lr": 1e-3, "batch-size": 7})
    assert varied == replace(RECIPE, objective=BetaVAE(beta=2.0), lr=1e-3, batch_size=7)
    # each alone could not be
    together = vary(Recipe(objective=ControlVAE()), {"capacity_start": 20.0, "capacity": 30.0})
    assert together.objective == ControlVAE(capacity_start=20.0, capacity=30.0)
    with pytest.raises(RecipeError, match=r"capacity 16\.0 is below capacity_start 20\.0"):
        vary(Recipe(objective=ControlVAE()), {"capacity_start": 20.0})
    with pytest.raises(RecipeError, match="FactorVAE has no setting 'beta'"):
        vary(Recipe(objective=FactorVAE()), {"beta": 2.0})


def test_no_name_is_of_both():
    for kind in OBJECTIVES.values():
        assert not {f.name for f in fields(kind)} & {f.name for f in fields(Recipe)}
    assert field_of(RECIPE, "lr-stage-steps") == "lr_stage_steps"


@pytest.mark.parametrize(
    ("settings", "seed", "name"),
    [
        ({"beta": 4.0, "lr": 1e-4}, 3, "beta-4-lr-0.0001/seed-3"),
        ({"beta": 0.1 + 0.2}, None, "beta-0.30000000000000004"),
        ({"beta_max": None, "batch_norm": True}, 0, "beta-max-none-batch-norm-true/seed-0"),
        ({"beta": 1e9, "steps": 10**7, "schedule": "adaptive"}, None, "beta-1e+09-steps-10000000-schedule-adaptive"),
        ({}, 7, "seed-7"),
    ],
)  # fmt: skip
def test_directories(settings, seed, name):
    assert directory_of(settings, seed) == name


def test_a_product():
    found = expand(RECIPE, [("beta", [1, 4.0]), ("lr", [1e-4, 5e-4])], (0, 2))
    assert [each.name for each in found] == [
        f"beta-{beta}-lr-{lr}/seed-{seed}"
        for beta in ("1", "4")
        for lr in ("0.0001", "0.0005")
        for seed in (0, 2)
    ]
    assert found[5].settings == {"beta": 4.0, "lr": 1e-4}
    assert found[5].recipe == replace(RECIPE, objective=BetaVAE(beta=4.0), lr=1e-4, seed=2)
    assert [(each.name, each.recipe) for each in expand(RECIPE, [], (7,))] == [
        ("seed-7", replace(RECIPE, seed=7))
    ]
    # without seeds the recipe's own
    (one,) = expand(RECIPE, [("beta", [2])])
    assert (one.name, one.recipe.seed) == ("beta-2", 5)


@pytest.mark.parametrize(
    ("sweeps", "seeds", "message"),
    [
        ([("beta", [1, 1.0])], None, "sweep beta: 1.0 stands there twice"),
        ([("lr", [1e-3]), ("lr", [1e-4])], None, "sweep lr: it is swept twice"),
        ([("batch-size", [1]), ("batch_size", [2])], None, "sweep batch_size: it is swept twice"),
        ([("beta", [])], None, "sweep beta: it names no value"),
        ([("beta", ["1"])], None, "beta must be a number, got '1'"),
        ([("seed", [1])], None, "sweep seed"),
        ([], (), "seeds: there is none"),
        ([("beta", list(range(11)))], range(1000), "11,000 runs: at most 10,000"),
    ],
)
def test_what_does_not_expand(sweeps, seeds, message):
    with pytest.raises(RecipeError, match=message):
        expand(RECIPE, sweeps, seeds)


def test_two_in_one_directory(monkeypatch):
    monkeypatch.setattr(grid, "_written", lambda value: "some")
    with pytest.raises(RecipeError, match="two runs would have the directory beta-some/seed-0"):
        expand(RECIPE, [("beta", [1, 2])], (0,))


def test_the_most(tmp_path):
    assert len(expand(RECIPE, [("beta", list(range(10)))], range(MOST // 10))) == MOST
