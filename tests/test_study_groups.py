import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pyvae.data.shapes3d import Shapes3D
from pyvae.engine import checkpoint
from pyvae.engine.loop import train
from pyvae.engine.recipe import Recipe
from pyvae.engine.run import RunDirectory
from pyvae.engine.together import shape_of
from pyvae.errors import RecipeError
from pyvae.objectives import BetaVAE, CapacityVAE, ControlVAE, FactorVAE, InfoGAN
from pyvae.studies import card, rates
from pyvae.studies.footprint import Images, checkpoint_bytes, disk_bytes, member_bytes
from pyvae.studies.groups import MOST, Fit, fits_of, groups_of, in_memory, most_members, pack
from pyvae.studies.plan import Model
from tiny import TinyData

CPU = torch.device("cpu")
RESULTS = Path(__file__).parents[1] / "benchmarks/results/gpu-h100-80gb-hbm3-2026-11-28/results.jsonl"
DSPRITES = Images(1, 64, True, 737_280 * 512, (3, 6, 40, 32, 32))


def models(recipe, *, method="m", settings=(1.0,), seeds=range(1), field="beta"):
    """One of each setting and seed, as read_plan orders them."""
    return [
        Model(
            f"{method}/{value:g}/{seed}",
            method,
            {field: value},
            replace(recipe, objective=replace(recipe.objective, **{field: value}), seed=seed),
        )
        for value in settings
        for seed in seeds
    ]


def fits(studied, most):
    """As of a device that takes ``most`` members of every shape."""
    return {shape_of(m.recipe): Fit(m.recipe, DSPRITES, most) for m in studied}


BETA = Recipe(objective=BetaVAE(), precision="fp16", steps=100)
GAMMA = Recipe(objective=CapacityVAE(), precision="fp16", steps=100)


def test_groups_are_of_one_shape_and_hold_each_model_once():
    studied = [
        *models(BETA, method="a", settings=(1.0, 4.0), seeds=range(5)),
        *models(replace(BETA, latents=6), method="b", seeds=range(5)),
        *models(GAMMA, method="c", field="gamma", seeds=range(5)),
        *models(replace(BETA, data="other"), method="d", seeds=range(5)),
    ]
    groups = pack(studied, fits(studied, 64))
    assert sorted(m.name for group in groups for m in group) == sorted(m.name for m in studied)
    assert all(len({shape_of(m.recipe) for m in group}) == 1 for group in groups)
    assert sorted(len(group) for group in groups) == [5, 5, 5, 10]


@pytest.mark.parametrize("most", [1, 3, 16, 64, 1000])
def test_no_group_is_larger_than_the_device_takes_or_pays(most):
    studied = models(BETA, settings=(1.0, 2.0, 3.0), seeds=range(50))
    sizes = [len(group) for group in pack(studied, fits(studied, most))]
    assert sum(sizes) == 150
    assert max(sizes) <= min(most, MOST)
    assert max(sizes) - min(sizes) <= 1


def test_first_seeds_of_every_method_and_setting_come_first():
    studied = [
        *models(BETA, method="a", settings=(1.0, 2.0, 4.0), seeds=range(50)),
        *models(GAMMA, method="b", field="gamma", settings=(1.0, 2.0, 4.0), seeds=range(50)),
    ]
    for most in (1, 64):
        groups = pack(studied, fits(studied, most))
        begun = [m for group in groups for m in group][: 6 if most == 1 else len(groups[0]) + len(groups[1])]
        assert {(m.method, m.settings.get("beta", m.settings.get("gamma"))) for m in begun} == {
            (method, value) for method in "ab" for value in (1.0, 2.0, 4.0)
        }
        assert max(m.recipe.seed for m in groups[0]) < min(m.recipe.seed for m in groups[-1])


@pytest.mark.parametrize("places", [2, 5, 32])
def test_no_device_is_left_without_work(places):
    studied = models(BETA, settings=(1.0, 2.0), seeds=range(32))
    assert len(pack(studied, fits(studied, 64))) == 1
    assert len(pack(studied, fits(studied, 64), places=places)) >= places


def test_a_device_that_is_too_small_takes_fewer():
    member = member_bytes(BETA, DSPRITES)
    assert most_members(BETA, DSPRITES, card.MEMORY) == MOST
    tight = int((DSPRITES.bytes + 5.5 * member) / 0.8)
    assert most_members(BETA, DSPRITES, tight) == 5
    assert most_members(BETA, DSPRITES, 1) == 1


def test_bytes_of_a_member_are_near_those_measured():
    measured = {
        case["members"]: case["mib"]
        for case in map(json.loads, RESULTS.read_text().splitlines())
        if case["stage"] == "fused_members"
        and case["case"].endswith("members, fp16, plain graph")
        and "mib" in case
    }
    slope = (measured[64] - measured[2]) / 62
    assert member_bytes(BETA, DSPRITES) / 2**20 == pytest.approx(slope, rel=0.15)


def test_the_table_of_rates_is_what_was_measured():
    found = {
        case["members"]: sorted(case["steps_per_second"])[1]
        for case in map(json.loads, RESULTS.read_text().splitlines())
        if case["stage"] == "fused_members" and "fp16, plain graph" in case["case"] and case.get("ok")
    }
    assert found == card.MEMBERS
    assert [card.relative_rate(n) for n in (1, 2, 200)] == pytest.approx(
        [found[n] / found[1] for n in (1, 2, 64)]
    )
    assert card.relative_rate(2) < card.relative_rate(3) < card.relative_rate(4)


def test_on_a_cpu_every_model_is_a_group_of_its_own():
    data = TinyData()
    studied = models(replace(BETA, precision="fp32"), seeds=range(3))
    assert [len(group) for group in groups_of(studied, lambda _: data, CPU, places=2)] == [1, 1, 1]
    with pytest.raises(RecipeError, match="precision fp16: it needs an NVIDIA GPU"):
        fits_of(models(BETA), lambda _: data, CPU)


def test_each_data_set_is_opened_once():
    opened = []

    def load(recipe):
        opened.append(recipe.data)
        return TinyData()

    recipes = [replace(BETA, precision="fp32", data=data, latents=d) for d in (3, 4) for data in ("x", "y")]
    groups_of([m for recipe in recipes for m in models(recipe)], load, CPU)
    assert opened == ["x", "y"]


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(BetaVAE(), batch_size=4),
        Recipe(FactorVAE(discriminator_layers=2, discriminator_width=50), batch_size=4),
        Recipe(ControlVAE(), batch_size=4, optimizer="adagrad", architecture="kim"),
        Recipe(InfoGAN(), architecture="kim", latents=5, batch_size=4),
    ],
    ids=lambda recipe: type(recipe.objective).__name__,
)
def test_bytes_on_the_disk_are_near_those_written(recipe, tmp_path):
    data, recipe = TinyData(), replace(recipe, data="tiny", steps=40)
    train(
        RunDirectory.create_or_resume(tmp_path / "run", recipe), data, CPU, log_every=1, checkpoint_seconds=0
    )
    images = Images.of(data)
    (newest, *_) = checkpoint.paths(tmp_path / "run/checkpoints")
    assert newest.stat().st_size == pytest.approx(checkpoint_bytes(recipe, images), rel=0.03)
    written = sum(path.stat().st_size for path in (tmp_path / "run").rglob("*") if path.is_file())
    assert written == pytest.approx(disk_bytes(recipe, images, 1), rel=0.1)


def test_a_rate_is_measured_once(tmp_path, monkeypatch):
    monkeypatch.setenv("PYVAE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(rates, "_SECONDS", 0.05)
    recipe, data = Recipe(BetaVAE(), batch_size=2, engine="torch"), TinyData()
    first = rates.rate_of(recipe, data, CPU, 1)
    assert first > 0
    # neither the seed, nor a number of the objective, nor the length of the run matters; a batch's size does
    same = replace(recipe, seed=3, objective=BetaVAE(9.0), steps=5)
    assert rates.rate_of(same, data, CPU, 1) == first
    assert rates.rate_of(replace(recipe, batch_size=4), data, CPU, 1) != first
    assert len(json.loads((tmp_path / "cache/rates.json").read_text())) == 2
    (tmp_path / "cache/rates.json").write_text("[1")
    assert rates.rate_of(recipe, data, CPU, 1) != first


def test_images_that_wait_to_be_read_count_as_read():
    data = Shapes3D.__new__(Shapes3D)
    data.__dict__.update(TinyData(3).__dict__, pixels=None, bits=None)
    full = in_memory(data)
    assert full.pixels.shape == (120, 3, 64, 64)
    assert full.pixels.device.type == "meta"
    assert data.pixels is None
