"""The ops and losses as modules, for training loops of your own.

None has weights but the discriminator that :class:`TotalCorrelationDiscriminatorLoss` is given. Latents may come as
networks give them: ``[B, D]``, ``[B, D, 1, 1]`` from a convolution, or mean and log-variance in one tensor. Losses are
float32 for half precision, so that they work under autocast; gradients come in the dtype of the inputs.
"""

import functools
from typing import Literal

import torch
from torch import Tensor, nn

from pyvae.functional import bernoulli_nll, reparameterize_kl
from pyvae.objectives.factor_vae import FactorVAE
from pyvae.objectives.tc_vae import Decomposition, decompose_kl


class BernoulliNLL(nn.Module):
    """:func:`pyvae.bernoulli_nll` with its options set: from logits, summed over pixels, in nats.

    >>> import torch
    >>> loss = BernoulliNLL()(torch.zeros(2, 1, 8, 8), torch.ones(2, 1, 8, 8))
    >>> round(float(loss), 3)
    44.361
    """

    def __init__(
        self, *, reduction: str = "batchmean", event_dims: int | None = None, target_max: int | None = None
    ) -> None:
        super().__init__()
        self.reduction = reduction
        self.event_dims = event_dims
        self.target_max = target_max

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """See :func:`pyvae.bernoulli_nll`."""
        return bernoulli_nll(
            logits, target, reduction=self.reduction, event_dims=self.event_dims, target_max=self.target_max
        )

    def extra_repr(self) -> str:
        return f"reduction={self.reduction!r}, event_dims={self.event_dims}, target_max={self.target_max}"


class ReparameterizeKL(nn.Module):
    """:func:`pyvae.reparameterize_kl` for latents in the shapes that encoders give.

    It samples in eval mode too: for the mean, take the mean.

    >>> import torch
    >>> z, kl = ReparameterizeKL()(torch.zeros(3, 2 * 4, 1, 1))  # mean and log-variance in halves
    >>> list(z.shape), list(kl.shape)
    ([3, 4, 1, 1], [4])
    """

    def forward(
        self, mu: Tensor, logvar: Tensor | None = None, *, key: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """A sample of the posteriors, and their KL to the prior N(0, I).

        Args:
            mu: means ``[..., B, D]`` or ``[B, D, 1, 1]``; without ``logvar`` both, ``[..., B, 2 D]`` or
                ``[B, 2 D, 1, 1]``, the means in the first half.
            logvar: log-variances, of the shape of ``mu``.
            key: (seed, step) of the noise; None: drawn from torch's generator.

        Returns:
            z of the shape of the means and the wider of their dtypes, and the KL ``[..., D]`` of each latent in nats,
            averaged over the batch: add ``kl.sum()`` to the loss.

        Raises:
            TypeError: wrong dtype. ValueError: wrong shape, or an odd number of columns to halve.
        """
        if logvar is None:
            mu, logvar = _halves(mu)
        shape = mu.shape
        mu, logvar = _alike(mu, logvar)
        z, kl = reparameterize_kl(_flat(mu), _flat(logvar), key=key)
        return z.view(shape), kl


class KLDecomposition(nn.Module):
    """Mutual information, total correlation and dimension-wise KL of Chen et al. 2018 ("Isolating sources of
    disentanglement in VAEs", equation 2), for ``recon + alpha mi + beta tc + gamma dwkl``.

    See :class:`pyvae.objectives.TCVAE` for the constant that minibatch weights leave in the last two.

    Args:
        dataset_size: N, images in the training set; not the number of batches.
        weighting: "mws" or "mss", see :func:`pyvae.aggregate_log_density`.
    """

    def __init__(self, dataset_size: int, *, weighting: Literal["mws", "mss"] = "mws") -> None:
        super().__init__()
        self.dataset_size = dataset_size
        self.weighting = weighting

    def forward(self, z: Tensor, mu: Tensor, logvar: Tensor) -> Decomposition:
        """Each term ``[...]`` in nats; they sum to the batch's estimate of the KL.

        Args:
            z: samples of the posteriors, ``[..., B, D]`` or ``[B, D, 1, 1]``.
            mu, logvar: of the posteriors, of the same shape.
        """
        z, mu, logvar = _alike(_flat(z), _flat(mu), _flat(logvar))
        return decompose_kl(z, mu, logvar, dataset_size=self.dataset_size, weighting=self.weighting)

    def extra_repr(self) -> str:
        return f"dataset_size={self.dataset_size}, weighting={self.weighting!r}"


class TotalCorrelationDiscriminatorLoss(nn.Module):
    """The two losses of FactorVAE (Kim & Mnih 2018, algorithm 2) around a discriminator.

    :meth:`forward` is for the VAE: its gradient reaches z and never the discriminator. :meth:`discriminator_loss` is
    for the discriminator: its gradient never reaches the VAE. So there is nothing to detach, to retain or to zero in
    between, and either may be called first.

    Args:
        discriminator: from ``[B, D]`` to two logits, class 0 for q(z), class 1 for permuted codes; None:
            the paper's, for this many ``latents``. Make its optimiser from ``loss.parameters()``: the paper's is Adam
            with learning rate 1e-4 and betas (0.5, 0.9).
        latents: D, for the paper's discriminator.
    """

    def __init__(self, discriminator: nn.Module | None = None, *, latents: int | None = None) -> None:
        super().__init__()
        if (discriminator is None) == (latents is None):
            raise ValueError("give a discriminator, or the number of latents for that of the paper")
        self.discriminator = (
            FactorVAE().discriminator(latents or 0) if discriminator is None else discriminator
        )

    def forward(self, z: Tensor) -> Tensor:
        """Total correlation in nats, the mean log-odds of ``z [B, D]`` or ``[B, D, 1, 1]``, to weigh with gamma."""
        return FactorVAE.total_correlation(self.discriminator, _flat(z)).float()

    def discriminator_loss(
        self, z: Tensor, second: Tensor | None = None, *, key: Tensor | None = None
    ) -> Tensor:
        """Cross-entropy in nats of telling codes from permuted codes.

        Args:
            z: codes ``[B, D]`` or ``[B, D, 1, 1]``.
            second: codes of an independent batch, as the paper has it, to be permuted; None: the other half of ``z``
                (each half then serves once).
            key: (seed, step) of the permutation; None: drawn from torch's generator.
        """
        z = _flat(z).detach()
        if second is None:
            half = len(z) // 2
            z, second = z[:half], z[half : 2 * half]
        z, second = _alike(z, _flat(second))
        return FactorVAE.discriminator_loss(self.discriminator, z, second, key)


def _halves(both: Tensor) -> tuple[Tensor, Tensor]:
    dim = 1 if _is_map(both) else -1
    if both.shape[dim] % 2:
        raise ValueError(
            f"mu: {both.shape[dim]} columns cannot be halved: give logvar, or mean and log-variance in one"
        )
    mu, logvar = both.chunk(2, dim)
    return mu, logvar


def _alike(*tensors: Tensor) -> tuple[Tensor, ...]:
    """In the widest of their dtypes: autocast gives float32 behind a softplus or a log, half precision elsewhere."""
    dtype = functools.reduce(torch.promote_types, (x.dtype for x in tensors))
    return tuple(x.to(dtype) for x in tensors)


def _flat(x: Tensor) -> Tensor:
    return x.flatten(1) if _is_map(x) else x


def _is_map(x: Tensor) -> bool:
    return x.ndim == 4 and x.shape[2:] == (1, 1)
