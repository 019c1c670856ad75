"""What makes a run the same run, and when its directory may be written."""

import errno
import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from pyvae.base import files
from pyvae.data import load
from pyvae.data.paths import absolute
from pyvae.engine import checkpoint, plain
from pyvae.engine.lock import lock
from pyvae.engine.loop import train
from pyvae.engine.recipe import Recipe
from pyvae.engine.run import RunDirectory
from pyvae.errors import PyvaeError, RecipeError, RunError
from pyvae.evaluation import write_metrics
from pyvae.objectives import TCVAE, BetaVAE
from tiny import TinyData

CPU = torch.device("cpu")
RECIPE = Recipe(objective=BetaVAE(), data="tiny", architecture="mlp", latents=2, batch_size=4, steps=2)


def trained(path, recipe=RECIPE, data=None, **options):
    run = RunDirectory.create_or_resume(path, recipe)
    train(run, data or TinyData(), CPU, log_every=1, **options)
    return run


def content(path):
    """Every file below a directory and what it holds."""
    return {p.relative_to(path): p.read_bytes() for p in path.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("runs") / "run").path


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


@pytest.mark.parametrize("spelling", ["images.npz", "./images.npz", "../here/images.npz", "link/images.npz"])
def test_a_path_is_kept_whole(tmp_path, monkeypatch, spelling):
    here = tmp_path / "here"
    here.mkdir()
    (here / "link").symlink_to(".")
    (here / "images.npz").touch()
    monkeypatch.chdir(here)
    assert absolute(spelling) == str(here / "images.npz")
    run = RunDirectory.create_or_resume(tmp_path / "run", replace(RECIPE, data=spelling))
    assert run.recipe.data == str(here / "images.npz")


def test_an_array_in_a_file_is_kept_with_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.npz").touch()
    assert absolute("./a.npz:x_train") == f"{tmp_path}/a.npz:x_train"
    assert absolute("b.npz:x_train") == "b.npz:x_train"


@pytest.mark.parametrize(
    "name", ["dsprites", "shapes3d", "missing.npz", "~nobody-of-this-name/a", "\0", "n" * 300]
)
def test_what_is_no_path_is_left_as_it_is(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dsprites").mkdir()
    assert absolute(name) == name


def test_data_is_known_by_what_it_holds(run, tmp_path):
    """Wherever it lies and however it is spelt; and where it lies now is noted."""
    moved = replace(RECIPE, data="elsewhere/tiny", steps=3)
    trained(run, moved)
    assert RunDirectory.open(run).recipe == moved
    with pytest.raises(RunError, match="trained on tiny-v1, but the data now is tiny-v2"):
        trained(run, replace(RECIPE, steps=4), TinyData(fingerprint="tiny-v2"))


@pytest.mark.parametrize(
    ("change", "data", "error"),
    [
        ({"steps": 9}, TinyData(fingerprint="tiny-v2"), "the data now is tiny-v2"),
        ({"steps": 9, "lr": 0.5}, None, "another recipe"),
        ({"steps": 1}, None, r"has made 2 steps, more than --steps 1: give --steps 2 or more"),
        ({"steps": 9, "objective": TCVAE(), "batch_size": 500}, None, "another recipe"),
        ({"steps": 9, "code": "factors"}, None, "another recipe"),
    ],
)
def test_what_is_refused_changes_nothing(run, change, data, error):
    before = content(run)
    with pytest.raises(RunError, match=error):
        trained(run, replace(RECIPE, **change), data)
    assert content(run) == before


def test_another_process_changes_nothing(run):
    before = content(run)
    with RunDirectory.open(run).locked(), pytest.raises(RunError, match="being trained by another process"):
        trained(run, replace(RECIPE, steps=9))
    assert content(run) == before


def test_a_recipe_that_changed_before_the_lock_was_taken_is_seen(run):
    late = RunDirectory.create_or_resume(run, replace(RECIPE, steps=9))
    recipe = json.loads((run / "recipe.json").read_text())
    (run / "recipe.json").write_text(json.dumps({**recipe, "lr": 0.5}))
    with pytest.raises(RunError, match=r"lr is 0\.5 there"):
        train(late, TinyData(), CPU)


def test_steps_may_be_fewer_than_planned_if_not_fewer_than_done(tmp_path):
    path = tmp_path / "run"
    trained(path)
    run = RunDirectory.create_or_resume(path, replace(RECIPE, steps=100))
    run.write_recipe()  # as when it is stopped at step 2 of 100
    trained(path, replace(RECIPE, steps=3))
    assert RunDirectory.open(path).recipe.steps == checkpoint.load_newest(path / "checkpoints").step == 3


@pytest.mark.parametrize("left", ["recipe.json", "profile", "trace.csv"])
def test_a_run_without_a_checkpoint_binds_nobody(tmp_path, left):
    path = tmp_path / "run"
    other = RunDirectory.create_or_resume(path, replace(RECIPE, lr=0.5, latents=3))
    path.mkdir()
    other.write_recipe()
    if left == "profile":
        (path / "recipe.json").unlink()
        (path / "profile").mkdir()
    elif left == "trace.csv":
        (path / "trace.csv").write_text("step,loss,kl_0,kl_1,kl_2\n0,1,1,1,1\n")
    trained(path)
    assert RunDirectory.open(path).recipe == RECIPE
    assert list(RunDirectory.open(path).trace()["step"]) == [0, 1]


@pytest.mark.parametrize("beside", [True, False])
def test_the_recipe_of_another_program_is_left_alone(tmp_path, beside):
    (tmp_path / "recipe.json").write_text('{"cake": 1}')
    if beside:
        (tmp_path / "thesis.tex").touch()
    with pytest.raises(RunError, match="is not a recipe of this version of pyvae"):
        trained(tmp_path)
    assert (tmp_path / "recipe.json").read_text() == '{"cake": 1}'


@pytest.mark.parametrize("left", ["snapshots", "metrics.json"])
def test_results_bind_as_checkpoints_do(tmp_path, left):
    """Else those of one recipe would pass for another's."""
    path = tmp_path / "run"
    recipe = replace(RECIPE, keep_at=(1,))
    write_metrics(trained(path, recipe), 2, TinyData(), {"scores": {}})
    for other in {"snapshots", "metrics.json", "checkpoints"} - {left}:
        shutil.rmtree(path / other) if (path / other).is_dir() else (path / other).unlink()
    with pytest.raises(RunError, match=r"another recipe .*seed is 0 there and 1 here"):
        trained(path, replace(recipe, seed=1))
    trained(path, recipe)


def test_a_snapshot_of_an_earlier_run_is_written_anew(tmp_path):
    path, recipe = tmp_path / "run", replace(RECIPE, keep_at=(1,))
    run = trained(path, recipe)
    shutil.rmtree(path / "checkpoints")
    (snapshot,) = checkpoint.paths(path / "snapshots")
    weights = checkpoint.load(snapshot).tensors
    trained(path, recipe, TinyData(fingerprint="tiny-v2"))
    assert checkpoint.load(snapshot).metadata["data"] == "tiny-v2"
    assert all(torch.equal(x, weights[name]) for name, x in checkpoint.load(snapshot).tensors.items())
    assert run.newest_checkpoint().metadata["data"] == "tiny-v2"


def test_checkpoints_without_a_recipe_name_what_differs(run):
    (run / "recipe.json").unlink()
    with pytest.raises(
        RunError, match=r"holds checkpoints of another recipe \(lr is 0.0001 there and 0.5 here\)"
    ):
        trained(run, replace(RECIPE, lr=0.5))
    trained(run, replace(RECIPE, steps=3))
    assert RunDirectory.open(run).recipe.steps == 3


@pytest.mark.parametrize("name", ["recipe.json", "metrics.json", "checkpoint"])
def test_what_cannot_be_read_is_not_damaged(run, name, monkeypatch):
    """Nothing is put aside, and nothing older is taken in its place."""
    write_metrics(RunDirectory.open(run), 2, TinyData(), {"scores": {}})
    before = content(run)
    path = checkpoint.paths(run / "checkpoints")[-1] if name == "checkpoint" else run / name
    opened = files.open_regular

    def refuse(which):
        if os.fspath(which) == os.fspath(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(which))
        return opened(which)

    for module in (checkpoint, plain):
        monkeypatch.setattr(module, "open_regular", refuse)
    with pytest.raises(RunError, match=rf"cannot read {path}: Permission denied"):
        write_metrics(RunDirectory.open(run), 2, TinyData(), {"scores": {}})
    if name != "metrics.json":
        with pytest.raises(RunError, match=rf"cannot read {path}: Permission denied"):
            trained(run, replace(RECIPE, steps=3))
    assert content(run) == before


def test_a_loss_that_is_not_finite_names_what_was_saved(tmp_path):
    wild = replace(RECIPE, lr=1.0, steps=50, objective=BetaVAE(beta=1e9))
    with pytest.raises(RunError, match="nothing had been saved yet: try a lower --lr"):
        trained(tmp_path / "run", wild)


def test_a_foreign_directory_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").touch()
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(RunError, match="not empty and holds no run"):
        RunDirectory.create_or_resume(tmp_path, RECIPE)


@pytest.mark.parametrize(
    ("change", "data", "error"),
    [
        ({"objective": TCVAE(), "batch_size": 500}, None, "batch_size 500 is more than the 120 images"),
        (
            {"objective": TCVAE(weighting="mss"), "batch_size": 1},
            None,
            "batch_size must be at least 2, got 1",
        ),
        ({"code": "factors"}, None, "--latents 3"),
    ],
)
def test_what_cannot_be_trained_leaves_no_directory(tmp_path, change, data, error):
    with pytest.raises(RecipeError, match=error):
        trained(tmp_path / "run", replace(RECIPE, **change), data)
    assert os.listdir(tmp_path) == []


def test_tc_vae_on_as_many_images_as_a_batch(tmp_path):
    trained(tmp_path / "a", replace(RECIPE, objective=TCVAE(), batch_size=120))
    trained(tmp_path / "b", replace(RECIPE, objective=TCVAE(weighting="mss"), batch_size=2))


def test_a_lock_whose_file_was_removed_is_taken_anew(tmp_path):
    """Who waited for a file that its holder removed would hold it beside the next one who makes it."""
    path = tmp_path / "lock"
    with lock(path, wait=False) as held:
        assert held
        with lock(path, wait=False) as second:
            assert not second
        path.unlink()
        with lock(path, wait=False) as third:
            assert third
            assert path.exists()


@pytest.mark.parametrize("kind", ["a named pipe", "a directory"])
def test_a_lock_that_is_no_file(tmp_path, kind):
    path = tmp_path / "lock"
    os.mkfifo(path) if kind == "a named pipe" else path.mkdir()
    with pytest.raises(RunError, match=r"cannot (lock|write)"), lock(path, wait=False):
        pass


def test_a_run_of_images_goes_on_from_wherever_they_lie(tmp_path, monkeypatch):
    monkeypatch.setenv("PYVAE_CACHE", str(tmp_path / "cache"))
    images = np.random.default_rng(0).integers(0, 255, (6, 64, 64), dtype=np.uint8)
    recipe = replace(RECIPE, data=str(tmp_path / "a.npy"))
    np.save(tmp_path / "a.npy", images)
    trained(tmp_path / "run", recipe, load(tmp_path / "a.npy", progress=False))
    (tmp_path / "b").mkdir()
    for i, image in enumerate(images):
        from PIL import Image

        Image.fromarray(image).save(tmp_path / f"b/{i}.png")
    again = replace(recipe, data=str(tmp_path / "b"), steps=3)
    trained(tmp_path / "run", again, load(tmp_path / "b", progress=False))
    images[0, 0, 0] ^= 1
    np.save(tmp_path / "a.npy", images)
    with pytest.raises(PyvaeError, match="was trained on images-6x1x64x64"):
        trained(tmp_path / "run", replace(recipe, steps=4), load(tmp_path / "a.npy", progress=False))
