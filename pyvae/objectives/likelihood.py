"""The likelihood of images given a decoder's output."""

from typing import Literal

import torch
from torch import Tensor

from pyvae.functional import bernoulli_nll

Likelihood = Literal["bernoulli", "gaussian"]


def image_nll(
    likelihood: Likelihood,
    logits: Tensor,
    images: Tensor,
    *,
    target: Tensor | None = None,
    target_max: int | None = None,
    reduction: Literal["batchmean", "sum"] = "batchmean",
) -> Tensor:
    """Negative log-likelihood of images in nats, summed over pixels.

    Args:
        likelihood: "bernoulli" of the logits; or "gaussian" of mean sigmoid(logits) and variance 1, without its
            constant, ``1/2 ||sigmoid(logits) - x||^2``.
        logits: ``[B, C, H, W]``.
        images: ``[B, C, H, W]`` in [0, 1].
        target: the same images as :func:`pyvae.bernoulli_nll` takes them, with ``target_max``; ``None``: images.
        reduction: "batchmean" or "sum" over the batch.

    Returns:
        float32 ``[]``.
    """
    if likelihood == "bernoulli":
        target = images if target is None else target
        return bernoulli_nll(logits, target, target_max=target_max, reduction=reduction)
    total = 0.5 * (torch.sigmoid(logits.float()) - images).square().sum()
    return total / len(images) if reduction == "batchmean" else total
