"""Importance-weighted bounds and their gradient estimators, for the objectives of pyvae.objectives.iwae.

Samples are ``[..., B, M, K]``: M is the outer average, K are the samples inside a logarithm. The gradient of every
estimator is ``sum_mk c_mk d log w_mk`` with constant coefficients c: one set for theta, the decoder's parameters, and
one for phi, the encoder's.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from pyvae.base.checks import expand_key
from pyvae.functional import reparameterize_kl
from pyvae.ops.importance_log_weight import importance_log_parts
from pyvae.random import Stream

Bound = Literal["iwae", "miwae", "piwae", "ciwae"]
Gradient = Literal["total", "stl", "dreg", "rws-dreg"]
BOUNDS = ("iwae", "miwae", "piwae", "ciwae")
GRADIENTS = ("total", "stl", "dreg", "rws-dreg")

_NEGLIGIBLE = 2.0**-40


class ImportanceBounds(NamedTuple):
    """Values in nats and constant coefficients of their gradients."""

    value: Tensor
    """``[..., B]``: the bound that theta ascends."""
    phi_value: Tensor
    """``[..., B]``: the bound that phi ascends; another one for PIWAE alone."""
    theta: Tensor
    """Coefficients ``[..., B, M, K]`` of theta."""
    phi: Tensor
    """Coefficients ``[..., B, M, K]`` of phi."""


class ImportanceSamples(NamedTuple):
    """Samples of the posteriors and their weights, of :func:`importance_samples`."""

    log_likelihood: Tensor
    """log p(x|z) ``[..., B, M, K]`` in nats."""
    log_ratio: Tensor
    """log p(z) - log q(z|x) ``[..., B, M, K]`` in nats."""
    kl: Tensor
    """KL divergence ``[..., D]`` of each latent in nats, averaged over the batch."""
    decoder_input: Tensor
    """The samples ``[..., B * M * K, D]`` as the decoder alone was given them."""
    gradient: Gradient
    """The estimator that they are for."""

    @property
    def log_weight(self) -> Tensor:
        """log w ``[..., B, M, K]`` in nats."""
        return self.log_likelihood + self.log_ratio


def sample_posterior(
    mu: Tensor,
    logvar: Tensor,
    outer: int,
    samples: int,
    *,
    key: Tensor | None = None,
    stream: Stream = Stream.POSTERIOR,
) -> tuple[Tensor, Tensor]:
    """M x K reparameterised samples of each posterior, and its KL divergence to N(0, I).

    Sample (b, m, k) draws row ``(b M + m) K + k`` of the noise.

    Args:
        mu: ``[..., B, D]``.
        logvar: log sigma^2, of the shape of ``mu``.
        outer: M.
        samples: K.
        key: of the noise, as :func:`pyvae.reparameterize_kl` takes it.
        stream: likewise.

    Returns:
        ``z [..., B, M, K, D]``, and ``kl [..., D]`` in nats, averaged over the batch.

    Raises:
        TypeError: wrong dtype. ValueError: wrong shape or device, or M or K below 1.
    """
    if outer < 1 or samples < 1:
        raise ValueError(f"outer and samples must be at least 1, got M = {outer} and K = {samples}")
    if key is not None:
        # an image counts as a member below, but must not have a key of its own
        expand_key(key, mu.shape[:-2])
    shape = (*mu.shape[:-1], outer * samples, mu.shape[-1])
    many = (x.unsqueeze(-2).expand(shape) for x in (mu, logvar))
    z, kl = reparameterize_kl(*many, key=key, stream=stream)
    return z.unflatten(-2, (outer, samples)), kl.mean(-2)


def importance_samples(
    mu: Tensor,
    logvar: Tensor,
    target: Tensor,
    decode: Callable[[Tensor], Tensor],
    outer: int,
    samples: int,
    *,
    gradient: Gradient = "total",
    key: Tensor | None = None,
    target_max: int | None = None,
) -> ImportanceSamples:
    """Sample, decode once, and weigh.

    Args:
        mu: ``[..., B, D]``.
        logvar: log sigma^2, of the shape of ``mu``.
        target: the images ``[..., B, *image]`` or their bits, as :func:`pyvae.bernoulli_nll` takes them.
        decode: ``z [..., B * M * K, D]`` to logits ``[..., B * M * K, *image]``.
        outer: M.
        samples: K.
        gradient: which estimator the samples are for.
        key: of the noise, as :func:`pyvae.reparameterize_kl` takes it.
        target_max: as :func:`pyvae.bernoulli_nll` takes it.

    Raises:
        TypeError: wrong dtype. ValueError: wrong shape, device or option.
    """
    _check("gradient", gradient, GRADIENTS)
    z, kl = sample_posterior(mu, logvar, outer, samples, key=key)
    # a node of its own: only what comes back through the decoder is rescaled, not what log q and the prior send to z
    decoder_input = z.flatten(-4, -2)
    logits = decode(decoder_input).unflatten(z.ndim - 4, z.shape[-4:-1])
    if gradient != "total":
        mu, logvar = mu.detach(), logvar.detach()
    parts = importance_log_parts(logits, target, z, mu, logvar, target_max=target_max)
    return ImportanceSamples(*parts, kl, decoder_input, gradient)


def importance_bounds(
    log_weight: Tensor, bound: Bound = "iwae", *, beta: float | None = None, gradient: Gradient = "total"
) -> ImportanceBounds:
    """A bound on log p(x), and the coefficients of its gradient estimator.

    - "iwae", Burda et al. 2016: ``log mean_mk w`` for theta and phi.
    - "miwae", Rainforth et al. 2018, "Tighter variational bounds are not necessarily better": ``mean_m log mean_k w``;
      with K = 1 the ELBO.
    - "piwae", ibid.: theta ascends "iwae", phi "miwae".
    - "ciwae", ibid.: ``beta mean_mk log w + (1 - beta) mean_m log mean_k w``.

    With v the weights normalised in their logarithm, phi's coefficients are v for "total" and for "stl" (Roeder et al.
    2017, "Sticking the landing"; biased for K > 1), v^2 for "dreg" and v - v^2 for "rws-dreg", which ascends E_p[log q]
    in place of a bound (both Tucker et al. 2019, "Doubly reparameterized gradient estimators for Monte Carlo
    objectives"). All but "total" belong to log w whose log q has constant parameters.

    Args:
        log_weight: ``[..., B, M, K]`` in nats, float32 or float64.
        bound: one of ``BOUNDS``.
        beta: of "ciwae", in [0, 1].
        gradient: one of ``GRADIENTS``; "ciwae" has no "rws-dreg".

    Raises:
        TypeError: wrong dtype: half a nat is lost in bfloat16. ValueError: wrong shape or option.
    """
    _check_bounds(log_weight, bound, beta, gradient)
    log_w = log_weight.detach()
    outer, samples = log_w.shape[-2:]
    miwae = (torch.logsumexp(log_w, -1) - math.log(samples)).mean(-1)
    inner = torch.softmax(log_w, -1)
    if bound == "miwae":
        return _bounds(miwae, inner, gradient, 1 / outer)
    if bound == "ciwae":
        b = beta or 0.0
        value = b * log_w.mean((-2, -1)) + (1 - b) * miwae
        return _bounds(value, inner, gradient, (1 - b) / outer, b / (outer * samples))
    flat = log_w.flatten(-2)
    iwae = torch.logsumexp(flat, -1) - math.log(outer * samples)
    joint = torch.softmax(flat, -1).view_as(log_w)
    if bound == "piwae":
        return ImportanceBounds(iwae, miwae, joint, _phi(inner, gradient) / outer)
    return _bounds(iwae, joint, gradient)


def _bounds(
    value: Tensor, weights: Tensor, gradient: Gradient, scale: float = 1.0, offset: float = 0.0
) -> ImportanceBounds:
    """Of one bound for theta and phi, whose coefficients are affine in what the estimator makes of the weights."""
    theta = weights * scale + offset
    phi = theta if gradient in ("total", "stl") else _phi(weights, gradient) * scale + offset
    return ImportanceBounds(value, value, theta, phi)


def importance_loss(samples: ImportanceSamples, bound: Bound, *, beta: float | None = None) -> Tensor:
    """Minus the bound, averaged over the batch; one backward pass gives theta and phi the estimator's gradients.

    A row's backward pass through the decoder is linear in its coefficient. So the rows go through it with theta's,
    which the decoder's weights see, and what arrives at its input is rescaled to phi's.

    Args:
        samples: of :func:`importance_samples`; one loss of each, since a second one would rescale twice.
        bound: one of ``BOUNDS``.
        beta: of "ciwae".

    Returns:
        ``[...]`` in nats.

    Raises:
        ValueError: as :func:`importance_bounds`.
    """
    bounds = importance_bounds(samples.log_weight, bound, beta=beta, gradient=samples.gradient)
    rows = bounds.theta
    if bounds.phi is not bounds.theta and samples.decoder_input.requires_grad:
        rows, factor = _through_decoder(bounds.theta, bounds.phi)
        factor = factor.flatten(-3).unsqueeze(-1).to(samples.decoder_input.dtype)
        samples.decoder_input.register_hook(lambda grad: grad * factor)
    weighted = rows * samples.log_likelihood + bounds.phi * samples.log_ratio
    carrier = weighted.sum((-2, -1)).mean(-1)
    return -(bounds.value.mean(-1) + (carrier - carrier.detach()))


def effective_sample_size(log_weight: Tensor) -> Tensor:
    """``(sum_k w)^2 / sum_k w^2``, from 1 to K: ``[..., K]`` in nats to ``[...]``."""
    return 1 / torch.softmax(log_weight.detach(), -1).square().sum(-1)


def _phi(weights: Tensor, gradient: Gradient) -> Tensor:
    if gradient == "dreg":
        return weights.square()
    return weights - weights.square() if gradient == "rws-dreg" else weights


def _through_decoder(theta: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]:
    """Coefficients of the rows on their way through the decoder, and the factor at its input that makes them phi's.

    A row that theta all but ignores, and phi does not, goes through with 2^-40 of phi's coefficient: theta's gradient
    cannot tell that from nothing in float32, and the factor stays finite.
    """
    least = _NEGLIGIBLE * phi
    decoder = torch.where(theta.abs() < least.abs(), least, theta)
    return decoder, torch.where(decoder == 0, 0.0, phi / decoder)


def _check(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}: expected one of {', '.join(allowed)}, got {value!r}")


def _check_bounds(log_weight: Tensor, bound: str, beta: float | None, gradient: str) -> None:
    _check("bound", bound, BOUNDS)
    _check("gradient", gradient, GRADIENTS)
    if log_weight.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"log_weight: expected float32 or float64, got {log_weight.dtype}")
    if log_weight.ndim < 3 or 0 in log_weight.shape[-2:]:
        raise ValueError(f"log_weight: expected shape [..., B, M, K], got {list(log_weight.shape)}")
    if (beta is None) == (bound == "ciwae"):
        raise ValueError(f"beta: needed by 'ciwae' and by no other bound, got {beta} for {bound!r}")
    if beta is not None and not 0 <= beta <= 1:
        raise ValueError(f"beta: expected a number in [0, 1], got {beta}")
    if bound == "ciwae" and gradient == "rws-dreg":
        raise ValueError("gradient: 'rws-dreg' is not a gradient of a bound and has no convex combination")
