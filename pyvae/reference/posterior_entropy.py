"""``posterior_entropy``: entropies of the aggregate posterior, by quadrature on grids."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pyvae.base.checks import check_latents
from pyvae.base.transforms import refuse, refuse_gradients
from pyvae.reference.grid import check_factor_sizes, check_whole, factor_classes
from pyvae.reference.panels import mixture_entropies


class PosteriorEntropy(NamedTuple):
    """Entropies in nats, float64: ``marginal [D]``, one ``[D, size]`` for each factor, and ``error [D]``."""

    marginal: Tensor
    conditional: tuple[Tensor, ...]
    error: Tensor


_REACH = 8.0  # standard deviations; beyond lies 1e-15 of a Gaussian
_MOST_NODES = 1 << 16
Density = Callable[[Tensor, Tensor, Tensor, Tensor, list[int], int], Tensor]


def quadrature_grid(mu: Tensor, logvar: Tensor, nodes: int) -> tuple[Tensor, Tensor]:
    """First node and step, float64 [D], of grids over all posteriors [D, N] of each latent.

    Every node is a float32: on a sharp posterior a rounded one would be off by a good part of a standard deviation.
    """
    reach = _REACH * torch.exp(0.5 * logvar)
    low, high = (mu - reach).amin(-1).double(), (mu + reach).amax(-1).double()
    exponent = torch.floor(torch.log2(torch.maximum(low.abs(), high.abs()))) - 22
    quantum = torch.exp2(exponent)
    first = torch.floor(low / quantum) * quantum
    return first, torch.ceil((high - first) / (nodes - 1) / quantum) * quantum


def posterior_density(
    mu: Tensor, logvar: Tensor, low: Tensor, step: Tensor, factor_sizes: list[int], nodes: int
) -> Tensor:
    """Density of each latent given each class of each factor on its grid, float64 [D, sum(factor_sizes), nodes]."""
    latents, rows = mu.shape
    total = torch.zeros((latents, sum(factor_sizes), nodes), dtype=torch.float64, device=mu.device)
    z = low.unsqueeze(-1) + torch.arange(nodes, device=mu.device) * step.unsqueeze(-1)
    classes = factor_classes(rows, factor_sizes, mu.device)
    share = torch.cat(
        [
            F.one_hot(c, size).double() * (size / rows)
            for c, size in zip(classes.mT, factor_sizes, strict=True)
        ],
        -1,
    )
    chunk = max(1, (1 << 22) // nodes)
    for d in range(latents):
        for start in range(0, rows, chunk):
            part = slice(start, start + chunk)
            m, lv = mu[d, part, None].double(), logvar[d, part, None].double()
            log_density = -0.5 * ((z[d] - m).square() * torch.exp(-lv) + lv + math.log(2 * math.pi))
            total[d] += share[part].mT @ torch.exp(log_density)
    return total


def check_posteriors(mu: Tensor, logvar: Tensor, factor_sizes: Sequence[int], nodes: int, tol: float) -> None:
    """Raise unless the posteriors are finite and, where there are factors, one for each point of their grid; waits for
    the device."""
    check_latents(mu, logvar)
    if factor_sizes:
        check_factor_sizes(factor_sizes)
        points = math.prod(factor_sizes)
        if mu.ndim != 2 or len(mu) != points:
            raise ValueError(
                f"mu: expected [{points}, D], the grid of {tuple(factor_sizes)}, got {list(mu.shape)}"
            )
    elif mu.ndim != 2 or len(mu) < 1:
        raise ValueError(f"mu: expected [N, D] with N at least 1, got {list(mu.shape)}")
    check_whole("nodes", nodes)
    if nodes < 4:
        raise ValueError(f"nodes: at least 4 are needed, got {nodes}")
    if not tol > 0:
        raise ValueError(f"tol: expected more than 0, got {tol}")
    check_magnitudes(mu, logvar)


def check_magnitudes(mu: Tensor, logvar: Tensor) -> None:
    """Raise unless posteriors [N, D] are finite, of a density that float32 holds; waits for the device."""
    for name, x, limit in (("mu", mu, 1e30), ("logvar", logvar, 100.0)):
        bad = ~(x.abs() <= limit).all(0)
        if bool(bad.any()):
            dims = bad.nonzero().flatten().tolist()
            raise ValueError(f"{name}: NaN or a magnitude above {limit:g} in dimensions {dims}")


def undivided(density: Density) -> Density:
    """The density of posteriors that are no grid, for factor sizes ``[1]``.

    A power of two of them is a grid of factors of two classes, and any number is a sum of such powers.
    """

    def whole(
        mu: Tensor, logvar: Tensor, low: Tensor, step: Tensor, factor_sizes: list[int], nodes: int
    ) -> Tensor:
        rows, start = mu.shape[1], 0
        total = torch.zeros((len(mu), 1, nodes), dtype=torch.float64, device=mu.device)
        for power in range(rows.bit_length()):
            if count := rows & 1 << power:
                m, lv = (x[:, start : start + count].contiguous() for x in (mu, logvar))
                sizes = [2] * power or [1]
                found = density(m, lv, low, step, sizes, nodes)[:, : sizes[0]]
                total += count / rows * found.mean(1, keepdim=True)
                start += count
        return total

    return whole


def refined_entropy(
    density: Density, mu: Tensor, logvar: Tensor, factor_sizes: Sequence[int], nodes: int, tol: float
) -> PosteriorEntropy:
    """Entropies from densities on grids of ``nodes``, doubled for each latent until its error is at most ``tol``.

    A latent whose posteriors no grid resolves, be they too sharp for the range of their means or for float32 nodes, has
    panels of its own: :func:`pyvae.reference.panels.mixture_entropies`.
    """
    if not factor_sizes:
        return refined_entropy(undivided(density), mu, logvar, (1,), nodes, tol)._replace(conditional=())
    sizes = [int(size) for size in factor_sizes]
    m, lv = mu.detach().mT.contiguous(), logvar.detach().mT.contiguous()
    entropy = torch.zeros((len(m), 1 + sum(sizes)), dtype=torch.float64, device=mu.device)
    error = torch.zeros(len(m), dtype=torch.float64, device=mu.device)
    _, finest = quadrature_grid(m, lv, _MOST_NODES)
    sharp = finest > torch.exp(0.5 * lv.double().amin(-1))
    left = (~sharp).nonzero().flatten()
    nodes += nodes % 2
    while len(left):
        low, step = quadrature_grid(m[left], lv[left], nodes)
        q = density(m[left], lv[left], low, step, sizes, nodes)
        q = torch.cat([q[:, : sizes[0]].mean(1, keepdim=True), q], 1)
        surprise = -torch.special.xlogy(q, q)
        # the even nodes are a grid of twice the step
        full = surprise.sum(-1) * step.unsqueeze(-1)
        half = surprise[..., ::2].sum(-1) * (2 * step.unsqueeze(-1))
        # a grid that steps over all posteriors agrees with itself
        lost = (q.sum(-1) * step.unsqueeze(-1) - 1).abs()
        entropy[left], error[left] = full, torch.maximum((full - half).abs(), lost).amax(-1)
        left = left[error[left] > tol]
        if nodes >= _MOST_NODES:
            sharp[left] = True
            break
        nodes *= 2
    for d in sharp.nonzero().flatten().tolist():
        entropy[d], error[d] = _entropy_by_panels(m[d], lv[d], sizes, tol)
        if float(error[d]) > tol:
            raise ValueError(
                f"posterior_entropy: an error of {float(error[d]):.1e} nats is left in latent {d}, more than {tol:g}: "
                "ask for a larger tol"
            )
    return PosteriorEntropy(entropy[:, 0], entropy[:, 1:].split(sizes, -1), error)


def _entropy_by_panels(mu: Tensor, logvar: Tensor, sizes: list[int], tol: float) -> tuple[Tensor, Tensor]:
    """Entropies float64 [1 + sum(sizes)] of one latent, of all posteriors and of each class, and the largest error."""
    # on the CPU, where sums over scattered panels have one order
    m, sigma = mu.double().cpu(), torch.exp(0.5 * logvar.double()).cpu()
    classes = torch.cat(
        [torch.zeros(len(m), 1, dtype=torch.int64), factor_classes(len(m), sizes, m.device)], -1
    )
    found = [
        mixture_entropies(m, sigma, group, groups, tol)
        for group, groups in zip(classes.unbind(-1), [1, *sizes], strict=True)
    ]
    entropy, error = (torch.cat(parts) for parts in zip(*found, strict=True))
    return entropy.to(mu.device), error.amax().to(mu.device)


def posterior_entropy(
    mu: Tensor, logvar: Tensor, factor_sizes: Sequence[int] = (), *, nodes: int = 512, tol: float = 1e-5
) -> PosteriorEntropy:
    """Specification of :func:`pyvae.posterior_entropy`."""
    refuse("posterior_entropy", mu, logvar)
    refuse_gradients("posterior_entropy", mu, logvar)
    check_posteriors(mu, logvar, factor_sizes, nodes, tol)
    return refined_entropy(posterior_density, mu, logvar, factor_sizes, nodes, tol)
