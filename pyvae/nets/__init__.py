"""Encoders and decoders under the names of their papers, as plain modules.

An encoder maps images ``[B, C, 64, 64]`` to ``(mu, logvar)``, each ``[B, D]``; a decoder maps ``z [B, D]`` to Bernoulli
logits ``[B, C, 64, 64]``. Weight counts (one channel, ten latents) are those of the published networks. Those of
fully connected layers alone take images of any side.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from pyvae.nets.layers import Layers, Tickets, run
from pyvae.random import word

SIDE = 64


class Encoder(nn.Module):
    """A trunk and a linear head that gives the mean in its first half and the log-variance in its second."""

    def __init__(self, trunk: nn.Module, width: int, latents: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = nn.Linear(width, 2 * latents)
        self._tickets = Tickets()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        layers = [("trunk", self.trunk), ("head", self.head)]
        mu, logvar = run(layers, images, self._tickets).chunk(2, -1)
        return mu, logvar

    @property
    def latents(self) -> int:
        return self.head.out_features // 2


class FactorEncoder(nn.Module):
    """A noisy channel for each true factor, instead of an encoder: Burgess et al. 2018, section 4.1.

    ``z_j = a_j f_j + exp(s_j) eps`` with learned scalars a_j and s_j and f_j the class of factor j, standardised over
    the data set. A capacity then says which factors are worth their nats.

    s_j is minus softplus of its parameter, so no channel is wider than the prior: from s = 0 the KL that a capacity
    asks for grows with s in both directions, and of the two only the narrow one says more.
    """

    sizes: Tensor
    strides: Tensor

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((len(sizes),), 0.1))
        self.narrowing = nn.Parameter(torch.full((len(sizes),), -2.0))
        self.register_buffer("sizes", torch.tensor(sizes))
        strides = [math.prod(sizes[f + 1 :]) for f in range(len(sizes))]
        self.register_buffer("strides", torch.tensor(strides))

    @property
    def latents(self) -> int:
        return len(self.scale)

    def forward(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior mean and log-variance ``[B, F]`` of the images int64 ``[B]`` of the full grid of the factors."""
        classes = index.unsqueeze(-1) // self.strides % self.sizes
        # variance of the uniform distribution on 0, ..., n - 1; a factor of one class says nothing
        deviation = ((self.sizes.square() - 1) / 12).clamp(min=1e-12).sqrt()
        factors = (classes - (self.sizes - 1) / 2) / deviation
        return self.scale * factors, (-2 * nn.functional.softplus(self.narrowing)).expand_as(factors)


class Autoencoder(nn.Module):
    """An encoder and a decoder."""

    def __init__(self, encoder: Encoder | FactorEncoder, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder

    @property
    def latents(self) -> int:
        return self.encoder.latents

    @property
    def reads_factors(self) -> bool:
        """Whether the encoder takes the index of an image in the grid of its factors, instead of the image."""
        return isinstance(self.encoder, FactorEncoder)


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


def _linears(widths: list[int], activation: Callable[[], nn.Module] = nn.ReLU) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), activation()]
    return layers


def burgess(channels: int, latents: int) -> Autoencoder:
    """Burgess et al. 2018, appendix: four 32-channel convolutions and two layers of 256; 502,005 weights."""
    trunk = [*_convs([channels, 32, 32, 32, 32], [4] * 4), nn.Flatten(), *_linears([512, 256, 256])]
    decoder = [
        *_linears([latents, 256, 256, 512]),
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
        *_linears([1024, width]),
    ]
    decoder = [
        *_linears([latents, width, 1024]),
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
    trunk = [nn.Flatten(), *_linears([pixels, 1200, 1200])]
    decoder = [
        *_linears([latents, 1200, 1200, 1200], nn.Tanh),
        nn.Linear(1200, pixels),
        nn.Unflatten(1, (channels, side, side)),
    ]
    return Autoencoder(Encoder(Layers(*trunk), 1200, latents), Layers(*decoder))


def rainforth(channels: int, latents: int, side: int = SIDE) -> Autoencoder:
    """Rainforth et al. 2018, section 6, the network of one stochastic layer of Burda et al. 2016: 200-200 with tanh on
    either side of z; on MNIST, of 28 x 28 pixels, with 50 latents 425,284 weights. Their head gives log sigma."""
    pixels = channels * side * side
    trunk = [nn.Flatten(), *_linears([pixels, 200, 200], nn.Tanh)]
    decoder = [
        *_linears([latents, 200, 200], nn.Tanh),
        nn.Linear(200, pixels),
        nn.Unflatten(1, (channels, side, side)),
    ]
    return Autoencoder(Encoder(Layers(*trunk), 200, latents), Layers(*decoder))


ANY_SIDE: dict[str, Callable[[int, int, int], Autoencoder]] = {f.__name__: f for f in (mlp, rainforth)}
"""Those that take images of any side."""
ARCHITECTURES: dict[str, Callable[..., Autoencoder]] = {
    **{f.__name__.replace("_", "-"): f for f in (burgess, beta_vae_h, kim, kim_256, locatello)},
    **ANY_SIDE,
}


def _init_kaiming(layer: nn.Module) -> None:
    # 1Konny's check for Conv2d misses ConvTranspose2d, which keeps torch's default in every published run of it
    if isinstance(layer, nn.Linear | nn.Conv2d):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        _zero_bias(layer)


def _init_normal(layer: nn.Module) -> None:
    if isinstance(layer, nn.Linear | nn.Conv2d):
        nn.init.normal_(layer.weight, 0.0, 0.02)
        _zero_bias(layer)


def _init_glorot(layer: nn.Module) -> None:
    if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
        nn.init.xavier_uniform_(layer.weight)
        _zero_bias(layer)


def _zero_bias(layer: nn.Linear | nn.Conv2d | nn.ConvTranspose2d) -> None:
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


INITIALISATIONS: dict[str, Callable[[nn.Module], None] | None] = {
    "torch": None,
    "kaiming": _init_kaiming,
    "normal": _init_normal,
    "glorot": _init_glorot,
}


def build(
    architecture: str,
    channels: int,
    latents: int,
    *,
    side: int = SIDE,
    init: str = "torch",
    seed: int = 0,
    factor_sizes: Sequence[int] | None = None,
) -> Autoencoder:
    """A network with the weights that ``seed`` gives; torch's global generator is left as it was.

    Args:
        architecture: "burgess", "beta-vae-h", "kim", "kim-256", "locatello", "mlp" or "rainforth".
        channels: of the images.
        latents: D.
        side: of the images; 64 but for "mlp" and "rainforth".
        init: "torch" (its default); "kaiming" (1Konny/Beta-VAE, ControlVAE: normal, fan in, gain sqrt 2, zero bias,
            transposed convolutions left alone as there); "normal" (1Konny/FactorVAE: N(0, 0.02), likewise);
            "glorot" (TensorFlow's, disentanglement_lib).
        factor_sizes: of the true factors that are the code, each through a noisy channel, instead of an encoder's.

    Raises:
        ValueError: unknown name, a side that the network does not take, or another number of latents than factors.
    """
    if architecture not in ARCHITECTURES:
        raise ValueError(f"architecture: expected one of {', '.join(ARCHITECTURES)}, got {architecture!r}")
    if init not in INITIALISATIONS:
        raise ValueError(f"init: expected one of {', '.join(INITIALISATIONS)}, got {init!r}")
    if side != SIDE and architecture not in ANY_SIDE:
        raise ValueError(f"side: {architecture} takes images of {SIDE} x {SIDE}, got {side}")
    with seeded(seed):
        if architecture in ANY_SIDE:
            net = ANY_SIDE[architecture](channels, latents, side)
        else:
            net = ARCHITECTURES[architecture](channels, latents)
        if initialise := INITIALISATIONS[init]:
            net.apply(initialise)
    if factor_sizes is not None:
        if latents != len(factor_sizes):
            raise ValueError(f"latents: a code of {len(factor_sizes)} factors, got {latents}")
        net.encoder = FactorEncoder(factor_sizes)
    return net


def build_discriminator(latents: int, layers: int = 6, width: int = 1000, *, seed: int = 0) -> nn.Module:
    """Kim & Mnih 2018, appendix: a leaky ReLU (0.2) network from ``z [B, D]`` to two logits, class 0 for q(z).

    Args:
        latents: D.
        layers: hidden layers; six of 1000 for ten latents have 5,018,002 weights.
        width: units in each.
        seed: of the weights, by torch's default initialisation.
    """
    with seeded(seed):
        hidden = _linears([latents, *[width] * layers], partial(nn.LeakyReLU, 0.2))
        return Layers(*hidden, nn.Linear(width, 2))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """What torch draws on the CPU comes from ``seed``; its generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(word(seed))
        yield


def count_weights(module: nn.Module) -> int:
    """Number of trainable scalars."""
    return sum(math.prod(p.shape) for p in module.parameters())
