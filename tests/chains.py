"""Rows of layers that our convolutions take on a CPU, the same with torch's, and what both give."""

import copy
from contextlib import contextmanager
from unittest import mock

import pytest
import torch
from torch import nn

from pyvae.base import native
from pyvae.nets import build
from pyvae.nets.convolution_run import Run
from pyvae.nets.layers import Layers, set_own_convolutions

CPU = torch.device("cpu")
LAST, DENSE = torch.channels_last, torch.contiguous_format
NETWORKS = ["burgess", "beta-vae-h", "kim", "locatello"]
ABSENT = native.missing("convolutions_fwd", "cpu")
LEVEL = 0 if ABSENT else torch.ops.pyvae_native.convolution_level()
own = pytest.mark.skipif(LEVEL == 0, reason=ABSENT or "a processor without AVX2")
bfloat16 = pytest.mark.skipif(LEVEL < 3, reason=ABSENT or "a processor without products of bfloat16")


@contextmanager
def counted():
    """Stages of the runs that are our own within."""
    runs = []
    call = Run.__call__

    def count(run, x):
        runs.append(len(run.stages))
        return call(run, x)

    with mock.patch.object(Run, "__call__", count):
        yield runs


class Whole(nn.Module):
    """An encoder of one output."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, images):
        return torch.cat(self.encoder(images), -1)


def part(architecture, name, channels, batch, order=LAST):
    """An encoder or a decoder, and what it reads."""
    net = build(architecture, channels, 4).to(memory_format=order)
    g = torch.Generator().manual_seed(batch)
    if name == "decoder":
        return net.decoder, torch.randn(batch, 4, generator=g)
    images = torch.rand(batch, channels, 64, 64, generator=g)
    return Whole(net.encoder), images.contiguous(memory_format=order)


def every_kind(*, linear=True):
    """Each kind of layer that is taken, behind each activation and none: 32 x 32 to 1 x 1 and back, twice; or without
    linear layers."""
    torch.manual_seed(1)
    rows = [
        *(nn.Flatten(), nn.Linear(1024, 48, bias=False), nn.Linear(48, 20), nn.LeakyReLU(0.3)),
        *(
            nn.Linear(20, 1024),
            nn.Unflatten(1, (64, 4, 4)),
            nn.ReLU(),
            nn.Conv2d(64, 24, 4),
            nn.Flatten(1, 3),
        ),
        *(
            nn.Linear(24, 40),
            nn.ReLU(),
            nn.Unflatten(1, (40, 1, 1)),
            nn.ConvTranspose2d(40, 64, 4),
            nn.ReLU(),
        ),
    ]
    layers = [
        *(nn.Conv2d(3, 32, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(32, 64, 4, 2, 1)),
        *(nn.Conv2d(64, 32, 2, 2, bias=False), nn.ReLU(), nn.Conv2d(32, 40, 4), nn.LeakyReLU(0.1)),
        *(nn.ConvTranspose2d(40, 64, 4), nn.ReLU(inplace=True), *(rows if linear else [])),
        *(nn.ConvTranspose2d(64, 32, 2, 2), nn.ConvTranspose2d(32, 32, 4, 2, 1), nn.LeakyReLU(1.5)),
        nn.ConvTranspose2d(32, 1, 4, 2, 1),
    ]
    images = torch.randn(3, 3, 32, 32)
    return Layers(*layers), images


def torchs(module):
    """The same with torch's convolutions."""
    other = copy.deepcopy(module)
    set_own_convolutions(other, False)
    return other


def gradients(module, x):
    """Output, and gradients of the input and all parameters, of those that want one."""
    y = module(x)
    wanted = [t for t in (x, *module.parameters()) if t.requires_grad]
    towards = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    return [y.detach(), *torch.autograd.grad((y * towards).sum(), wanted)]


def slope_of(layer):
    return 0.0 if isinstance(layer, nn.ReLU) else getattr(layer, "negative_slope", None)


def assert_close(found, expected):
    """The same, but for what a unit near zero makes, which may be on either side of it."""
    for mine, other in zip(found, expected, strict=True):
        assert (mine - other).norm() <= 0.02 * other.norm()
