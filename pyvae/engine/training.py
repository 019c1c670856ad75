"""Which kind of training a recipe asks for."""

import torch

from pyvae.data.dataset import Dataset
from pyvae.engine.adversarial import AdversarialTrainer
from pyvae.engine.fused.supports import settled
from pyvae.engine.fused.trainer import FusedTrainer
from pyvae.engine.recipe import Recipe
from pyvae.engine.stepper import Stepper
from pyvae.engine.trainer import Trainer
from pyvae.objectives import InfoGAN


def training(
    recipe: Recipe,
    dataset: Dataset,
    device: torch.device,
    *,
    log_every: int = 1,
    capture: bool = True,
    compile: bool = False,
) -> Stepper:
    """The training of a recipe, before its first step, by the engine that :func:`pyvae.engine.fused.supports.settled`
    names.

    Raises:
        RecipeError: the recipe cannot be trained on this data, not with torch.compile, or not by its engine.
    """
    recipe = settled(recipe, dataset, device, compile=compile)
    if recipe.engine == "fused":
        return FusedTrainer([recipe], dataset, device, log_every=log_every, capture=capture)
    kind = AdversarialTrainer if isinstance(recipe.objective, InfoGAN) else Trainer
    return kind(recipe, dataset, device, log_every=log_every, capture=capture, compile=compile)
