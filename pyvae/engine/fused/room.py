"""Memory of a device that a member of an ensemble takes, counted from shapes alone: no network is filled, and what
models share is counted once."""

from functools import lru_cache

import torch

from pyvae.engine.fused.launch import Operands
from pyvae.engine.fused.layout import Layout
from pyvae.engine.fused.plan import Plan
from pyvae.engine.fused.supports import network_for
from pyvae.engine.fused.weighting import weighting_of
from pyvae.engine.recipe import Recipe
from pyvae.engine.stepper import RING_ROWS
from pyvae.nets import build_discriminator, count_weights
from pyvae.objectives import FactorVAE, InfoGAN
from pyvae.objectives.own import term_names

_FLOAT = 4
_DOUBLE = 8


def member_bytes(recipe: Recipe, channels: int, bits: bool) -> int:
    """Bytes of a device that a member takes, without the images.

    Args:
        recipe: of the member.
        channels: of the images.
        bits: whether they are kept as bits, not as bytes.

    Raises:
        UnknownNetworkError: the fused engine does not know the network.
    """
    objective = recipe.objective
    found = _buffers(
        recipe.architecture,
        recipe.latents,
        recipe.batch_size,
        recipe.precision,
        channels,
        bits,
        weighting_of(objective).kind == "seam",
        isinstance(objective, FactorVAE),
    )
    found += RING_ROWS * fields_of(recipe) * _DOUBLE
    if isinstance(objective, FactorVAE):
        # weights, gradients and moments, and for each layer what two batches leave there and its gradient
        found += 4 * _FLOAT * discriminator_weights(recipe.latents, objective)
        rows = 3 * recipe.batch_size
        found += 3 * _FLOAT * rows * objective.discriminator_width * objective.discriminator_layers
    return found


def fields_of(recipe: Recipe) -> int:
    """Columns of the trace."""
    behind = 2 if isinstance(recipe.objective, FactorVAE | InfoGAN) else 0
    terms = term_names(recipe.objective, recipe.latents, torch.device("cpu"))
    return 1 + len(terms) + 1 + behind + recipe.latents


def discriminator_weights(latents: int, objective: FactorVAE) -> int:
    """Numbers in a discriminator."""
    return _discriminator(latents, objective.discriminator_layers, objective.discriminator_width)


@lru_cache(maxsize=64)
def _discriminator(latents: int, layers: int, width: int) -> int:
    with torch.device("meta"):
        return count_weights(build_discriminator(latents, layers, width))


@lru_cache(maxsize=256)
def _buffers(
    architecture: str,
    latents: int,
    batch_size: int,
    precision: Operands,
    channels: int,
    bits: bool,
    seam: bool,
    adversarial: bool,
) -> int:
    known = Recipe(architecture=architecture, latents=latents)
    network = network_for(known, channels)
    plan = Plan(network, Layout(network), batch_size, precision, bits)
    if adversarial:
        plan.second()
    found = sum(buffer.size * buffer.dtype.itemsize for buffer in plan.buffers.values())
    if seam:  # gradients at the latents, and what led to them
        found += 16 * batch_size * batch_size * latents * _FLOAT
    return found
