"""Which training the fused engine takes, and why not."""

import logging
from dataclasses import replace
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from pyvae.backend import takes_triton, wanted_backend
from pyvae.base.source import Source
from pyvae.data.dataset import Dataset
from pyvae.engine.batches import fitting
from pyvae.engine.fused.launch import Operands, Options
from pyvae.engine.fused.network import Network, UnknownNetworkError, network_of
from pyvae.engine.recipe import Recipe
from pyvae.errors import RecipeError
from pyvae.nets import ANY_SIDE, build
from pyvae.objectives import ImportanceWeighted, InfoGAN

_LOG = logging.getLogger(__name__)
_OF_TORCH = "precision fp32 is torch's"
MOST_IMAGES = 1024
MOST_LATENTS = 64
OLDEST = (8, 0)
"""Compute capability whose tensor cores take all operands."""
PROVEN: dict[str, dict[Operands, Options]] = {
    # rates of bf16 and TF32 by descriptors are not known, and early launches save less than the rule asks
    "NVIDIA H100 80GB HBM3": {"fp16": Options(descriptors=True), "bf16": Options(), "tf32": Options()},
}
"""Cards, by the names that torch has for them, and the operands for which results in benchmarks/results say that this
engine agrees with float64 there and is faster than torch's, so that "auto" takes it; and the plan's options that agree
and pay."""


def supports(recipe: Recipe, dataset: Dataset, device: torch.device) -> str | None:
    """Why the fused engine cannot train a recipe on this data and device; None if it can."""
    if (lacking := lacks(device)) is not None:
        return lacking
    if recipe.sources:
        return f"{recipe.sources[0]} is of your own, and has no kernels"
    if isinstance(recipe.objective, InfoGAN):
        return "a generator and its critic have no kernels of their own"
    if isinstance(recipe.objective, ImportanceWeighted):
        return "importance-weighted objectives have no kernels of their own"
    if recipe.precision == "fp32":
        return _OF_TORCH
    for name, only in (
        ("code", "encoder"),
        ("likelihood", "bernoulli"),
        ("optimizer", "adam"),
        ("binarise", "none"),
    ):
        if getattr(recipe, name) != only:
            return f"{name} {getattr(recipe, name)}: it knows {only} alone"
    if recipe.batch_size > MOST_IMAGES:
        return f"batch_size {recipe.batch_size:,}: it takes {MOST_IMAGES:,} images at most"
    if recipe.latents > MOST_LATENTS:
        return f"latents {recipe.latents:,}: it takes {MOST_LATENTS} at most"
    try:
        network_for(recipe, dataset.image_shape[0])
    except UnknownNetworkError as error:
        return f"architecture {recipe.architecture}: {error}"
    if dataset.bits is None and (dataset.pixels is None or dataset.pixels.dtype != torch.uint8):
        return "its images are neither bits nor bytes in memory"
    return None if fitting(dataset, device) is not None else "the images do not fit into the device's memory"


def options_on(device: torch.device, operands: Operands) -> Options:
    """The plan's options for a device: none that no result there bears out."""
    return proven_on(device).get(operands, Options())


def proven_on(device: torch.device) -> dict[Operands, Options]:
    """What :data:`PROVEN` says of a device."""
    return PROVEN.get(torch.cuda.get_device_name(device), {}) if device.type == "cuda" else {}


def lacks(device: torch.device) -> str | None:
    """What a device lacks to run the kernels; None where they run."""
    if wanted_backend() == "reference":
        return "PYVAE_BACKEND=reference asks for plain torch"
    if not takes_triton(device):
        return "it needs an NVIDIA GPU and Triton"
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < OLDEST:
        return f"it needs compute capability {OLDEST[0]}.{OLDEST[1]} or newer"
    return None


def network_for(recipe: Recipe, channels: int) -> Network:
    """The network of a recipe, for the kernels.

    Raises:
        UnknownNetworkError: it has none.
    """
    if isinstance(recipe.architecture, Source):
        raise UnknownNetworkError("it is of your own")
    if recipe.architecture in ANY_SIDE:
        raise UnknownNetworkError("it has no convolutions")
    with torch.device("meta"):
        return network_of(build(recipe.architecture, channels, recipe.latents))


def store_of(dataset: Dataset, device: torch.device) -> Tensor:
    """The images on the device, as kernels read them: int64 ``[N, 64]`` of bits or uint8 ``[N, C * 4096]`` of bytes."""
    store = fitting(dataset, device)
    if store is None:
        raise ValueError("dataset: its images do not fit into the device's memory; see supports")
    store = store.to(device).contiguous()
    return store.view(torch.int64) if dataset.bits is not None else store.flatten(1)


def settled(
    recipe: Recipe, dataset: Dataset, device: torch.device, *, compile: bool = False, begun: str | None = None
) -> Recipe:
    """The recipe with the engine that trains it: "torch" or "fused", never "auto".

    Args:
        compile: whether the networks go through torch.compile.
        begun: the engine of the checkpoint that is gone on with, if there is one; "auto" takes it.

    Raises:
        RecipeError: the fused engine is asked for and cannot train this; the message says why.
    """
    engine = recipe.engine
    if engine == "auto" and begun is not None:
        engine = begun  # type: ignore[assignment]
    if engine == "torch" and recipe.precision != "fp16":
        return replace(recipe, engine="torch")
    reason = "--compile is of the torch engine" if compile else supports(recipe, dataset, device)
    if engine == "auto":
        engine = _chosen(recipe, device, reason)
    if engine == "fused" and reason is not None:
        if begun == "fused":  # no other engine may go on with it
            raise RecipeError(f"the fused engine began this run, and cannot go on with it here: {reason}")
        told = "precision fp16" if recipe.engine != "fused" else "engine fused"
        remedy = "--precision fp16, or --engine torch" if reason == _OF_TORCH else "--engine torch"
        if recipe.precision == "fp16":
            remedy += " --precision tf32"
        raise RecipeError(f"{told}: {reason}: {remedy}")
    return replace(recipe, engine=engine)


def _chosen(recipe: Recipe, device: torch.device, reason: str | None) -> Literal["torch", "fused"]:
    if recipe.precision == "fp16":  # of the fused engine alone
        return "fused"
    proven = proven_on(device)
    if proven and reason is not None:
        _say(reason)
        return "torch"
    return "fused" if recipe.precision in proven else "torch"


@lru_cache(maxsize=64)
def _say(reason: str) -> None:
    _LOG.info("engine torch, since the fused one cannot train this: %s", reason)
