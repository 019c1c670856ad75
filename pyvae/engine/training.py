"""Which kind of training a recipe asks for."""

import torch

from pyvae.data.dataset import Dataset
from pyvae.engine.adversarial import AdversarialTrainer
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
    """The training of a recipe, before its first step.

    Raises:
        RecipeError: the recipe cannot be trained on this data, or not with torch.compile.
    """
    kind = AdversarialTrainer if isinstance(recipe.objective, InfoGAN) else Trainer
    return kind(recipe, dataset, device, log_every=log_every, capture=capture, compile=compile)
