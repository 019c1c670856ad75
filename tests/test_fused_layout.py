"""Weights as the kernels read them: the way there and back, and what networks are known."""

from typing import ClassVar

import pytest
import torch
from torch import nn

from fused import ARCHITECTURES
from pyvae.engine.fused.layout import ALIGNMENT, Layout, padded, z_width
from pyvae.engine.fused.network import UnknownNetworkError, network_of
from pyvae.nets import build
from pyvae.nets.layers import Layers


def layout_of(architecture: str, channels: int = 1, latents: int = 10) -> Layout:
    return Layout(network_of(build(architecture, channels, latents)))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("latents", [1, 10, 16, 17, 32])
def test_there_and_back(architecture, channels, latents):
    net = build(architecture, channels, latents, seed=latents)
    layout = Layout(network_of(net))
    tensors = dict(net.named_parameters())
    assert set(layout.parameters) == set(tensors)
    row = layout.row(tensors)
    assert row.shape == (layout.width,)
    back = layout.tensors(row)
    for name, value in tensors.items():
        assert torch.equal(back[name], value), name
    # no element lies where another does, and each within its own parameter
    taken = torch.cat([p.index.flatten() for p in layout.parameters.values()])
    assert len(taken.unique()) == len(taken) == sum(p.numel() for p in tensors.values())
    ends = 0
    for name, p in layout.parameters.items():
        assert p.offset % ALIGNMENT == 0, name
        assert p.offset >= ends, name
        ends = p.offset + p.size
        assert p.index.shape == tensors[name].shape
        assert p.index.min() >= p.offset
        assert p.index.max() < ends
    assert ends <= layout.width
    # what nobody has is zero
    idle = torch.ones(layout.width, dtype=torch.bool)
    idle[taken] = False
    assert (row[idle] == 0).all()


def test_new_memory():
    layout = layout_of("burgess")
    row = torch.zeros(layout.width)
    for value in layout.tensors(row).values():
        value.fill_(1)
    assert (row == 0).all()


class TestPlaces:
    """Of one element of each kind of parameter, from its formula."""

    CASES: ClassVar = [
        # architecture, channels, parameter, index in torch, offset in the parameter
        # [output, channel, y, x] -> [channel, y, x, output]
        ("burgess", 3, "encoder.trunk.0.weight", (5, 2, 1, 3), (2 * 16 + 1 * 4 + 3) * 32 + 5),
        # [small, big, y, x] -> [y, x, big, small], 32 and 64 channels
        ("kim", 1, "encoder.trunk.4.weight", (40, 7, 2, 1), ((2 * 4 + 1) * 32 + 7) * 64 + 40),
        # kernels of 2 x 2
        ("locatello", 1, "encoder.trunk.6.weight", (40, 9, 1, 0), (2 * 64 + 9) * 64 + 40),
        # a transposed one has the small maps in front, too
        ("kim", 1, "decoder.7.weight", (33, 5, 3, 2), ((3 * 4 + 2) * 32 + 5) * 64 + 33),
        # [channel of the input, of the image, y, x] -> [image's, y, x, input's]
        ("burgess", 3, "decoder.13.weight", (8, 1, 0, 2), (1 * 16 + 2) * 32 + 8),
        # of maps [channel, y, x] to outputs -> [y, x, channel, output]
        (
            "burgess",
            1,
            "encoder.trunk.9.weight",
            (100, 6 * 16 + 2 * 4 + 3),
            ((2 * 4 + 3) * 32 + 6) * 256 + 100,
        ),
        # plain: transposed
        ("burgess", 1, "encoder.trunk.11.weight", (3, 200), 200 * 256 + 3),
        # to maps
        ("burgess", 1, "decoder.4.weight", (6 * 16 + 2 * 4 + 3, 100), 100 * 512 + (2 * 4 + 3) * 32 + 6),
        ("burgess", 1, "decoder.4.bias", (6 * 16 + 2 * 4 + 3,), (2 * 4 + 3) * 32 + 6),
        # convolutions that cover all of their maps
        ("beta-vae-h", 1, "encoder.trunk.8.weight", (100, 6, 2, 3), ((2 * 4 + 3) * 64 + 6) * 256 + 100),
        ("beta-vae-h", 1, "decoder.3.weight", (100, 6, 2, 3), 100 * 1024 + (2 * 4 + 3) * 64 + 6),
        ("beta-vae-h", 1, "decoder.3.bias", (6,), 6),
        # mean and log-variance of 10 latents in 16 columns each
        ("burgess", 1, "encoder.head.weight", (7, 100), 100 * 32 + 7),
        ("burgess", 1, "encoder.head.weight", (10 + 7, 100), 100 * 32 + 16 + 7),
        ("burgess", 1, "encoder.head.bias", (10 + 7,), 16 + 7),
        # z in 32
        ("burgess", 1, "decoder.0.weight", (100, 7), 100 * 32 + 7),
        ("burgess", 1, "decoder.0.bias", (100,), 100),
    ]

    @pytest.mark.parametrize(("architecture", "channels", "name", "index", "place"), CASES)
    def test_a_place(self, architecture, channels, name, index, place):
        parameter = layout_of(architecture, channels).parameters[name]
        assert int(parameter.index[index]) - parameter.offset == place


@pytest.mark.parametrize(
    ("latents", "p", "z"), [(1, 16, 32), (16, 16, 32), (17, 32, 32), (32, 32, 32), (33, 64, 64)]
)
def test_padding(latents, p, z):
    assert (padded(latents), z_width(latents)) == (p, z)


def changed(change):
    net = build("burgess", 1, 10)
    change(net)
    return net


def replaced(at: int, layer: nn.Module, *, decoder: bool = False):
    """Burgess's network with another layer in one place."""

    def change(net) -> None:
        layers = list((net.decoder if decoder else net.encoder.trunk).children())
        layers[at : at + 1] = [layer]
        if decoder:
            net.decoder = Layers(*layers)
        else:
            net.encoder.trunk = Layers(*layers)

    return changed(change)


REFUSED = {
    "mlp": (lambda: build("mlp", 1, 10), "Tanh has no kernel"),
    "rainforth": (lambda: build("rainforth", 1, 10), "Tanh has no kernel"),
    "factors": (
        lambda: build("burgess", 1, 3, factor_sizes=(4, 5, 6)),
        "the code is made from factors, without convolutions",
    ),
    "another activation": (lambda: replaced(3, nn.LeakyReLU()), "LeakyReLU has no kernel"),
    "more channels at the end": (
        lambda: replaced(0, nn.Conv2d(1, 64, 4, stride=2, padding=1)),
        "beside images it does not have 32 channels and kernels of 4 x 4",
    ),
    "48 channels": (
        lambda: replaced(4, nn.Conv2d(32, 48, 4, stride=2, padding=1)),
        "encoder.trunk.4 is not of 32 or 64 channels with a kernel of 4 x 4 or 2 x 2",
    ),
    "kernels of 3 x 3": (
        lambda: replaced(9, nn.ConvTranspose2d(32, 32, 3, stride=2, padding=1), decoder=True),
        "decoder.9 is not of 32 or 64 channels with a kernel of 4 x 4 or 2 x 2",
    ),
    "no padding": (
        lambda: replaced(4, nn.Conv2d(32, 32, 4, stride=2)),
        "encoder.trunk.4 is not of 32 or 64 channels with a kernel of 4 x 4 or 2 x 2",
    ),
    "three convolutions": (
        lambda: replaced(6, nn.Flatten(0, 0)),
        "its networks are not four convolutions and four transposed ones",
    ),
    "a stride of 1": (
        lambda: replaced(9, nn.Conv2d(32, 32, 3)),
        "encoder.trunk.9 has a stride of 1 and does not cover maps of 4 x 4",
    ),
    "other maps": (
        lambda: replaced(9, nn.Linear(2048, 256)),
        "its maps beside dense layers are not 4 x 4",
    ),
    "a single dense layer": (
        lambda: changed(
            lambda net: setattr(net, "decoder", Layers(nn.Linear(10, 512), *list(net.decoder.children())[5:]))
        ),
        "its decoder has a single dense layer",
    ),
    "a dilated kernel": (
        lambda: replaced(4, nn.Conv2d(32, 32, 4, stride=2, padding=1, dilation=2)),
        "encoder.trunk.4 has groups, a dilation, or no bias",
    ),
    "groups": (
        lambda: replaced(4, nn.Conv2d(32, 32, 4, stride=2, padding=1, groups=2)),
        "encoder.trunk.4 has groups, a dilation, or no bias",
    ),
    "no bias": (
        lambda: replaced(4, nn.Conv2d(32, 32, 4, stride=2, padding=1, bias=False)),
        "encoder.trunk.4 has groups, a dilation, or no bias",
    ),
    "more pixels than twice": (
        lambda: replaced(
            9, nn.ConvTranspose2d(32, 32, 4, stride=2, padding=1, output_padding=1), decoder=True
        ),
        "decoder.9 has groups, a dilation, or no bias",
    ),
    "an activation missing": (
        lambda: replaced(3, nn.Flatten(0, 0)),
        "there is no ReLU in front of encoder.trunk.4",
    ),
    "the last activation missing": (lambda: replaced(12, nn.Flatten()), "encoder.trunk ends without a ReLU"),
    "one too many": (lambda: replaced(14, nn.ReLU(), decoder=True), "decoder ends with a ReLU"),
    "kernels of 2 x 2 beside images": (
        lambda: replaced(0, nn.Conv2d(1, 32, 2, stride=2)),
        "beside images it does not have 32 channels and kernels of 4 x 4",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_networks_are_refused(name):
    make, reason = REFUSED[name]
    with pytest.raises(UnknownNetworkError) as refused:
        network_of(make())
    assert reason in str(refused.value)
