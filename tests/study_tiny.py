"""Studies of models that train in a blink, on data that any process can open."""

from dataclasses import replace

import numpy as np
import torch

from pyvae.engine.recipe import Recipe
from pyvae.objectives import BetaVAE
from pyvae.studies.plan import Model, StudyPlan
from tiny import Corner

RECIPE = Recipe(
    objective=BetaVAE(beta=2.0),
    architecture="rainforth",
    image_size=12,
    latents=3,
    batch_size=8,
    lr=1e-3,
    steps=6,
)
METRICS = ("unsupervised",)


def data_in(directory):
    """The path of Corner's images, as a file without factors."""
    data = Corner()
    images = data.images(torch.arange(len(data)))[:, 0] * 255
    path = directory / "corner.npz"
    np.savez(path, images=images.to(torch.uint8).numpy())
    return str(path)


def plan_of(data, betas=(1.0, 4.0), seeds=(0, 1), metrics=METRICS, **changes):
    models = []
    for beta in betas:
        recipe = replace(RECIPE, data=data, objective=BetaVAE(beta=beta), **changes)
        models += [
            Model(f"beta-vae/beta-{beta:g}/seed-{s}", "beta-vae", {"beta": beta}, replace(recipe, seed=s))
            for s in seeds
        ]
    return StudyPlan("A study of nothing", tuple(models), metrics=metrics, source='title = "nothing"\n')


def bits(out, model):
    """What the newest checkpoint of a model holds."""
    from pyvae.engine import checkpoint

    saved = checkpoint.load_newest(out / model / "checkpoints")
    return saved.step, {name: tensor.numpy().tobytes() for name, tensor in saved.tensors.items()}
