"""The network that FactorVAE trains beside its own."""

from functools import partial

from torch import nn

from pyvae.nets.build import seeded
from pyvae.nets.layers import Layers
from pyvae.nets.published import linears


def build_discriminator(latents: int, layers: int = 6, width: int = 1000, *, seed: int = 0) -> nn.Module:
    """Kim & Mnih 2018, appendix: a leaky ReLU (0.2) network from ``z [B, D]`` to two logits, class 0 for q(z).

    Args:
        latents: D.
        layers: hidden layers; six of 1000 for ten latents have 5,018,002 weights.
        width: units in each.
        seed: of the weights, by torch's default initialisation.
    """
    with seeded(seed):
        hidden = linears([latents, *[width] * layers], partial(nn.LeakyReLU, 0.2))
        return Layers(*hidden, nn.Linear(width, 2))
