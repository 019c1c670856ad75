"""Entropies of mixtures of Gaussians that no grid of one step resolves: far sharper than the range of their means."""

import math

import torch
from torch import Tensor

_REACH = 6.5  # standard deviations; beyond lies 1e-10 of a Gaussian
_NODES, _FEWER_NODES = 10, 7
_AT_ONCE = 1 << 16  # posteriors whose panels are in memory
_VALUES_AT_ONCE = 1 << 22
_MOST_SPLITS = 3
_MOST_PLACES = 2.0**52  # panels in a row that float64 tells apart


def mixture_entropies(
    mu: Tensor, sigma: Tensor, group: Tensor, groups: int, tol: float
) -> tuple[Tensor, Tensor]:
    """Entropy of the mixture of the Gaussians of each group, by quadrature on panels as wide as the Gaussians there.

    A Gaussian's density is tabulated on panels of one to two standard deviations. Where a sharper one lies, a panel is
    halved until it is as narrow, and what the wide ones are there is interpolated: so one more Gaussian costs the same
    however sharp it is. Gaussians that a gap parts from others have an origin of their own, from which nothing is lost
    to rounding.

    Args:
        mu: means, float64 ``[N]``.
        sigma: standard deviations, float64 ``[N]``.
        group: int64 ``[N]``, each in [0, groups); no group is empty.
        groups: how many.
        tol: nats. The panels are halved, three times at most, until the error of every group is at most this.

    Returns:
        entropies in nats and what is estimated of their errors, float64 ``[groups]``: the difference to fewer nodes in
        each panel, or of the mass to 1.

    Raises:
        ValueError: Gaussians among others 1e15 times as wide.
    """
    cluster, order = _clusters(mu - _REACH * sigma, mu + _REACH * sigma, group)
    mu, sigma, group = mu[order], sigma[order], group[order]
    weight = 1 / torch.bincount(group, minlength=groups).double()[group]
    for splits in range(_MOST_SPLITS + 1):
        sums = mu.new_zeros(3, groups)
        for part in _slabs(cluster):
            own = cluster[part] - cluster[part][0]
            found = _integrate(mu[part], sigma[part], weight[part], own, splits)
            first = torch.searchsorted(own, torch.arange(found.shape[1], device=own.device))
            sums.index_add_(1, group[part][first], found)
        entropy, fewer, mass = sums
        error = torch.maximum((entropy - fewer).abs(), (mass - 1).abs())
        if bool((error <= tol).all()):
            break
    return entropy, error


def _clusters(low: Tensor, high: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """Number of the cluster of each interval, in an order in which those of a cluster follow one another."""
    count = len(low)
    ends, groups = torch.cat([low, high]), group.repeat(2)
    by_value = ends.argsort(stable=True)
    by_group = by_value[groups[by_value].argsort(stable=True)]
    rank = torch.empty_like(by_group)
    rank[by_group] = torch.arange(2 * count, device=rank.device)
    order = rank[:count].argsort()
    furthest = rank[count:][order].cummax(0).values
    starts = torch.ones_like(order)
    starts[1:] = rank[:count][order][1:] > furthest[:-1]
    return starts.cumsum(0) - 1, order


def _slabs(cluster: Tensor) -> list[slice]:
    """Whole clusters, as many as are computed at once."""
    ends, start = [], 0
    boundaries = torch.cat(
        [(cluster.diff() != 0).nonzero().squeeze(-1) + 1, cluster.new_tensor([len(cluster)])]
    )
    while start < len(cluster):
        next_end = torch.searchsorted(boundaries, min(start + _AT_ONCE, len(cluster)), right=True) - 1
        end = int(boundaries[max(int(next_end), 0)])
        if end <= start:  # one cluster is larger
            end = int(boundaries[int(torch.searchsorted(boundaries, start, right=True))])
        ends.append(slice(start, end))
        start = end
    return ends


class _Level:
    """The panels of one width, sorted; ``key`` numbers the places of all clusters one after the other."""

    def __init__(self, exponent: int, low: Tensor, high: Tensor, present: Tensor) -> None:
        self.width = 2.0**exponent
        first = torch.floor(low / self.width) - 4
        extent = torch.where(present, torch.floor(high / self.width) + 4 - first, 0)
        if float(extent.sum()) >= _MOST_PLACES:
            raise ValueError(
                "Gaussians lie among others more than 1e15 times as wide: float64 has no grid for both"
            )
        self._offset = (extent.cumsum(0) - extent - first.where(present, extent)).long()
        self.cluster = self.place = self.key = torch.empty(0, dtype=torch.int64, device=low.device)

    def add(self, cluster: Tensor, place: Tensor) -> None:
        cluster, place = torch.cat([self.cluster, cluster]), torch.cat([self.place, place])
        self.key, own = (self._offset[cluster] + place).unique(return_inverse=True)
        one = torch.zeros_like(self.key).scatter_(0, own, torch.arange(len(own), device=own.device))
        self.cluster, self.place = cluster[one], place[one]

    def find(self, cluster: Tensor, place: Tensor) -> Tensor:
        """Positions of panels that are there."""
        return torch.searchsorted(self.key, self._offset[cluster] + place)


def _integrate(mu: Tensor, sigma: Tensor, weight: Tensor, cluster: Tensor, splits: int) -> Tensor:
    """Of each cluster the integrals of -q log q, the same by fewer nodes, and of q: float64 ``[3, C]``."""
    device = mu.device
    clusters = int(cluster[-1]) + 1
    x = mu - mu[torch.searchsorted(cluster, torch.arange(clusters, device=device))][cluster]
    exponent = torch.ceil(torch.log2(sigma)).long() - splits

    def extreme(values: Tensor, which: str) -> Tensor:
        return values.new_zeros(clusters).scatter_reduce(0, cluster, values, which, include_self=False)

    low, high = extreme(x - _REACH * sigma, "amin"), extreme(x + _REACH * sigma, "amax")
    finest, widest = extreme(exponent, "amin"), extreme(exponent, "amax")
    levels: dict[int, _Level] = {}
    own: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
    exponents = range(int(finest.min()), int(widest.max()) + 1)
    for e in exponents:
        level = levels[e] = _Level(e, low, high, (finest <= e) & (e <= widest))
        rows = (exponent == e).nonzero().squeeze(-1)
        first = torch.floor((x - _REACH * sigma)[rows] / level.width).long()
        last = torch.floor((x + _REACH * sigma)[rows] / level.width).long()
        own[e] = rows, first, last
        if len(rows):
            places = first[:, None] + torch.arange(int((last - first).max()) + 1, device=device)
            inside = places <= last[:, None]
            level.add(cluster[rows][:, None].expand_as(places)[inside], places[inside])
        if e > exponents[0]:
            below = levels[e - 1]
            has_parent = widest[below.cluster] >= e
            level.add(below.cluster[has_parent], below.place[has_parent] >> 1)
        if e < exponents[-1]:  # what is halved has both halves
            half = widest[level.cluster] > e
            level.add(level.cluster[half], level.place[half] ^ 1)

    at, weights = _panel_rule(_NODES, device)
    fewer_at, fewer_weights = _panel_rule(_FEWER_NODES, device)
    halves = [_interpolation(at, (at + side) / 2) for side in (0, 1)]
    fewer = _interpolation(at, fewer_at)
    sums = mu.new_zeros(3, clusters)
    density = mu.new_zeros(0, _NODES)
    for e in reversed(exponents):
        level = levels[e]
        q = mu.new_zeros(len(level.key), _NODES)
        if len(density):
            parent = levels[e + 1]
            for side, matrix in enumerate(halves):
                half = ((widest[level.cluster] > e) & (level.place & 1 == side)).nonzero().squeeze(-1)
                q[half] = density[parent.find(level.cluster[half], level.place[half] >> 1)] @ matrix.mT
        rows, first, last = own[e]
        _add_gaussians(q, level, at, x[rows], sigma[rows], weight[rows], cluster[rows], first, last)
        whole = torch.ones(len(q), dtype=torch.bool, device=device)
        if e > exponents[0]:
            below = levels[e - 1]
            halved = widest[below.cluster] >= e
            whole[level.find(below.cluster[halved], below.place[halved] >> 1)] = False
        # of a tail, the interpolated density may be a rounding below 0
        kept = q[whole].clamp_min(0)
        less = (kept @ fewer.mT).clamp_min(0)
        integrals = (
            -torch.special.xlogy(kept, kept) @ weights,
            -torch.special.xlogy(less, less) @ fewer_weights,
            kept @ weights,
        )
        sums.index_add_(1, level.cluster[whole], level.width * torch.stack(integrals))
        density = q
    return sums


def _add_gaussians(
    q: Tensor,
    level: _Level,
    at: Tensor,
    x: Tensor,
    sigma: Tensor,
    weight: Tensor,
    cluster: Tensor,
    first: Tensor,
    last: Tensor,
) -> None:
    """Add the densities of Gaussians to those on their panels ``q``, which lie beside one another."""
    if not len(x):
        return
    most = int((last - first).max()) + 1
    step = torch.arange(most, device=x.device)
    for part in torch.arange(len(x), device=x.device).split(max(1, _VALUES_AT_ONCE // (most * len(at)))):
        place = first[part, None] + step
        start = (place.double() * level.width - x[part, None]) / sigma[part, None]
        d = start[..., None] + (level.width / sigma[part])[:, None, None] * at
        height = weight[part] / (sigma[part] * math.sqrt(2 * math.pi))
        density = height[:, None, None] * torch.exp(-0.5 * d.square())
        inside = place <= last[part, None]
        panel = level.find(cluster[part], first[part])[:, None] + step
        q.index_add_(0, panel[inside], density[inside])


def _panel_rule(nodes: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre nodes and weights on [0, 1], float64 (Golub & Welsch 1969)."""
    k = torch.arange(1, nodes, dtype=torch.float64, device=device)
    beside = k / (4 * k.square() - 1).sqrt()
    at, basis = torch.linalg.eigh(torch.diag(beside, 1) + torch.diag(beside, -1))
    return (at + 1) / 2, basis[0].square()


def _interpolation(nodes: Tensor, at: Tensor) -> Tensor:
    """Matrix ``[len(at), len(nodes)]``: values at other places of the polynomial through values at the nodes."""
    apart = nodes[:, None] - nodes
    terms = 1 / (apart.fill_diagonal_(1).prod(1) * (at[:, None] - nodes))
    return terms / terms.sum(1, keepdim=True)
