"""Averages of a trained network over a fixed subset of its data set."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyvae.data.dataset import Dataset, FactorDataset
from pyvae.data.subset import subset
from pyvae.functional import reparameterize_kl
from pyvae.nets import Autoencoder
from pyvae.objectives.likelihood import Likelihood, image_nll
from pyvae.random import Stream, make_key

_BATCH = 256
_SEED = 0


class Evaluation(NamedTuple):
    """Averages over the subset, in nats per image."""

    images: int
    recon: float
    kl: list[float]
    """Of each latent."""
    dependence: list[list[float]] | None
    """eta^2 of each latent (row) and factor (column); None for data without factors."""
    std: list[float]
    """Of each latent's means over the images."""

    def to_json(self, dataset: Dataset) -> dict[str, Any]:
        """What ``metrics.json`` holds."""
        total = sum(self.kl)
        return {
            "images": self.images,
            "recon": self.recon,
            "kl": total,
            "elbo": -(self.recon + total),
            "kl_of_latents": self.kl,
            "factors": list(dataset.factor_names) if isinstance(dataset, FactorDataset) else [],
            "eta_squared": self.dependence,
        }


@torch.inference_mode()
def evaluate(net: Autoencoder, dataset: Dataset, likelihood: Likelihood = "bernoulli") -> Evaluation:
    """Reconstruction loss of one sampled z, KL of each latent, and which latent follows which factor."""
    index = subset(dataset)
    recon = torch.zeros((), dtype=torch.float64)
    kl = torch.zeros(net.latents, dtype=torch.float64)
    codes = []
    for step, chunk in enumerate(index.split(_BATCH)):
        images = dataset.images(chunk)
        mu, logvar = posterior(net, dataset, chunk)
        key = make_key(_SEED, step)
        z, divergence = reparameterize_kl(mu, logvar, key=key, stream=Stream.METRIC)
        recon += image_nll(likelihood, net.decoder(z), images, reduction="sum").double()
        kl += divergence.double() * len(chunk)
        codes.append(mu)
    dependence, means = None, torch.cat(codes)
    if isinstance(dataset, FactorDataset):
        dependence = correlation_ratio(means, dataset.factor_classes(index)).tolist()
    return Evaluation(
        len(index),
        float(recon) / len(index),
        (kl / len(index)).tolist(),
        dependence,
        means.double().std(0, correction=0).tolist(),
    )


def correlation_ratio(codes: Tensor, classes: Tensor) -> Tensor:
    """eta^2: the share of a code's variance that lies between the classes of a factor (Fisher's correlation ratio).

    Args:
        codes: ``[n, D]``.
        classes: int64 ``[n, F]``.

    Returns:
        float64 ``[D, F]`` in [0, 1]; 0 for a constant code.
    """
    # not total > 0: a constant's mean is rounded, which leaves some variance
    varies = codes.amax(0) > codes.amin(0)
    centred = codes.double() - codes.double().mean(0)
    total = centred.square().sum(0)
    columns = []
    for factor in classes.unbind(-1):
        count = torch.bincount(factor).double()
        sums = torch.zeros(len(count), codes.shape[1], dtype=torch.float64).index_add_(0, factor, centred)
        between = (sums.square() / count.clamp_min(1)[:, None]).sum(0)
        columns.append(torch.where(varies, between / total.clamp_min(torch.finfo(torch.float64).tiny), 0.0))
    return torch.stack(columns, -1)


def posterior(net: Autoencoder, dataset: Dataset, index: Tensor) -> tuple[Tensor, Tensor]:
    """Posterior mean and log-variance ``[B, D]`` of images int64 ``[B]``."""
    return net.encoder(index if net.reads_factors else dataset.images(index))
