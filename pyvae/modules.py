"""The ops and losses as modules, for training loops of your own; for networks of your own, :func:`fuse_convolutions`.

No module has weights but the discriminator that :class:`TotalCorrelationDiscriminatorLoss` is given. Losses are float32
for half precision, so that they work under autocast; gradients come in the dtype of the inputs.

Latents may come as networks give them, and their rank says what they are, in every module:

* ``[B, D]``: D latents of each image.
* ``[members, B, D]``: the same of independent models side by side.
* ``[B, D, H, W]``: maps, whose channels are the latents; each position of a channel is a number of the code, so the
  KL of an image is summed over D, H and W, and averaged over B alone. ``[B, D, 1, 1]`` gives what ``[B, D]`` does.
* Any other rank, or another meaning: say ``event_dims``, how many trailing dimensions are the code of one image, the
  latents first: 1 for ``[..., B, D]``, 2 for ``[..., B, D, length]``, 3 for ``[..., B, D, H, W]``.

The functions know no maps: there, latents are ``[..., B, D]`` whatever the rank.
"""

import functools
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from pyvae.base.checks import check_float
from pyvae.functional import bernoulli_nll, reparameterize_kl
from pyvae.nets.layers import take_sequences
from pyvae.objectives.factor_vae import FactorVAE
from pyvae.objectives.tc_vae import Decomposition, decompose_kl

Net = TypeVar("Net", bound=nn.Module)


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

    Args:
        event_dims: how many trailing dimensions are the code of one image; None: the rank says it, see
            :mod:`pyvae.modules`.

    >>> import torch
    >>> z, kl = ReparameterizeKL()(torch.zeros(3, 2 * 4, 8, 8))  # mean and log-variance in halves
    >>> list(z.shape), list(kl.shape)
    ([3, 4, 8, 8], [4])
    """

    def __init__(self, *, event_dims: int | None = None) -> None:
        super().__init__()
        self.event_dims = _check_event_dims(event_dims)

    def forward(
        self, mu: Tensor, logvar: Tensor | None = None, *, key: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """A sample of the posteriors, and their KL to the prior N(0, I).

        Args:
            mu: means, ``[B, D]``, ``[members, B, D]``, ``[B, D, H, W]`` or what ``event_dims`` says; without
                ``logvar`` both, of 2 D latents, the means in the first half of them.
            logvar: log-variances, of the shape of ``mu``.
            key: (seed, step) of the noise; None: drawn from torch's generator.

        Returns:
            z of the shape of the means and the wider of their dtypes, and the KL ``[..., D]`` of each latent in nats,
            summed over the positions of a map and averaged over the batch: add ``kl.sum()`` to the loss.

        Raises:
            TypeError: wrong dtype. ValueError: wrong shape, or an odd number of latents to halve.
        """
        check_float("mu", mu)
        event_dims = _event_dims("mu", mu, self.event_dims)
        if logvar is None:
            mu, logvar = _halves(mu, event_dims)
        shape = mu.shape
        means, log_variances = _codes(self.event_dims, mu=mu, logvar=logvar)
        z, kl = reparameterize_kl(means, log_variances, key=key)
        latents = shape[-event_dims]
        if event_dims > 1:
            kl = kl.reshape(*kl.shape[:-1], latents, -1).sum(-1)
        return z.reshape(shape), kl

    def extra_repr(self) -> str:
        return f"event_dims={self.event_dims}"


class KLDecomposition(nn.Module):
    """Mutual information, total correlation and dimension-wise KL of Chen et al. 2018 ("Isolating sources of
    disentanglement in VAEs", equation 2), for ``recon + alpha mi + beta tc + gamma dwkl``.

    See :class:`pyvae.objectives.TCVAE` for the constant that minibatch weights leave in the last two.

    Args:
        dataset_size: N, images in the training set; not the number of batches.
        weighting: "mws" or "mss", see :func:`pyvae.aggregate_log_density`.
        event_dims: how many trailing dimensions are the code of one image; None: the rank says it, see
            :mod:`pyvae.modules`. Of maps, each position of each channel is a dimension of the decomposition.
    """

    def __init__(
        self,
        dataset_size: int,
        *,
        weighting: Literal["mws", "mss"] = "mws",
        event_dims: int | None = None,
    ) -> None:
        super().__init__()
        self.dataset_size = dataset_size
        self.weighting = weighting
        self.event_dims = _check_event_dims(event_dims)

    def forward(self, z: Tensor, mu: Tensor, logvar: Tensor) -> Decomposition:
        """Each term ``[...]`` in nats; they sum to the batch's estimate of the KL.

        Args:
            z: samples of the posteriors, ``[B, D]``, ``[members, B, D]``, ``[B, D, H, W]`` or what ``event_dims`` says.
            mu, logvar: of the posteriors, of the same shape.
        """
        z, mu, logvar = _codes(self.event_dims, z=z, mu=mu, logvar=logvar)
        return decompose_kl(z, mu, logvar, dataset_size=self.dataset_size, weighting=self.weighting)

    def extra_repr(self) -> str:
        return f"dataset_size={self.dataset_size}, weighting={self.weighting!r}, event_dims={self.event_dims}"


class TotalCorrelationDiscriminatorLoss(nn.Module):
    """The two losses of FactorVAE (Kim & Mnih 2018, algorithm 2) around a discriminator.

    :meth:`forward` is for the VAE: its gradient reaches z and never the discriminator. :meth:`discriminator_loss` is
    for the discriminator: its gradient never reaches the VAE. So there is nothing to detach, to retain or to zero in
    between, and either may be called first.

    Args:
        discriminator: from ``[B, D]``, or ``[B, D * H * W]`` of maps, to two logits, class 0 for q(z), class 1 for
            permuted codes; None: the paper's, for this many ``latents``. Make its optimiser from
            ``loss.parameters()``: the paper's is Adam with learning rate 1e-4 and betas (0.5, 0.9).
        latents: D, or D * H * W of maps, for the paper's discriminator.
    """

    def __init__(self, discriminator: nn.Module | None = None, *, latents: int | None = None) -> None:
        super().__init__()
        if (discriminator is None) == (latents is None):
            raise ValueError("give a discriminator, or the number of latents for that of the paper")
        self.discriminator = (
            FactorVAE().discriminator(latents or 0) if discriminator is None else discriminator
        )

    def forward(self, z: Tensor) -> Tensor:
        """Total correlation in nats, the mean log-odds of ``z [B, D]`` or ``[B, D, H, W]``, to weigh with gamma."""
        (z,) = _of_one_batch(z=z)
        return FactorVAE.total_correlation(self.discriminator, z).float()

    def discriminator_loss(
        self, z: Tensor, second: Tensor | None = None, *, key: Tensor | None = None
    ) -> Tensor:
        """Cross-entropy in nats of telling codes from permuted codes.

        Args:
            z: codes ``[B, D]`` or ``[B, D, H, W]``.
            second: codes of an independent batch, as the paper has it, to be permuted; None: the other half of ``z``
                (each half then serves once).
            key: (seed, step) of the permutation; None: drawn from torch's generator.

        Raises:
            TypeError: wrong dtype. ValueError: wrong shape.
        """
        if second is None:
            half = len(z) // 2
            z, second = z[:half], z[half : 2 * half]
        z, second = _of_one_batch(z=z.detach(), second=second)
        return FactorVAE.discriminator_loss(self.discriminator, z, second, key)


def fuse_convolutions(net: Net) -> Net:
    """Let pyvae compute a network's convolutions on a CPU, with the ReLU or leaky ReLU behind them.

    Each plain nn.Sequential that holds such a convolution becomes a :class:`pyvae.nets.layers.Layers`, in place: the
    same children, weights, names in the state_dict, hooks and training mode, and the same results within rounding.
    Whatever pyvae does not take goes to torch as before; ``pyvae doctor`` says what this processor takes. On a GPU
    with Triton, bias and activation join the product before them. torch.jit.script does not take such a network;
    trace it.

    The convolutions are those of the published networks: Conv2d and ConvTranspose2d of 4 x 4, stride 2, padding 1,
    between 32 and 64 channels, or between those and images of 1 or 3; 2 x 2 of stride 2 between 32 and 64; and in a row
    with those, any that takes a whole map to 1 x 1, or 1 x 1 to a whole map. In such a row, pyvae computes nn.Linear
    between rows of numbers too, with nn.Flatten and nn.Unflatten beside it; not in bfloat16.

    It pays where such layers follow one another, about twofold. Maps have channels last within such a row: where
    other layers stand between, give the network that memory order, ``net.to(memory_format=torch.channels_last)``, else
    turning maps at both ends of every row can take longer than is won.

    Args:
        net: any module, float32; changed in place. Subclasses of nn.Sequential and of its layers are left alone.

    Returns:
        ``net``.

    Raises:
        TypeError: net is no module. ValueError: no plain nn.Sequential in it holds such a convolution.

    >>> import torch
    >>> from torch import nn
    >>> encoder = nn.Sequential(nn.Conv2d(1, 32, 4, 2, 1), nn.ReLU(), nn.Conv2d(32, 64, 4, 2, 1), nn.ReLU())
    >>> list(fuse_convolutions(encoder)(torch.zeros(2, 1, 64, 64)).shape)
    [2, 64, 16, 16]
    """
    if not isinstance(net, nn.Module):
        raise TypeError(f"net: expected a torch.nn.Module, got {type(net).__name__}")
    if not take_sequences(net):
        raise ValueError(
            f"net: no plain nn.Sequential in this {type(net).__name__} holds a convolution that pyvae computes: "
            "4 x 4 of stride 2 and padding 1, or 2 x 2 of stride 2, between 32, 64 or the image's 1 or 3 channels; "
            "subclasses, and layers with hooks or parametrisations, are torch's: put plain layers into an "
            "nn.Sequential(*layers)"
        )
    return net


def _check_event_dims(event_dims: int | None) -> int | None:
    if event_dims is not None and (type(event_dims) is not int or event_dims < 1):
        raise ValueError(f"event_dims: expected an integer of at least 1, the latents, got {event_dims!r}")
    return event_dims


def _event_dims(name: str, x: Tensor, asked: int | None) -> int:
    """How many trailing dimensions of ``x`` are the code of one image."""
    known = {2: 1, 3: 1, 4: 3}.get(x.ndim) if asked is None else asked
    if known is None:
        raise ValueError(
            f"{name}: expected [B, D], [members, B, D] or [B, D, H, W], got {list(x.shape)}: "
            "say event_dims, how many trailing dimensions are the code of one image"
        )
    if x.ndim <= known:
        raise ValueError(f"{name}: event_dims={known} leaves no batch dimension in shape {list(x.shape)}")
    return known


def _of_one_batch(**tensors: Tensor) -> tuple[Tensor, ...]:
    codes = _codes(None, **tensors)
    if codes[0].ndim != 2:
        raise ValueError(
            f"z: expected [B, D] or [B, D, H, W], got {list(codes[0].shape)}: call it for each member"
        )
    return codes


def _halves(both: Tensor, event_dims: int) -> tuple[Tensor, Tensor]:
    latents = both.shape[-event_dims]
    if latents % 2:
        raise ValueError(
            f"mu: {latents} latents of shape {list(both.shape)} cannot be halved: give logvar, or mean and "
            "log-variance in one"
        )
    mu, logvar = both.chunk(2, -event_dims)
    return mu, logvar


def _codes(asked: int | None, **tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors of one shape as ``[..., B, D]``, in the widest of their dtypes: autocast gives float32 behind a softplus
    or a log, half precision elsewhere."""
    for name, x in tensors.items():
        check_float(name, x)
    if asked is None:
        tensors = {name: x.flatten(1) if _is_point(x) else x for name, x in tensors.items()}
    (name, first), *others = tensors.items()
    event_dims = _event_dims(name, first, asked)
    for other, x in others:
        # before maps are flattened, which would take [B, D, W, H] for [B, D, H, W]
        if x.shape != first.shape:
            raise ValueError(
                f"{other}: expected the shape of {name} {list(first.shape)}, got {list(x.shape)}"
            )
    dtype = functools.reduce(torch.promote_types, (x.dtype for x in tensors.values()))
    return tuple(x.to(dtype).flatten(-event_dims) for x in tensors.values())


def _is_point(x: Tensor) -> bool:
    return x.ndim == 4 and x.shape[2:] == (1, 1)
