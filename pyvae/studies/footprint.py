"""What a model of a recipe takes: bytes on the disk, and bytes of a device where members stand side by side.

Counted from shapes alone; no network is filled, and what models share is counted once.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import torch

from pyvae.base.source import Source
from pyvae.data.dataset import Dataset, FactorDataset
from pyvae.engine.fused import room
from pyvae.engine.fused.room import discriminator_weights, fields_of
from pyvae.engine.pair import pair_of
from pyvae.engine.recipe import Recipe
from pyvae.nets import SIDE, build, count_weights, takes_any_side
from pyvae.objectives import FactorVAE, InfoGAN

KEPT = 2
"""Checkpoints that a run keeps."""
_HEADER = 16 << 10
"""Of a checkpoint's file, before its tensors."""
_SMALL_FILES = 64 << 10
"""recipe.json, metrics.json and the like."""
_CSV_VALUE = 12
_EVENT_VALUE, _EVENT = 20, 45
_FLOAT = 4


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
    row = fields_of(recipe) * (_CSV_VALUE + _EVENT_VALUE) + _EVENT
    return saved * checkpoint_bytes(recipe, images) + rows * row + _SMALL_FILES


def checkpoint_bytes(recipe: Recipe, images: Images) -> int:
    """Bytes of a checkpoint: weights and what the optimisers remember of each, all float32."""
    adversary = 0
    if isinstance(recipe.objective, FactorVAE):
        adversary = discriminator_weights(recipe.latents, recipe.objective)
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
    return room.member_bytes(recipe, images.channels, images.bits)


@lru_cache(maxsize=256)
def _weights(
    architecture: str | Source, channels: int, latents: int, side: int, factor_sizes: tuple[int, ...] | None
) -> int:
    # a user's own function may read what it makes
    with torch.device("cpu" if isinstance(architecture, Source) else "meta"):
        net = build(
            architecture,
            channels,
            latents,
            side=side if takes_any_side(architecture) else SIDE,
            factor_sizes=factor_sizes if factor_sizes is not None and len(factor_sizes) == latents else None,
        )
    return count_weights(net)


@lru_cache(maxsize=64)
def _pair_weights(objective: InfoGAN, channels: int) -> int:
    known: Any = objective  # a subclass that recipes take
    return count_weights(
        pair_of(Recipe(known, architecture="kim", latents=objective.codes), objective, channels)
    )
