"""Networks by name, with the weights that a seed gives."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from pyvae.base.source import Source
from pyvae.nets.autoencoder import Autoencoder, FactorEncoder
from pyvae.nets.initialise import INITIALISATIONS
from pyvae.nets.own import own_network
from pyvae.nets.published import ANY_SIDE, ARCHITECTURES, SIDE
from pyvae.random import word


def build(
    architecture: str | Source,
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
        architecture: a name in ``ARCHITECTURES``; or the source of a function of a user's own, which is called as
            ``f(channels, latents, side)`` and returns a module with ``encoder`` and ``decoder``, or a pair of modules.
            The encoder maps images ``[B, C, side, side]`` to ``(mu, logvar)``, each ``[B, D]``, or to one tensor
            ``[B, 2 D]`` of both; the decoder maps ``z [B, D]`` to logits ``[B, C, side, side]``.
        channels: of the images.
        latents: D.
        side: of the images; 64 but for those in ``ANY_SIDE``, and for a function, which may take any.
        init: "torch" (its default); "kaiming" (1Konny/Beta-VAE, ControlVAE: normal, fan in, gain sqrt 2, zero bias,
            transposed convolutions left alone as there); "normal" (1Konny/FactorVAE: N(0, 0.02), likewise);
            "glorot" (TensorFlow's, disentanglement_lib).
        factor_sizes: of the true factors that are the code, each through a noisy channel, instead of an encoder's.

    Raises:
        ValueError: unknown name, a side that the network does not take, or another number of latents than factors.
        RecipeError: a function of a user's own failed, or gave no encoder and decoder.
    """
    if not isinstance(architecture, Source) and architecture not in ARCHITECTURES:
        raise ValueError(f"architecture: expected one of {', '.join(ARCHITECTURES)}, got {architecture!r}")
    if init not in INITIALISATIONS:
        raise ValueError(f"init: expected one of {', '.join(INITIALISATIONS)}, got {init!r}")
    if side != SIDE and not takes_any_side(architecture):
        raise ValueError(f"side: {architecture} takes images of {SIDE} x {SIDE}, got {side}")
    with seeded(seed):
        if isinstance(architecture, Source):
            net = own_network(architecture, channels, latents, side)
        else:
            sides = (side,) if architecture in ANY_SIDE else ()
            net = ARCHITECTURES[architecture](channels, latents, *sides)
        if initialise := INITIALISATIONS[init]:
            net.apply(initialise)
    if factor_sizes is not None:
        if latents != len(factor_sizes):
            raise ValueError(f"latents: a code of {len(factor_sizes)} factors, got {latents}")
        net.encoder = FactorEncoder(factor_sizes)
    return net


def takes_any_side(architecture: str | Source) -> bool:
    """Whether a network is not of 64 x 64 images alone; those of a user's own say when they are tried."""
    return isinstance(architecture, Source) or architecture in ANY_SIDE


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """What torch draws on the CPU comes from ``seed``; its generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would seed those of GPUs, which nothing here draws from
        torch.default_generator.manual_seed(word(seed))
        yield


def count_weights(module: nn.Module) -> int:
    """Number of trainable scalars."""
    return sum(math.prod(p.shape) for p in module.parameters())
