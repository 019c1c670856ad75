import math

import pytest
import torch
from torch import nn

from pyvae.nets import ARCHITECTURES, build, count_weights

PUBLISHED = {
    "burgess": 502_005,
    "beta-vae-h": 763_285,
    "kim": 498_005,
    "kim-256": 764_245,
    "locatello": 690_517,
    "mlp": 14_196_516,
    "rainforth": 1_729_316,
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_weights_are_as_many_as_published(name):
    assert count_weights(build(name, 1, 10)) == PUBLISHED[name]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_shapes_and_halves(name, channels):
    net = build(name, channels, 7).eval()
    images = torch.rand(3, channels, 64, 64)
    mu, logvar = net.encoder(images)
    assert net.latents == 7
    assert mu.shape == logvar.shape == (3, 7)
    assert net.decoder(mu).shape == images.shape
    both = net.encoder.head(net.encoder.trunk(images))
    torch.testing.assert_close(torch.cat([mu, logvar], 1), both)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_weight_is_reached_by_the_gradient(name):
    net = build(name, 1, 4)
    mu, logvar = net.encoder(torch.rand(2, 1, 64, 64))
    (net.decoder(mu + logvar)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_a_seed_gives_the_same_weights_and_leaves_the_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, same, other = (build("burgess", 1, 10, seed=s) for s in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    for a, b, c in zip(one.parameters(), same.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


def _std(net, kind):
    return [(m.weight.std() * m.weight[0].numel() ** 0.5).item() for m in net.modules() if type(m) is kind]


def test_kaiming_spares_transposed_convolutions_as_the_published_code_does():
    net, default = build("burgess", 1, 10, init="kaiming"), build("burgess", 1, 10)
    assert _std(net, nn.Conv2d) == pytest.approx([2**0.5] * 4, rel=0.15)
    assert _std(net, nn.Linear) == pytest.approx([2**0.5] * 6, rel=0.15)
    bounds = [m.weight.abs().max().item() for m in net.modules() if isinstance(m, nn.ConvTranspose2d)]
    plain = [m.weight.abs().max().item() for m in default.modules() if isinstance(m, nn.ConvTranspose2d)]
    assert bounds == pytest.approx(plain, rel=0.01)
    assert all(not m.bias.any() for m in net.modules() if isinstance(m, nn.Linear | nn.Conv2d))


def test_normal_and_glorot():
    normal = build("kim", 1, 10, init="normal")
    assert [m.weight.std().item() for m in normal.modules() if isinstance(m, nn.Linear)] == pytest.approx(
        [0.02] * 4, rel=0.1
    )
    glorot = build("locatello", 1, 10, init="glorot")
    for layer in glorot.modules():
        if isinstance(layer, nn.Linear):
            bound = (6 / sum(layer.weight.shape)) ** 0.5
            assert 0.95 * bound < layer.weight.abs().max() <= bound
        if isinstance(layer, nn.ConvTranspose2d):
            assert not layer.bias.any()


@pytest.mark.parametrize(("option", "value"), [("architecture", "resnet"), ("init", "zeros")])
def test_unknown_names(option, value):
    with pytest.raises(ValueError, match=f"{option}: expected one of .*, got '{value}'"):
        build(**{"architecture": "kim", "channels": 1, "latents": 2, option: value})


def test_factors_go_through_channels_of_their_own():
    net = build("burgess", 1, 3, factor_sizes=(4, 5, 6))
    encoder = net.encoder
    assert net.reads_factors
    assert net.latents == 3
    with torch.no_grad():
        encoder.scale.copy_(torch.tensor([1.0, 2.0, -0.5]))
        encoder.narrowing.copy_(torch.tensor([-99.0, 1.0, 0.3]))
    mu, logvar = encoder(torch.arange(120))
    classes = torch.cartesian_prod(*(torch.arange(n).double() for n in (4, 5, 6)))
    standard = (classes - classes.mean(0)) / classes.std(0, correction=0)
    torch.testing.assert_close(mu.double(), standard * torch.tensor([1.0, 2.0, -0.5]).double())
    log_sigma = [0.0, -math.log1p(math.e), -math.log1p(math.exp(0.3))]
    torch.testing.assert_close(logvar, 2 * torch.tensor(log_sigma).expand(120, 3))
    # Burgess et al. 2018: the mean KL of a channel is 1/2 (a^2 + e^{2 s} - 2 s - 1)
    kl = 0.5 * (mu**2 + logvar.exp() - 1 - logvar).mean(0)
    exact = [
        0.5 * (a * a + math.exp(2 * s) - 2 * s - 1) for a, s in zip((1, 2, -0.5), log_sigma, strict=True)
    ]
    torch.testing.assert_close(kl, torch.tensor(exact))
    with pytest.raises(ValueError, match="a code of 3 factors, got 10"):
        build("burgess", 1, 10, factor_sizes=(4, 5, 6))


def test_a_factor_of_one_class_says_nothing():
    net = build("burgess", 1, 2, factor_sizes=(1, 7))
    assert torch.equal(net.encoder(torch.arange(7))[0][:, 0], torch.zeros(7))
