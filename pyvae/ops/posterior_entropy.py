"""``posterior_entropy``: entropies of the aggregate posterior, by quadrature, and by sampling to check it against."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pyvae import reference
from pyvae.backend import take
from pyvae.base.checks import check_columns, check_device, check_latents
from pyvae.base.transforms import refuse, refuse_gradients
from pyvae.reference import PosteriorEntropy

_PAIRS_AT_ONCE = 1 << 23
_LARGE, _WIDE = 1e15, 40.0


def posterior_entropy(
    mu: Tensor, logvar: Tensor, factor_sizes: Sequence[int] = (), *, nodes: int = 512, tol: float = 1e-5
) -> PosteriorEntropy:
    """Entropies of each latent under the aggregate posterior, overall and given each class of each factor.

    ``H(z_j) = -∫ q(z_j) ln q(z_j) dz_j`` with ``q(z_j) = 1/N sum_n N(z_j; mu_nj, exp(logvar_nj))``, and likewise
    ``H(z_j | v_f = c)`` with the mean over the images of that class. Chen et al. 2018, "Isolating sources of
    disentanglement in VAEs", estimate these from samples (:func:`sampled_entropy`); here each is a one-dimensional
    integral by the trapezoidal rule, whose error on smooth densities falls faster than any power of the step. One pass
    of exponentials serves all of them, since the images stand in the order of their factors.

    Args:
        mu: ``[N, D]`` of the full grid of the factors, the last of them running fastest.
        logvar: log sigma^2, of the shape, dtype and device of ``mu``.
        factor_sizes: number of classes of each factor; their product is N. Without any, N posteriors in any order have
            their marginal entropies alone.
        nodes: of the first grid, at least 4. It spans all posteriors to 8 standard deviations.
        tol: nats. The nodes of a latent are doubled until its error is at most this. Posteriors too sharp for 65,536 of
            them have grids where they lie, which takes a minute for each latent of dSprites: however sharp they are,
            the entropies are right, that of N that lie apart log N and one's own.

    Returns:
        in nats, float64: ``marginal [D]``; ``conditional``, for each factor ``[D, size]``; ``error [D]``, the
        largest difference of these entropies to those from every other node, or of a density's mass to 1.

    Raises:
        TypeError: wrong dtype. ValueError: wrong shape, device or option; NaN or infinity; a ``tol`` that is not
            reached; posteriors among others 1e15 times as wide.
        RuntimeError: inside a transform of torch that has no values or asks for derivatives.

    >>> import torch
    >>> entropy = posterior_entropy(torch.zeros(4, 1), torch.zeros(4, 1), (2, 2))
    >>> round(float(entropy.marginal[0]), 4), [list(c.shape) for c in entropy.conditional]
    (1.4189, [[1, 2], [1, 2]])
    """
    refuse("posterior_entropy", mu, logvar)
    refuse_gradients("posterior_entropy", mu, logvar)
    reference.check_posteriors(mu, logvar, factor_sizes, nodes, tol)
    if take("posterior_entropy", mu) == "reference":
        return reference.refined_entropy(reference.posterior_density, mu, logvar, factor_sizes, nodes, tol)
    density = torch.ops.pyvae_native.posterior_density
    return reference.refined_entropy(density, mu.float(), logvar.float(), factor_sizes, nodes, tol)


def sampled_entropy(
    z: Tensor, mu: Tensor, logvar: Tensor, *, chunk: int | None = None
) -> tuple[Tensor, Tensor]:
    """Entropy of each latent under a mixture of posteriors, from samples of it (Chen et al. 2018).

    ``-1/S sum_s ln 1/N sum_n N(z_sj; mu_nj, exp(logvar_nj))``, streamed over the posteriors; S N D exponentials.

    Args:
        z: samples ``[S, D]``, at least 2 for a standard error.
        mu: ``[N, D]``.
        logvar: log sigma^2, of the shape of ``mu``.
        chunk: posteriors at a time; by default as many as make 8M pairs with the samples.

    Returns:
        entropy and its standard error, float64 ``[D]``, in nats. Terms are computed in float32, in float64 for float64
        and where float32 would overflow.

    Raises:
        TypeError: wrong dtype. ValueError: wrong shape or device; NaN or infinity, log-variances beyond 100 either way.
    """
    check_columns("z", z)
    check_latents(mu, logvar)
    check_device("z", z, "mu", mu)
    if z.ndim != 2 or len(z) < 1 or z.shape[1] != mu.shape[-1]:
        raise ValueError(f"z: expected [samples, {mu.shape[-1]}], got {list(z.shape)}")
    if mu.ndim != 2 or len(mu) < 1:
        raise ValueError(f"mu: expected [N, D] with N at least 1, got {list(mu.shape)}")
    reference.check_magnitudes(mu, logvar)
    if not bool(torch.isfinite(z).all()):
        raise ValueError("z: holds NaN or infinity")
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk: expected at least 1, got {chunk}")
    chunk = chunk or max(1, _PAIRS_AT_ONCE // z.numel())
    # a square overflows float32, and so does a precision
    extreme = bool((mu.abs() > _LARGE).any() | (logvar.abs() > _WIDE).any())
    dtype = torch.float64 if mu.dtype == torch.float64 or extreme else torch.float32
    x = z.to(dtype).unsqueeze(1)
    log_q = torch.full(z.shape, -math.inf, dtype=torch.float64, device=z.device)
    for m, lv in zip(mu.to(dtype).split(chunk), logvar.to(dtype).split(chunk), strict=True):
        log_density = -0.5 * ((x - m).square() * torch.exp(-lv) + lv + math.log(2 * math.pi))
        log_q = torch.logaddexp(log_q, torch.logsumexp(log_density, 1).double())
    surprise = math.log(len(mu)) - log_q
    return surprise.mean(0), surprise.std(0) / math.sqrt(len(z))
