"""The marginal likelihood of images, by importance samples that are drawn and weighed a few at a time."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pyvae.base.allocator import keep_large_buffers
from pyvae.base.progress import bar_class
from pyvae.functional import importance_log_weight
from pyvae.nets import Autoencoder
from pyvae.objectives.importance import sample_posterior
from pyvae.random import Stream, make_key

GROUP = 64
"""Samples inside the logarithm of IWAE-64, which are also those that are held at a time."""
ACTIVE = 0.01
"""Variance of its posterior mean over the images from which a latent counts as active: Burda et al. 2016, section 5."""
_ROWS = {"cpu": 1024, "cuda": 16384}


class MarginalLikelihood(NamedTuple):
    """Float64 ``[N]``, one for each image."""

    elbo: Tensor
    """log w in nats, averaged over all samples."""
    iwae: Tensor
    """IWAE-64 in nats: log mean w of ``GROUP`` samples, averaged over as many whole groups as there are."""
    log_p: Tensor
    """log mean w of all samples in nats, which estimates log p(x) from below."""
    effective_sample_size: Tensor
    """(sum w)^2 / sum w^2, from 1 to the number of samples."""


def estimate(
    mu: Tensor,
    logvar: Tensor,
    target: Tensor,
    decode: Callable[[Tensor], Tensor],
    samples: int,
    key: Tensor,
) -> MarginalLikelihood:
    """Estimate log p(x) of a batch by K samples of its posteriors (Burda et al. 2016, section 5).

    Sums of weights are kept as logarithms and brought up to date with ``GROUP`` samples at a time, so K costs time and
    no memory. Sample k of an image is row k % 64 of its key, whose step has k // 64 added to its upper half: what an
    image draws does not depend on the batch around it.

    Args:
        mu: ``[B, D]``, float32 or float64.
        logvar: log sigma^2, of the shape of ``mu``.
        target: the images ``[B, *image]``, 0 or 1, float or bool.
        decode: ``z [B * n, D]`` to Bernoulli logits ``[B * n, *image]``.
        samples: K, at least ``GROUP``.
        key: int64 ``[B, 2]``, one for each image, with steps below 2^32.

    Raises:
        ValueError: fewer samples than ``GROUP``, or wrong shapes.
    """
    if samples < GROUP:
        raise ValueError(f"samples: IWAE-{GROUP} needs at least {GROUP}, got {samples}")
    # an image is an ensemble member of one, which may have a key of its own
    mu, logvar, target = (x.unsqueeze(1) for x in (mu, logvar, target))
    log_sum = torch.full(mu.shape[:1], -math.inf, dtype=torch.float64, device=mu.device)
    log_sum_of_squares = log_sum.clone()
    elbo, iwae = torch.zeros_like(log_sum), torch.zeros_like(log_sum)
    for group, first in enumerate(range(0, samples, GROUP)):
        count = min(GROUP, samples - first)
        own = key.clone()
        own[:, 1] += group << 32
        z, _ = sample_posterior(mu, logvar, 1, count, key=own, stream=Stream.METRIC)
        logits = decode(z.flatten(0, -2)).unflatten(0, z.shape[:-1])
        log_w = importance_log_weight(logits, target, z, mu, logvar).double().flatten(1)
        of_group = torch.logsumexp(log_w, 1)
        log_sum = torch.logaddexp(log_sum, of_group)
        log_sum_of_squares = torch.logaddexp(log_sum_of_squares, torch.logsumexp(2 * log_w, 1))
        elbo += log_w.sum(1)
        if count == GROUP:
            iwae += of_group - math.log(GROUP)
    return MarginalLikelihood(
        elbo / samples,
        iwae / (samples // GROUP),
        log_sum - math.log(samples),
        (2 * log_sum - log_sum_of_squares).exp(),
    )


@torch.inference_mode()
def marginal_likelihood(
    net: Autoencoder,
    images: Callable[[Tensor], Tensor],
    index: Tensor,
    *,
    device: torch.device,
    samples: int = 5000,
    seed: int = 0,
    progress: bool = True,
) -> tuple[MarginalLikelihood, Tensor]:
    """Estimate log p(x) of black and white images under a network.

    Args:
        net: on the device.
        images: gives the images ``[B, C, H, W]`` of an int64 index ``[B]`` on the device.
        index: int64 ``[N]``, which images.
        device: of the network.
        samples: K of each image, at least ``GROUP``.
        seed: of the noise, which is a function of it and the index of the image.
        progress: whether to show a progress bar.

    Returns:
        the estimates, and the posterior means ``[N, D]``; on the CPU.

    Raises:
        ValueError: fewer samples than ``GROUP``, or images that are not black and white, of which Bernoulli pixels
            have no likelihood.
    """
    if device.type == "cpu":
        keep_large_buffers()
    own = make_key(seed, device=device)[0]
    parts, means = [], []
    with bar_class()(total=len(index), desc="likelihood", unit="img", disable=not progress) as bar:
        for rows in index.split(_ROWS[device.type] // GROUP):
            shown = images(rows)
            check_black_and_white(shown)
            which = rows.to(device)
            mu, logvar = (x.float() for x in net.encoder(which if net.reads_factors else shown))
            key = torch.stack([own.expand_as(which), which], -1)
            parts.append(estimate(mu, logvar, shown, net.decoder, samples, key))
            means.append(mu.cpu())
            bar.update(len(rows))
    return MarginalLikelihood(*(torch.cat(x).cpu() for x in zip(*parts, strict=True))), torch.cat(means)


def check_black_and_white(images: Tensor) -> None:
    """Raise ValueError unless all pixels are 0 or 1."""
    if not bool(((images == 0) | (images == 1)).all()):
        raise ValueError(
            "grey images have no Bernoulli likelihood: train with --binarise stochastic, or on black and white ones"
        )


def active_units(means: Tensor) -> int:
    """Latents whose posterior mean ``[N, D]`` varies over the images by more than ``ACTIVE``."""
    return int((means.double().var(0, correction=0) > ACTIVE).sum())
