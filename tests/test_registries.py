"""Networks, initial weights and objectives each have one table, which recipes and the command line read."""

import importlib
import inspect
import re
import typing
from dataclasses import fields
from pathlib import Path

import pytest

import pyvae.objectives
from pyvae.base.source import Source
from pyvae.cli import main
from pyvae.engine.recipe import Recipe
from pyvae.errors import RecipeError
from pyvae.nets import ANY_SIDE, ARCHITECTURES, INITIALISATIONS
from pyvae.objectives import OBJECTIVES, Objective
from pyvae.recipes import RECIPES

TABLES = {"architecture": ARCHITECTURES, "init": INITIALISATIONS}


@pytest.mark.parametrize("name", TABLES)
def test_a_recipe_and_the_command_line_know_what_the_table_holds(name, monkeypatch, capsys):
    table = TABLES[name]
    names = typing.get_type_hints(Recipe)[name]
    if name == "architecture":
        names, own = typing.get_args(names)
        assert own is Source
    assert typing.get_args(names) == tuple(table)
    for each in table:
        assert getattr(Recipe(**{name: each}), name) == each
    with pytest.raises(RecipeError) as refused:
        Recipe(**{name: "vgg"})
    own = " or code of your own, as my_code.py:name" if name == "architecture" else ""
    assert str(refused.value) == f"{name} must be {' or '.join(map(repr, table))}{own}, got 'vgg'"
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setattr("sys.argv", ["pyvae", "train", "vae", "-h"])
    with pytest.raises(SystemExit):
        main()
    (shown,) = re.findall(rf"--{name} {{(.*?)}}", capsys.readouterr().out)
    assert shown.split(",") == list(table)


def test_networks_of_any_side_say_so_themselves():
    assert {
        name for name, made in ARCHITECTURES.items() if "side" in inspect.signature(made).parameters
    } == ANY_SIDE
    assert {"mlp", "rainforth"} == ANY_SIDE


def test_every_objective_is_in_the_table():
    folder = Path(pyvae.objectives.__file__).parent
    modules = [importlib.import_module(f"pyvae.objectives.{path.stem}") for path in folder.glob("[a-z]*.py")]
    made = {
        cls
        for module in modules
        for name, cls in vars(module).items()
        if inspect.isclass(cls)
        and issubclass(cls, Objective)
        and cls is not Objective
        and "__dataclass_params__" in vars(cls)  # its own, not that of a base
        and not name.startswith("_")
    }
    assert made == set(OBJECTIVES.values())
    # one command of the command line at least is of each, and takes its fields
    assert {type(recipe.objective) for _, recipe in RECIPES.values()} == made
    assert [f.type for f in fields(Recipe) if f.name == "objective"] == [Objective]
