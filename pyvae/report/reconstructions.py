"""Inputs and what the network makes of them."""

from pathlib import Path

import torch

from pyvae.data.dataset import Dataset
from pyvae.data.subset import subset
from pyvae.engine.run import RunDirectory
from pyvae.evaluation.averages import posterior
from pyvae.nets import Autoencoder
from pyvae.report.figures import draw_reconstructions, save

_IMAGES = 20
ALT = f"{_IMAGES} images in rows, below each row what the network makes of them"
CAPTION = "Inputs above the means of their reconstructions."


@torch.inference_mode()
def draw(run: RunDirectory, net: Autoencoder, dataset: Dataset) -> Path:
    """Write ``figures/reconstructions.png``: images of a fixed subset, each decoded from its posterior mean."""
    index = subset(dataset, _IMAGES)
    mu, _ = posterior(net, dataset, index)
    means = torch.sigmoid(net.decoder(mu))
    return save(draw_reconstructions(dataset.images(index), means), run.figures / "reconstructions.png")
