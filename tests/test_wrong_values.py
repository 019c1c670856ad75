"""Every option of every command with values that cannot be: one line, a status that says so, and no traceback."""

import contextlib
import dataclasses
import io
import os
import random
import socket
import sys
import typing

import numpy as np
import pytest

from pyvae import cli
from pyvae.cli.evaluate import Evaluate
from pyvae.cli.export import Export
from pyvae.cli.report import Report
from pyvae.cli.reproduce import Reproduce
from pyvae.cli.train import Train
from pyvae.cli.traverse import Traverse
from pyvae.engine.recipe import Recipe
from pyvae.objectives import OBJECTIVES
from pyvae.recipes import RECIPES

NUMBERS = ["", "x", "-1", "0", "0.5", "1", "nan", "inf", "-inf", "1e400", "9223372036854775808", "1_0"]
NUMBERS += ["18446744073709551616", "0x10", "1e-400"]
TEXTS = ["", "x", "nobody\nhere", "~nobody-of-this-name/x", "n" * 300, "\udcff", "-", "a:b", "/", ":", "é"]
PATHS = [
    *TEXTS,
    "pipe",
    "folder",
    "file",
    "socket",
    "loop",
    "dangling",
    "/dev/zero",
    "/dev/null",
    "/proc/self/mem",
]
OF_PATHS = {"data", "file", "out", "run", "held_out"}
OF_NAMES = {"metrics", "without", "device", "name", "part"}
TINY = {
    "data": "images.npy", "architecture": "mlp", "image_size": "8", "batch_size": "4", "steps": "2", "latents": "2",
}  # fmt: skip
QUICK = 12


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with one of everything that a path may lead to, and a run."""
    at = tmp_path_factory.mktemp("place")
    np.save(at / "images.npy", np.random.default_rng(0).integers(0, 256, (12, 8, 8), dtype=np.uint8))
    os.mkfifo(at / "pipe")
    (at / "folder").mkdir()
    (at / "file").write_text("text")
    (at / "loop").symlink_to("loop")
    (at / "dangling").symlink_to("nowhere")
    socket.socket(socket.AF_UNIX).bind(os.path.relpath(at / "socket"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYVAE_CACHE", str(at / "cache"))
        patch.chdir(at)
        assert call(train("vae", {})) == 0
        os.rename("out", "trained")
        yield at


def call(arguments):
    """Exit status of a command; an AssertionError for anything but success, a usage message or one line."""
    out, err = io.StringIO(), io.StringIO()
    argv, sys.argv = sys.argv, ["pyvae", *arguments]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main()
        status = 0
    except SystemExit as ended:
        status = ended.code or 0
    finally:
        sys.argv = argv
    if isinstance(status, str):
        assert status.startswith("pyvae: error: "), status
        assert status.isprintable(), status
        assert len(status) > len("pyvae: error: "), arguments
        status = 1
    assert status in (0, 1, 2), (arguments, status)
    assert "Traceback" not in err.getvalue(), (arguments, err.getvalue())
    return status


def failure(arguments):
    """What is wrong with how a command ends, if anything; all are wanted, not the first."""
    try:
        call(arguments)
    except Exception as error:
        return arguments, repr(error)
    return None


def train(recipe, options):
    given = {**TINY, "out": "out", "log_every": "1", **options}
    return ["train", recipe, *(part for name, value in given.items() for part in (flag(name), value))]


def flag(name):
    return "--" + name.replace("_", "-")


def values_of(name, kind):
    if name in OF_PATHS:
        return PATHS
    if name in OF_NAMES or kind in (str, str | None):
        return TEXTS
    if kind is bool:
        return ["x"]
    return NUMBERS


def options_of(cls):
    hints = typing.get_type_hints(cls)
    return [(f.name, hints[f.name]) for f in dataclasses.fields(cls)]


def cases():
    """(command, ...) with one wrong value each."""
    recipe_of = {type(recipe.objective): name for name, (_, recipe) in reversed(RECIPES.items())}
    for name, kind in options_of(Recipe):
        if name != "objective":
            yield from (train("vae", {name: value}) for value in values_of(name, kind))
    for objective in OBJECTIVES.values():
        recipe = recipe_of[objective]
        own = {} if "gan" not in recipe else {"architecture": "kim", "latents": "5", "image_size": "64"}
        for name, kind in options_of(objective):
            yield from (train(recipe, {**own, name: value}) for value in values_of(name, kind))
    for name, kind in options_of(Train):
        if name != "recipe":
            yield from (train("vae", {name: value}) for value in values_of(name, kind))
    for command, cls, given in (
        ("traverse", Traverse, {}),
        ("evaluate", Evaluate, {"metrics": "unsupervised"}),
        ("report", Report, {}),
    ):
        for name, kind in options_of(cls):
            for value in values_of(name, kind):
                if name == "run":
                    yield [command, "--", value]
                else:
                    options = {**given, name: value}
                    yield [command, "trained", *(p for n, v in options.items() for p in (flag(n), v))]
    for name, kind in options_of(Export):
        for value in values_of(name, kind):
            if name == "run":
                yield ["export", "--", value, "model.pt2"]
            elif name == "file":
                yield from (["export", "--", "trained", value + ending] for ending in ("", ".pt2"))
            else:
                yield ["export", "trained", "model.pt2", flag(name), value]
    for name, kind in options_of(Evaluate):
        if name in ("samples", "images", "held_out", "seed"):
            for value in values_of(name, kind):
                yield ["evaluate", "trained", "--metrics", "marginal-likelihood", flag(name), value]
    toy = {"scale": "0.001", "seeds": "1", "out": "toy"}
    for name, kind in options_of(Reproduce):
        for value in values_of(name, kind):
            if name == "name":
                yield ["reproduce", "--scale", "0.0001", "--", value]
            elif name != "list":
                options = {**toy, name: value}
                if (name, value) in {("scale", "1"), ("scale", "0.5"), ("seeds", "1_0")}:
                    continue  # which takes minutes
                yield [
                    "reproduce",
                    "tighter-bounds-toy",
                    *(p for n, v in options.items() for p in (flag(n), v)),
                ]


@pytest.mark.parametrize("part", range(QUICK))
def test_a_wrong_value_is_one_line(place, part):
    chosen = random.Random(0).sample(list(cases()), 10 * QUICK)
    for arguments in chosen[part::QUICK]:
        call(arguments)


@pytest.mark.slow
def test_every_wrong_value_is_one_line(place):
    assert [failed for arguments in cases() if (failed := failure(arguments))] == []
