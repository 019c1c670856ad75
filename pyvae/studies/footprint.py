"""What a model of a recipe takes: bytes on the disk, and bytes of a device where members stand side by side.

Counted from shapes alone; no network is filled, and what models share is counted once.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import torch

from pyvae.data.dataset import Dataset, FactorDataset
from pyvae.engine.fused.launch import Operands
from pyvae.engine.fused.layout import Layout
from pyvae.engine.fused.plan import Plan
from pyvae.engine.fused.supports import network_for
from pyvae.engine.fused.weighting import weighting_of
from pyvae.engine.pair import pair_of
from pyvae.engine.recipe import Recipe
from pyvae.engine.stepper import RING_ROWS
from pyvae.nets import ANY_SIDE, SIDE, build, build_discriminator, count_weights
from pyvae.objectives import TERMS, FactorVAE, InfoGAN, Objective

KEPT = 2
"""Checkpoints that a run keeps."""
_HEADER = 16 << 10
"""Of a checkpoint's file, before its tensors."""
_SMALL_FILES = 64 << 10
"""recipe.json, metrics.json and the like."""
_CSV_VALUE = 12
_EVENT_VALUE, _EVENT = 20, 45
_FLOAT = 4
_DOUBLE = 8


class Images(NamedTuple):
    """What the size of a model depends on of a data set."""

    channels: int
    side: int
    bits: bool
    bytes: int
    """Of all images as a device holds them."""
    factor_sizes: tuple[int, ...] | None

    @classmethod
    def of(cls, dataset: Dataset) -> "Images":
        """Those of a data set, in memory or not."""
        channels, height, width = dataset.image_shape
        numbers = len(dataset) * channels * height * width
        sizes = dataset.factor_sizes if isinstance(dataset, FactorDataset) else None
        bits = dataset.bits is not None
        return cls(channels, height, bits, numbers // 8 if bits else numbers, sizes)


def disk_bytes(recipe: Recipe, images: Images, log_every: int) -> int:
    """Bytes of a finished run: checkpoints, snapshots, trace and events; not of figures, which a report draws."""
    saved = KEPT + len([step for step in recipe.keep_at if step <= recipe.steps])
    rows = -(-recipe.steps // log_every)
    row = _fields(recipe) * (_CSV_VALUE + _EVENT_VALUE) + _EVENT
    return saved * checkpoint_bytes(recipe, images) + rows * row + _SMALL_FILES


def checkpoint_bytes(recipe: Recipe, images: Images) -> int:
    """Bytes of a checkpoint: weights and what the optimisers remember of each, all float32."""
    adversary = 0
    if isinstance(recipe.objective, FactorVAE):
        adversary = _discriminator_weights(recipe.latents, recipe.objective)
    moments = 1 if recipe.optimizer == "adagrad" else 2
    if isinstance(recipe.objective, InfoGAN):
        weights = _pair_weights(recipe.objective, images.channels)
    else:
        sizes = images.factor_sizes if recipe.code == "factors" else None
        weights = _weights(recipe.architecture, images.channels, recipe.latents, images.side, sizes)
    return _FLOAT * (weights * (1 + moments) + adversary * 3) + _HEADER


def member_bytes(recipe: Recipe, images: Images) -> int:
    """Bytes of a device that a member of an ensemble of the fused engine takes, without the images.

    Raises:
        UnknownNetworkError: that engine does not know the network.
    """
    objective: Objective = recipe.objective  # type: ignore[assignment]  # others have no kernels
    adversarial = isinstance(objective, FactorVAE)
    found = _buffers(
        recipe.architecture,
        recipe.latents,
        recipe.batch_size,
        recipe.precision,
        images.channels,
        images.bits,
        weighting_of(objective).kind == "seam",
        adversarial,
    )
    found += RING_ROWS * _fields(recipe) * _DOUBLE
    if isinstance(objective, FactorVAE):
        # weights, gradients and moments, and for each layer what two batches leave there and its gradient
        found += 4 * _FLOAT * _discriminator_weights(recipe.latents, objective)
        rows = 3 * recipe.batch_size
        found += 3 * _FLOAT * rows * objective.discriminator_width * objective.discriminator_layers
    return found


def _fields(recipe: Recipe) -> int:
    """Columns of the trace."""
    behind = 2 if isinstance(recipe.objective, FactorVAE | InfoGAN) else 0
    return 1 + len(TERMS) + len(recipe.objective.extra_terms) + 1 + behind + recipe.latents


@lru_cache(maxsize=256)
def _weights(
    architecture: str, channels: int, latents: int, side: int, factor_sizes: tuple[int, ...] | None
) -> int:
    with torch.device("meta"):
        net = build(
            architecture,
            channels,
            latents,
            side=side if architecture in ANY_SIDE else SIDE,
            factor_sizes=factor_sizes if factor_sizes is not None and len(factor_sizes) == latents else None,
        )
    return count_weights(net)


def _discriminator_weights(latents: int, objective: FactorVAE) -> int:
    return _discriminator(latents, objective.discriminator_layers, objective.discriminator_width)


@lru_cache(maxsize=64)
def _discriminator(latents: int, layers: int, width: int) -> int:
    with torch.device("meta"):
        return count_weights(build_discriminator(latents, layers, width))


@lru_cache(maxsize=64)
def _pair_weights(objective: InfoGAN, channels: int) -> int:
    known: Any = objective  # a subclass that recipes take
    return count_weights(
        pair_of(Recipe(known, architecture="kim", latents=objective.codes), objective, channels)
    )


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
    known = Recipe(architecture=architecture, latents=latents)  # type: ignore[arg-type]
    network = network_for(known, channels)
    plan = Plan(network, Layout(network), batch_size, precision, bits)
    if adversarial:
        plan.second()
    found = sum(buffer.size * buffer.dtype.itemsize for buffer in plan.buffers.values())
    if seam:  # gradients at the latents, and what led to them
        found += 16 * batch_size * batch_size * latents * _FLOAT
    return found
