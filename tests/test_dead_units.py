"""Units that no image excites are counted, and the report tells of layers that are mostly dead."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pyvae
from pyvae import data
from pyvae.evaluation import DeadUnits, dead_units
from pyvae.evaluation.averages import Evaluation, evaluate
from pyvae.nets import build
from pyvae.report.page import MOSTLY, _constant
from tiny import TinyData


def network():
    """Of 2 x 2 means, one map and one feature of which are always negative."""
    convolution, linear = nn.Conv2d(1, 4, 32, 32), nn.Linear(16, 3)
    with torch.no_grad():
        convolution.weight.fill_(1 / 1024)
        convolution.bias.copy_(torch.tensor([0.0, -2.0, 0.0, -0.1]))  # means are below 0.4
        linear.weight.fill_(1.0)
        linear.bias.copy_(torch.tensor([0.0, -100.0, 1.0]))
    return nn.Sequential(convolution, nn.ReLU(), nn.Flatten(), linear, nn.ReLU(), nn.Linear(3, 2))


def test_units_are_dead_that_no_image_excites():
    assert dead_units(network(), TinyData()) == [DeadUnits("1", 1, 4), DeadUnits("4", 1, 3)]


@pytest.mark.parametrize("last", [True, False])
def test_a_unit_that_one_image_excites_lives_whichever_its_batch(last, monkeypatch):
    images = TinyData()
    everywhere = torch.arange(len(images))
    means = F.avg_pool2d(images.images(everywhere), 32).flatten(1).amax(1)
    order = means.argsort(descending=not last)
    levels = means.unique()
    net = network()
    monkeypatch.setattr("pyvae.evaluation.dead._BATCH", len(images) - int((means == levels[-1]).sum()))
    monkeypatch.setattr("pyvae.evaluation.dead.subset", lambda dataset: order)
    for bias, dead in ((-(levels[-2] + levels[-1]) / 2, 0), (-levels[-1] - 0.01, 1)):
        with torch.no_grad():
            net[0].bias[1] = bias
        assert dead_units(net, images)[0].dead == dead


def test_a_count_leaves_no_hook_behind():
    net = build("burgess", 1, 3)
    x = torch.rand(2, 1, 64, 64)
    before = net.encoder(x)
    assert [layer.units for layer in dead_units(net.encoder, TinyData())] == [32, 32, 32, 32, 256, 256]
    assert not any(layer._forward_hooks for layer in net.modules())
    torch.testing.assert_close(net.encoder(x), before, rtol=0, atol=0)


@pytest.mark.parametrize("dead", [False, True])
def test_the_report_tells_of_an_encoder_that_is_mostly_dead(dead, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "load", lambda path, **options: TinyData())
    counted = [DeadUnits("trunk.1", 0, 32), DeadUnits("trunk.3", 17 if dead else int(32 * MOSTLY), 32)]
    monkeypatch.setattr("pyvae.report.page.dead_units", lambda network, dataset: counted)
    run = pyvae.train(
        "vae", out=tmp_path / "run", data="tiny", steps=2, batch_size=4, latents=2, device="cpu"
    )
    page = run.report(explorer=False).read_text()
    assert ("in its layer 2, 17 of 32." in page) is dead
    assert ("A lower learning rate" in page) is dead


def biased(channels, latents, side):
    """Its first latent has the mean 2 for every image, the second tells how bright one is."""
    linear = nn.Linear(channels * side * side, 2 * latents)
    with torch.no_grad():
        linear.weight.zero_()
        linear.weight[1] = 0.01
        linear.bias.copy_(torch.tensor([2.0, 0.0, 0.0, 0.0]))
    decoder = nn.Sequential(nn.Linear(latents, linear.in_features), nn.Unflatten(1, (channels, side, side)))
    return nn.Sequential(nn.Flatten(), linear), decoder


@pytest.mark.parametrize("constant", [False, True])
def test_the_report_tells_of_latents_that_are_the_same_for_all_images(constant, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "load", lambda path, **options: TinyData())
    settings = {"data": "tiny", "steps": 1, "batch_size": 4, "latents": 2, "lr": 1e-9, "device": "cpu"}
    own = {"architecture": biased if constant else "burgess", "init": "torch" if constant else "kaiming"}
    run = pyvae.train("vae", out=tmp_path / "run", **settings, **own)
    found = evaluate(run.model().net, TinyData())
    means = run.codes(progress=False).mu.double()
    assert found.std == pytest.approx(means.std(0, correction=0).tolist(), rel=1e-3, abs=1e-6)
    page = run.report(explorer=False).read_text()
    assert (
        "1 of the 2 latents above 0.05 nats</strong> are nearly the same for all images" in page
    ) is constant
    assert ("a lower --gamma or --init kaiming helps" in page) is constant


def test_nothing_is_said_of_a_closed_latent_that_costs_a_little():
    """As in the report of the demo: 0.056 nats of 7.8."""
    kl = [3.068, 2.964, 1.54, 0.056]
    assert _constant(Evaluation(4096, 120.0, kl, None, [1.0, 1.0, 1.0, 0.01])) == ""
    assert "1 of the 4" in _constant(Evaluation(4096, 120.0, kl, None, [1.0, 1.0, 0.01, 1.0]))
