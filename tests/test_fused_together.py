"""Runs that train together through kernels of whole networks, in Triton's interpreter: each as it would alone."""

from dataclasses import replace

import pytest
import torch

from abreast import NUMBERS, OBJECTIVES
from fused import INTERPRETED, quick_interpreter
from pyvae.engine import checkpoint
from pyvae.engine.fused import plan as plans
from pyvae.engine.fused.members import Members
from pyvae.engine.loop import train, train_together
from pyvae.engine.recipe import Recipe
from pyvae.engine.run import RunDirectory
from tiny import packed_data

EIGHT = 8


@pytest.fixture(autouse=True)
def quick(triton_backend, monkeypatch):
    monkeypatch.setattr(plans, "tiles_of", lambda operands: INTERPRETED)
    with quick_interpreter():
        yield


@pytest.fixture(scope="module")
def data():
    return packed_data()


def recipes(kind, count, steps=2):
    plain = Recipe(
        objective=OBJECTIVES[kind], batch_size=2, lr=1e-3, precision="fp16", engine="fused", steps=steps
    )
    found = [replace(plain, seed=seed, lr=1e-3 / (1 + seed % 3)) for seed in range(count)]
    for n, numbers in enumerate(NUMBERS[kind][: count - 1]):
        found[n + 1] = replace(found[n + 1], objective=replace(plain.objective, **numbers))
    return found


def runs_of(out, recipes):
    return [RunDirectory.create_or_resume(out / f"seed-{recipe.seed}", recipe) for recipe in recipes]


def assert_same(a, b):
    one, two = (run.newest_checkpoint() for run in (a, b))
    assert one.step == two.step
    assert one.metadata["engine"] == two.metadata["engine"] == "fused"
    assert one.tensors.keys() == two.tensors.keys()
    for name, tensor in one.tensors.items():
        assert torch.equal(tensor, two.tensors[name]), name
    assert (a.path / "trace.csv").read_bytes() == (b.path / "trace.csv").read_bytes()


def test_two_as_alone_whoever_catches_up(data, device, tmp_path):
    """One of them stands a step ahead of the other."""
    both = recipes("control-vae", 2)
    (alone,) = runs_of(tmp_path / "alone", both[1:])
    train(alone, data, device, log_every=1)
    ahead = runs_of(tmp_path / "both", [replace(both[0], steps=1)])
    assert train_together(ahead, data, device, log_every=1)[0].made == 1
    runs = runs_of(tmp_path / "both", both)
    assert [o.made for o in train_together(runs, data, device, log_every=1)] == [1, 2]
    assert_same(runs[1], alone)


@pytest.mark.slow
@pytest.mark.parametrize("kind", OBJECTIVES)
def test_eight_as_alone(kind, data, device, tmp_path):
    """Stopped after the second step and gone on with."""
    together, alone = tmp_path / "together", tmp_path / "alone"
    train_together(runs_of(together, recipes(kind, EIGHT)), data, device, log_every=1)
    train_together(runs_of(together, recipes(kind, EIGHT, steps=3)), data, device, log_every=1)
    for recipe in recipes(kind, EIGHT, steps=3):
        (run,) = runs_of(alone, [recipe])
        train(run, data, device, log_every=1)
        assert_same(*runs_of(together, [recipe]), run)


@pytest.mark.slow
def test_one_that_is_not_finite_stands_still(data, device, tmp_path, monkeypatch):
    """A weight of the second of three becomes NaN before the third step; the drain of rows sees it after it."""
    monkeypatch.setattr("pyvae.engine.course._DRAIN_SECONDS", 0)
    three = recipes("factor-vae", 3, steps=4)
    prepare = Members.prepare

    def spoiling(self, step):
        if step == 2 and len(self.members) == 3:
            self.buffers["weights"][1, self.plan.layout.parameters["decoder.0.weight"].offset] = float("nan")
        prepare(self, step)

    monkeypatch.setattr(Members, "prepare", spoiling)
    runs = runs_of(tmp_path, three)
    outcomes = train_together(runs, data, device, log_every=1, checkpoint_seconds=0)
    assert [o.step for o in outcomes] == [4, 2, 4]
    assert "is not finite in step 2" in outcomes[1].failure
    assert checkpoint.load_newest(runs[1].checkpoints).step == 2
    assert runs[1].trace()["step"].tolist() == [0, 1]
    for n in (0, 2):
        (alone,) = runs_of(tmp_path / "alone", [three[n]])
        train(alone, data, device, log_every=1)
        assert_same(runs[n], alone)
