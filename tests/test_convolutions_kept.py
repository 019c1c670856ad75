"""A run goes on with the convolutions that it began with; where they cannot be had, it says so."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from pyvae.data import load
from pyvae.engine import checkpoint, convolutions, loop
from pyvae.engine.fused.trainer import FusedTrainer
from pyvae.engine.loop import train, train_together
from pyvae.engine.recipe import Recipe
from pyvae.engine.recorder import Begun
from pyvae.engine.run import RunDirectory
from pyvae.engine.training import training
from pyvae.nets import burgess
from pyvae.nets.layers import convolutions_of, set_own_convolutions
from pyvae.objectives import BetaVAE, FactorVAE, InfoGAN
from pyvae.report import page
from test_resume import assert_same, run_to
from tiny import Corner, TinyData
from train_tiny import RECIPE

CPU = torch.device("cpu")
GPU = "NVIDIA H100 80GB HBM3"


LOGGER = "pyvae.engine.convolutions"


@pytest.fixture(autouse=True)
def logged(monkeypatch, caplog):
    """What is said of runs, and by which level; skipped where there are no convolutions of our own."""
    monkeypatch.delenv("PYVAE_BACKEND", raising=False)
    if convolutions_of(burgess(1, 10), CPU, "fp32") != "native":
        pytest.skip("no convolutions of pyvae's own here")
    caplog.set_level("INFO", LOGGER)
    return Logged(caplog)


class Logged:
    """Of the convolutions alone, whatever else other tests have asked to be told."""

    def __init__(self, caplog):
        self._caplog = caplog

    @property
    def records(self):
        return [record for record in self._caplog.records if record.name == LOGGER]

    def clear(self):
        self._caplog.clear()


@pytest.fixture
def earlier(monkeypatch):
    """Train as a version without convolutions of its own."""

    def trained(path, steps, **changes):
        def with_torchs(*arguments, **options):
            trainer = training(*arguments, **options)
            set_own_convolutions(trainer.net, False)
            return trainer

        with monkeypatch.context() as patch:
            patch.setattr(loop, "training", with_torchs)
            patch.setattr(convolutions, "convolutions_of", lambda *_: "torch")
            run_to(path, replace(RECIPE, steps=steps, **changes))

    return trained


def saved(path):
    return checkpoint.load_newest(path / "checkpoints")


def forget(path, **changes):
    """Leave in the newest checkpoint of a run what earlier versions said."""
    newest = saved(path)
    metadata = {k: v for k, v in newest.metadata.items() if not k.startswith("convolutions")}
    checkpoint.save(path / "checkpoints", newest._replace(metadata={**metadata, **changes}))


def differ(a, b):
    return any(not torch.equal(x, saved(b).tensors[name]) for name, x in saved(a).tensors.items())


def test_a_run_from_before_goes_on_with_torchs(tmp_path, earlier, logged):
    earlier(tmp_path / "whole", 8)
    earlier(tmp_path / "run", 3)
    forget(tmp_path / "run")
    run_to(tmp_path / "run", replace(RECIPE, steps=6))
    (line,) = logged.records
    assert (line.levelname, line.getMessage().count("\n")) == ("INFO", 0)
    assert (
        f"{tmp_path / 'run'} goes on with torch's convolutions, as before, and not with others"
        in line.getMessage()
    )
    assert saved(tmp_path / "run").metadata["convolutions"] == "torch"
    # and now says so itself
    run_to(tmp_path / "run", replace(RECIPE, steps=8))
    assert_same(tmp_path / "whole", tmp_path / "run")
    assert "convolutions_before" not in saved(tmp_path / "run").metadata
    run_to(tmp_path / "native", replace(RECIPE, steps=8))
    assert differ(tmp_path / "native", tmp_path / "run")


def test_so_do_many(tmp_path, earlier, logged):
    earlier(tmp_path / "whole", 4)
    earlier(tmp_path / "old", 2)
    forget(tmp_path / "old")
    runs = [
        RunDirectory.create_or_resume(tmp_path / name, replace(RECIPE, steps=4)) for name in ("old", "new")
    ]
    train_together(runs, TinyData(), CPU, log_every=3)
    assert_same(tmp_path / "whole", tmp_path / "old")
    assert [saved(run.path).metadata["convolutions"] for run in runs] == ["torch", "native+linear"]
    assert len(logged.records) == 1


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"precision": "bf16"},
        {"objective": FactorVAE(discriminator_layers=2, discriminator_width=64), "architecture": "kim"},
        {"objective": InfoGAN(), "architecture": "kim", "latents": 5, "lr": 1e-4},
    ],
    ids=["vae", "bf16", "factor-vae", "infogan"],
)
def test_a_native_run_goes_on_as_native(tmp_path, logged, change):
    recipe = replace(RECIPE, **change)
    if convolutions_of(burgess(1, 10), CPU, recipe.precision) != "native":
        pytest.skip("none of its products here")
    run_to(tmp_path / "whole", replace(recipe, steps=6))
    run_to(tmp_path / "run", replace(recipe, steps=3))
    run_to(tmp_path / "run", replace(recipe, steps=6))
    assert_same(tmp_path / "whole", tmp_path / "run")
    alone = recipe.precision == "bf16" or isinstance(
        recipe.objective, InfoGAN
    )  # whose products are normalised
    taken = "native" if alone else "native+linear"
    assert saved(tmp_path / "run").metadata["convolutions"] == taken
    assert not logged.records


def test_where_there_are_none_it_goes_on_with_torchs_and_says_so(tmp_path, monkeypatch, logged):
    run_to(tmp_path / "run", replace(RECIPE, steps=3))
    monkeypatch.setenv("PYVAE_BACKEND", "reference")
    run_to(tmp_path / "run", replace(RECIPE, steps=5))
    (line,) = logged.records
    assert line.levelname == "WARNING"
    assert line.getMessage() == (
        f"{tmp_path / 'run'} took pyvae's own convolutions and linear layers until step 3, and goes on with torch's "
        "convolutions (PYVAE_BACKEND=reference): its last digits will not be those of an uninterrupted run"
    )
    changed = {"convolutions": "torch", "convolutions_before": [("native+linear", 3)]}
    assert saved(tmp_path / "run").metadata.items() >= changed.items()
    # what it began with it takes again where that can be had
    logged.clear()
    monkeypatch.delenv("PYVAE_BACKEND")
    run_to(tmp_path / "run", replace(RECIPE, steps=7))
    changed = {"convolutions": "native+linear", "convolutions_before": [("native+linear", 3), ("torch", 5)]}
    assert saved(tmp_path / "run").metadata.items() >= changed.items()
    (line,) = logged.records
    assert (
        "took torch's convolutions until step 5, and goes on with pyvae's own convolutions and linear layers: its"
        in line.getMessage()
    )


@pytest.mark.parametrize("says", [{}, {"convolutions": "cudnn"}], ids=["from before", "new"])
def test_from_a_gpu_it_goes_on_with_what_is_here(tmp_path, logged, says):
    run_to(tmp_path / "run", replace(RECIPE, steps=3))
    forget(tmp_path / "run", device=GPU, **says)
    run_to(tmp_path / "run", replace(RECIPE, steps=4))
    (line,) = logged.records
    assert line.levelname == "WARNING"
    assert (
        "took cuDNN's convolutions until step 3, and goes on with pyvae's own convolutions and linear layers: its"
        in line.msg % (line.args)
    )
    metadata = saved(tmp_path / "run").metadata
    assert (metadata["convolutions"], metadata["convolutions_before"]) == ("native+linear", [("cudnn", 3)])


def test_a_run_from_before_there_were_linear_layers_says_so(tmp_path, logged):
    run_to(tmp_path / "run", replace(RECIPE, steps=3))
    forget(tmp_path / "run", convolutions="native")
    run_to(tmp_path / "run", replace(RECIPE, steps=4))
    (line,) = logged.records
    assert line.levelname == "WARNING"
    assert (
        "took pyvae's own convolutions until step 3, and goes on with pyvae's own convolutions and linear layers: its"
        in line.getMessage()
    )
    assert saved(tmp_path / "run").metadata["convolutions_before"] == [("native", 3)]


@pytest.mark.parametrize("architecture", ["burgess", "beta-vae-h"])
def test_threads_change_no_bit_of_a_run(architecture):
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            trainer = training(replace(RECIPE, architecture=architecture, batch_size=50), TinyData(), CPU)
            trainer.advance(3)
            found.append({**trainer.tensors(), "trace": trainer.ledger.ring.rows[:3]})
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(other[name], tensor) for name, tensor in found[0].items())


def test_of_a_finished_run_nothing_is_said(tmp_path, earlier, logged, monkeypatch):
    earlier(tmp_path / "old", 2)
    forget(tmp_path / "old")
    run_to(tmp_path / "new", replace(RECIPE, steps=2))
    run_to(tmp_path / "old", replace(RECIPE, steps=2))
    monkeypatch.setenv("PYVAE_BACKEND", "reference")
    run_to(tmp_path / "new", replace(RECIPE, steps=2))
    assert not logged.records
    assert "convolutions" not in saved(tmp_path / "old").metadata


def test_a_network_without_them_says_none(tmp_path, logged):
    recipe = replace(RECIPE, architecture="rainforth")
    for steps in (1, 2):
        train(RunDirectory.create_or_resume(tmp_path / "run", replace(recipe, steps=steps)), Corner(), CPU)
        assert saved(tmp_path / "run").metadata["convolutions"] == "none"
        forget(tmp_path / "run")
    assert not logged.records


def test_compiled_networks_take_torchs(tmp_path, logged):
    trainer = training(Recipe(data="tiny", batch_size=4), TinyData(), CPU, compile=True)
    run = RunDirectory(tmp_path / "run", RECIPE)
    begun = Begun(run, RECIPE, None)
    assert convolutions.settle_convolutions(trainer, begun) == {"convolutions": "torch"}
    was = checkpoint.Checkpoint(3, {}, {"convolutions": "native", "device": "x86_64 CPU, 1 threads"})
    convolutions.settle_convolutions(trainer, begun._replace(saved=was))
    assert (
        "goes on with torch's convolutions, which --compile takes: its last digits"
        in logged.records[0].getMessage()
    )


def test_the_report_shows_them():
    def shown(**metadata):
        return dict(page._provenance(SimpleNamespace(metadata=metadata, steps_per_second=None)))

    assert shown(convolutions="native") == {"convolutions": "native"}
    moved = shown(convolutions="torch", convolutions_before=[("cudnn", 1200), ("native", 3000)])
    assert moved == {"convolutions": "torch (cudnn until step 1,200, native until step 3,000)"}
    assert shown(convolutions="none") == shown() == {}


def test_the_fused_engine_has_none_beside_its_own():
    assert FusedTrainer.net is None


@pytest.mark.slow
def test_two_hundred_steps_part_no_further_than_by_a_last_bit():
    """From torch's convolutions, as far as a run parts from one whose first weights are rounded otherwise: by 5e-6 of
    the loss over the first 20 steps, 3e-4 to step 100, 3e-2 to step 200, where steps are large and changes grow."""
    recipe = Recipe(objective=BetaVAE(), init="kaiming", lr=5e-4, engine="torch")
    dataset = load("dsprites")

    def losses(own, seed=None):
        trainer = training(recipe, dataset, CPU)
        set_own_convolutions(trainer.net, own)
        if seed is not None:
            generator = torch.Generator().manual_seed(seed)
            with torch.no_grad():
                for weight in trainer.net.parameters():
                    weight *= 1 + torch.randint(-1, 2, weight.shape, generator=generator) * 2.0**-23
        trainer.advance(200)
        at = trainer.fields.index("loss")
        return torch.tensor([row[at] for _, row in trainer.ledger.ring.copy(0, 200).wait()])

    torchs = losses(False)
    parted = ((losses(True) - torchs) / torchs).square()
    last_bits = torch.stack([((losses(False, seed) - torchs) / torchs).square() for seed in (1, 2, 3)])
    assert parted.any()
    for steps, most in ((slice(0, 20), 1e-4), (slice(20, 100), 2e-3), (slice(100, 200), 0.1)):
        distance = parted[steps].mean().sqrt()
        assert distance <= most
        assert distance <= 4 * last_bits[:, steps].mean(1).sqrt().max()
