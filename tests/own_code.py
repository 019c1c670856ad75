"""Networks, losses and runs of a user's own, which several tests train."""

from dataclasses import dataclass

import torch
from torch import nn

from pyvae.engine.loop import train
from pyvae.engine.recipe import Recipe
from pyvae.engine.run import RunDirectory
from tiny import Corner

CPU = torch.device("cpu")
SMALL = Recipe(architecture="rainforth", latents=3, batch_size=8, lr=1e-3, steps=4)
START = "from dataclasses import InitVar, dataclass\nimport torch\nfrom torch import nn\n"
"""Of a file that ``write`` writes."""


def trained(path, of, data=None, **options):
    run = RunDirectory.create_or_resume(path, of)
    outcome = train(run, data or Corner(), CPU, log_every=3, **options)
    assert outcome.step == of.steps
    return run


def write(path, text):
    path.write_text(START + text)
    return path


def plain(channels, latents, side):
    pixels = channels * side * side
    return nn.Sequential(nn.Flatten(), nn.Linear(pixels, 2 * latents)), nn.Sequential(
        nn.Linear(latents, pixels), nn.Unflatten(1, (channels, side, side))
    )


@dataclass(frozen=True)
class MyBeta:
    """An own copy of beta-VAE."""

    beta: float = 4.0

    def terms(self, outputs, step):
        return {"loss": outputs.recon + self.beta * outputs.kl.sum(-1), "beta": self.beta}
