"""Encoders and decoders under the names of their papers, as plain modules.

An encoder maps images ``[B, C, 64, 64]`` to ``(mu, logvar)``, each ``[B, D]``; a decoder maps ``z [B, D]`` to Bernoulli
logits ``[B, C, 64, 64]``. Weight counts (one channel, ten latents) are those of the published networks. Those of
fully connected layers alone take images of any side.
"""

from collections.abc import Callable
from inspect import signature
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, TypeAlias

from torch import nn

from pyvae.nets.autoencoder import Autoencoder, Encoder
from pyvae.nets.layers import Layers

SIDE = 64


def _convs(channels: list[int], kernels: list[int]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for (inputs, outputs), kernel in zip(pairwise(channels), kernels, strict=True):
        layers += [nn.Conv2d(inputs, outputs, kernel, stride=2, padding=kernel // 2 - 1), nn.ReLU()]
    return layers


def _transposed_convs(channels: list[int]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(channels):
        layers += [nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1), nn.ReLU()]
    return layers[:-1]


def linears(widths: list[int], activation: Callable[[], nn.Module] = nn.ReLU) -> list[nn.Module]:
    """Linear layers from each width to the next, an activation behind each."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), activation()]
    return layers


def burgess(channels: int, latents: int) -> Autoencoder:
    """Burgess et al. 2018, appendix: four 32-channel convolutions and two layers of 256; 502,005 weights."""
    trunk = [*_convs([channels, 32, 32, 32, 32], [4] * 4), nn.Flatten(), *linears([512, 256, 256])]
    decoder = [
        *linears([latents, 256, 256, 512]),
        nn.Unflatten(1, (32, 4, 4)),
        *_transposed_convs([32, 32, 32, 32, channels]),
    ]
    return Autoencoder(Encoder(Layers(*trunk), 256, latents), Layers(*decoder))


def beta_vae_h(channels: int, latents: int) -> Autoencoder:
    """ "BetaVAE_H" of 1Konny/Beta-VAE, the network of ControlVAE (Shao et al. 2020); 763,285 weights."""
    trunk = [
        *_convs([channels, 32, 32, 64, 64], [4] * 4),
        nn.Conv2d(64, 256, 4),
        nn.ReLU(),
        nn.Flatten(),
    ]
    decoder = [
        nn.Linear(latents, 256),
        nn.Unflatten(1, (256, 1, 1)),
        nn.ReLU(),
        nn.ConvTranspose2d(256, 64, 4),
        nn.ReLU(),
        *_transposed_convs([64, 64, 32, 32, channels]),
    ]
    return Autoencoder(Encoder(Layers(*trunk), 256, latents), Layers(*decoder))


def _kim(channels: int, latents: int, width: int, kernels: list[int]) -> Autoencoder:
    trunk = [
        *_convs([channels, 32, 32, 64, 64], kernels),
        nn.Flatten(),
        *linears([1024, width]),
    ]
    decoder = [
        *linears([latents, width, 1024]),
        nn.Unflatten(1, (64, 4, 4)),
        *_transposed_convs([64, 64, 32, 32, channels]),
    ]
    return Autoencoder(Encoder(Layers(*trunk), width, latents), Layers(*decoder))


def kim(channels: int, latents: int) -> Autoencoder:
    """Kim & Mnih 2018, appendix, for 2D Shapes: a fully connected layer of 128; 498,005 weights."""
    return _kim(channels, latents, 128, [4] * 4)


def kim_256(channels: int, latents: int) -> Autoencoder:
    """Kim & Mnih 2018, appendix, for 3D Shapes and others: a fully connected layer of 256; 764,245 weights."""
    return _kim(channels, latents, 256, [4] * 4)


def locatello(channels: int, latents: int) -> Autoencoder:
    """disentanglement_lib (Locatello et al. 2019) as its code has it: 2 x 2 kernels in the third and fourth layer,
    where the paper's table says 4 x 4; 690,517 weights."""
    return _kim(channels, latents, 256, [4, 4, 2, 2])


def mlp(channels: int, latents: int, side: int = SIDE) -> Autoencoder:
    """Higgins et al. 2017, table 1: 1200-1200 with ReLU, 1200-1200-1200 with tanh; 14,196,516 weights."""
    pixels = channels * side * side
    trunk = [nn.Flatten(), *linears([pixels, 1200, 1200])]
    decoder = [
        *linears([latents, 1200, 1200, 1200], nn.Tanh),
        nn.Linear(1200, pixels),
        nn.Unflatten(1, (channels, side, side)),
    ]
    return Autoencoder(Encoder(Layers(*trunk), 1200, latents), Layers(*decoder))


def rainforth(channels: int, latents: int, side: int = SIDE) -> Autoencoder:
    """Rainforth et al. 2018, section 6, the network of one stochastic layer of Burda et al. 2016: 200-200 with tanh on
    either side of z; on MNIST, of 28 x 28 pixels, with 50 latents 425,284 weights. Their head gives log sigma."""
    pixels = channels * side * side
    trunk = [nn.Flatten(), *linears([pixels, 200, 200], nn.Tanh)]
    decoder = [
        *linears([latents, 200, 200], nn.Tanh),
        nn.Linear(200, pixels),
        nn.Unflatten(1, (channels, side, side)),
    ]
    return Autoencoder(Encoder(Layers(*trunk), 200, latents), Layers(*decoder))


ARCHITECTURES: dict[str, Callable[..., Autoencoder]] = {
    "burgess": burgess,
    "beta-vae-h": beta_vae_h,
    "kim": kim,
    "kim-256": kim_256,
    "locatello": locatello,
    "mlp": mlp,
    "rainforth": rainforth,
}
"""All of them: functions of channels and latents, and of a side where they take images of any."""
if TYPE_CHECKING:
    ArchitectureName: TypeAlias = str
else:
    ArchitectureName = Literal[tuple(ARCHITECTURES)]
ANY_SIDE = frozenset(name for name, made in ARCHITECTURES.items() if "side" in signature(made).parameters)
"""Those that take images of any side."""
