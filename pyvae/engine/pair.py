"""Generator and critic of a recipe."""

from pyvae.engine.recipe import Recipe
from pyvae.nets.adversarial import AdversarialPair, build_pair
from pyvae.objectives import InfoGAN


def pair_of(recipe: Recipe, objective: InfoGAN, channels: int) -> AdversarialPair:
    """The networks of a recipe, with their first weights."""
    return build_pair(
        channels,
        continuous=objective.continuous,
        categories=objective.categories,
        noise=objective.noise,
        learned_variance=objective.variance == "learned",
        batch_norm=objective.batch_norm,
        spectral_norm=objective.spectral_norm,
        init=recipe.init,
        seed=recipe.seed,
    )
