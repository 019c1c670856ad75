"""Weights that a run keeps on the way, and their pictures."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pyvae.engine import checkpoint
from pyvae.engine.loop import train
from pyvae.engine.recipe import Recipe
from pyvae.engine.run import RunDirectory
from pyvae.errors import RecipeError
from pyvae.objectives import CapacityVAE
from pyvae.report import report, snapshots, traversal
from tiny import TinyData

RECIPE = Recipe(
    objective=CapacityVAE(capacity=10.0, capacity_steps=10),
    data="tiny",
    architecture="kim",
    batch_size=8,
    latents=3,
    steps=6,
    code="factors",
    keep_at=(2, 5, 900),
)


def make_run(path: Path, **changes) -> RunDirectory:
    run = RunDirectory.create_or_resume(path, replace(RECIPE, **changes))
    train(run, TinyData(), torch.device("cpu"), log_every=1, checkpoint_seconds=0)
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run") / "run")


def steps_in(directory):
    return [checkpoint.load(path).step for path in checkpoint.paths(directory)]


def test_snapshots_outlive_checkpoints(run):
    assert steps_in(run.snapshots) == [2, 5]
    assert steps_in(run.checkpoints) == [5, 6]


def test_a_snapshot_is_what_a_run_of_that_length_ends_with(run, tmp_path):
    short = make_run(tmp_path / "run", steps=2)
    ended, kept = short.newest_checkpoint(), checkpoint.load(checkpoint.path_of(run.snapshots, 2))
    assert ended.tensors.keys() == kept.tensors.keys()
    for name, tensor in ended.tensors.items():
        assert torch.equal(tensor, kept.tensors[name]), name


def test_a_run_that_ended_before_it_could_keep_does_so_later(tmp_path):
    short = make_run(tmp_path / "run", steps=2)
    shutil.rmtree(short.snapshots)
    assert steps_in(make_run(tmp_path / "run", steps=3).snapshots) == [2]


def test_the_recipe_survives_its_file(run):
    assert RunDirectory.open(run.path).recipe == run.recipe == RECIPE
    with pytest.raises(RecipeError, match=r"keep_at must be at least 1, got \(3, 0\)"):
        replace(RECIPE, keep_at=(3, 0))
    with pytest.raises(RecipeError, match=r"keep_at must be different steps, got \(3, 3\)"):
        replace(RECIPE, keep_at=(3, 3))


def test_pictures_say_their_step_and_capacity(run):
    drawn = snapshots.draw(run, TinyData(), run.trace(), span=1.5)
    assert [path.name for path, _ in drawn] == ["snapshot-2.png", "snapshot-5.png"]
    # C before the last step: 10 nats in 10 steps, counted from 0
    assert "After step 2, C = 1.0 nats: from image 100, each row from -1.5 to 1.5" in drawn[0][1]
    assert "After step 5, C = 4.0 nats" in drawn[1][1]
    assert drawn[0][0].read_bytes() != drawn[1][0].read_bytes()
    page = report(run, TinyData()).read_text()
    assert page.index("Traversals on the way") < page.index("After step 2") < page.index("After step 5")


def test_rows_bear_the_names_of_the_factors(run, tmp_path):
    net, _ = run.load_net()
    assert traversal.names_of(net, TinyData()) == ["size", "row", "column"]
    other = make_run(tmp_path / "run", code="encoder", keep_at=(), steps=1)
    assert traversal.names_of(other.load_net()[0], TinyData()) == ["z0", "z1", "z2"]
    assert snapshots.draw(other, TinyData(), None, span=1.0) == []
