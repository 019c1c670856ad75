"""An encoder and a decoder."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyvae.nets.layers import Tickets, run


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


class OwnEncoder(nn.Module):
    """An encoder of a user's own, whose mean and log-variance may come in one tensor."""

    def __init__(self, own: nn.Module, latents: int) -> None:
        super().__init__()
        self.own = own
        self.latents = latents

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        found = self.own(images)
        mu, logvar = found.chunk(2, -1) if isinstance(found, Tensor) else found
        return mu, logvar


class Autoencoder(nn.Module):
    """An encoder and a decoder."""

    def __init__(self, encoder: Encoder | FactorEncoder | OwnEncoder, decoder: nn.Module) -> None:
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
