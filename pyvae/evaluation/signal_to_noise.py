"""Signal-to-noise ratio of importance-weighted gradients, on the Gaussian toy of Rainforth et al. 2018.

"Tighter variational bounds are not necessarily better", section 4 and appendix: with K samples in a bound and M bounds
averaged, that of the generative parameters grows as sqrt(M K), that of the inference parameters as sqrt(M / K).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import torch
from torch import Tensor

from pyvae.base.allocator import keep_large_buffers
from pyvae.bounds import Checked, Count, Seed, Within

Estimator = Literal["total", "stl", "dreg", "rws-dreg"]
ESTIMATORS: tuple[Estimator, ...] = ("total", "stl", "dreg", "rws-dreg")
"""Of the inference parameters' gradient; see :func:`pyvae.objectives.importance.importance_bounds`."""

_CHUNK = 2_000_000
"""Samples times dimensions at once: some hundred megabytes."""
_DRAWS = {1: 20_000, 3: 20_000, 10: 20_000, 30: 20_000, 100: 10_000, 300: 10_000, 1000: 5_000}
"""Draws of the gradient for each number of samples. The signal of phi shrinks with K, and the noise of the mean of R
draws is 1 / sqrt(R) of their deviation."""
_LEAST_OF_SLOPE = 3


@dataclass(frozen=True)
class Toy(Checked):
    """z ~ N(mu, I), x given z ~ N(z, I), q(z|x) = N(A x + b, variance I): all exact.

    The data are drawn from the model with mu ~ N(0, I); the parameters are then the best ones (mu the mean of the data,
    A = I / 2, b = mu / 2), each moved by N(0, perturbation^2). Gradients are those of a batch, as in training.
    """

    dimensions: Count = 20
    data: Count = 1024
    batch: Count = 16
    perturbation: Annotated[float, Within(0, 1e9)] = 0.01
    """0.01 is near the optimum, 0.5 far from it."""
    variance: Annotated[float, Within(1e-9, 1e9)] = 2 / 3
    """Of q; 1/2 would be the exact posterior's."""
    seed: Seed = 0


class Problem(NamedTuple):
    """Parameters and data, float64."""

    x: Tensor
    """The batch ``[N, D]``."""
    mu: Tensor
    """Prior mean ``[D]``, the generative parameter."""
    mean: Tensor
    """A x + b, ``[N, D]``, means of q; its derivative by b is 1."""
    variance: float


class Ratio(NamedTuple):
    """A measured ratio."""

    snr: float
    """``|E g| / std g`` over all parameters: ``sqrt(sum_j E[g_j]^2 / sum_j Var[g_j])``, the noise of the mean taken
    out; 0 where nothing is left."""
    floor: float
    """What would be measured without taking it out if E g were 0: ``1 / sqrt(draws)``, since the mean of so many draws
    has this ratio to their deviation. Nothing below it can be told from 0 by the plain ratio."""

    @property
    def known(self) -> bool:
        """Whether it is finite and above the floor: below, and near it half, what is found is chance."""
        return self.floor < self.snr < math.inf


class Curve(NamedTuple):
    """Ratios against the number of samples."""

    parameter: Literal["theta", "phi"]
    estimator: Estimator
    against: Literal["K", "M"]
    samples: tuple[int, ...]
    ratios: tuple[Ratio, ...]
    slope: float
    """Of log SNR against log samples from 3 on, by least squares over what is above the floor."""
    theory: float | None
    """What it tends to; None where the paper says nothing of the estimator."""


def make_problem(toy: Toy) -> Problem:
    """Data and parameters of a toy."""
    g = torch.Generator().manual_seed(toy.seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    d = toy.dimensions
    x = normal(d) + normal(toy.data, d) + normal(toy.data, d)
    best = x.mean(0)
    mu = best + toy.perturbation * normal(d)
    matrix = torch.eye(d, dtype=torch.float64) / 2 + toy.perturbation * normal(d, d)
    offset = best / 2 + toy.perturbation * normal(d)
    batch = x[: toy.batch]
    return Problem(batch, mu, batch @ matrix.T + offset, toy.variance)


def log_evidence(problem: Problem) -> Tensor:
    """log p(x) ``[N]`` in nats: x ~ N(mu, 2 I)."""
    return _log_normal(problem.x - problem.mu, 2.0)


def log_weights(problem: Problem, noise: Tensor) -> tuple[Tensor, Tensor]:
    """log p(x, z) - log q(z|x) ``[..., N, K]`` and z ``[..., N, K, D]``, for noise of that shape."""
    z = problem.mean[:, None] + math.sqrt(problem.variance) * noise
    joint = _log_normal(z - problem.mu, 1.0) + _log_normal(problem.x[:, None] - z, 1.0)
    return joint - _log_normal(z - problem.mean[:, None], problem.variance), z


def gradients(
    problem: Problem, noise: Tensor, estimators: Sequence[Estimator] = ("total",)
) -> tuple[Tensor, ...]:
    """Gradients of the data's mean bound log(1/K sum w), from one set of K samples.

    Args:
        problem: parameters and data.
        noise: ``[..., N, K, D]``, standard normal.
        estimators: of the gradient in b.

    Returns:
        in mu, the generative parameter, then in b, the inference parameter, by each estimator; ``[..., D]`` each.
    """
    log_w, z = log_weights(problem, noise)
    weight = log_w.softmax(-1)[..., None]
    theta = (weight * (z - problem.mu)).sum(-2).mean(-2)
    # d log p(x, z) / dz; that of log q along the path is -noise / sigma
    total = problem.mu + problem.x[:, None] - 2 * z
    path = total + noise / math.sqrt(problem.variance)
    terms: dict[Estimator, Callable[[], Tensor]] = {
        "total": lambda: weight * total,
        "stl": lambda: weight * path,
        "dreg": lambda: weight.square() * path,
        "rws-dreg": lambda: (weight - weight.square()) * path,
    }
    return theta, *(terms[estimator]().sum(-2).mean(-2) for estimator in estimators)


def signal_to_noise(
    problem: Problem,
    *,
    samples: int = 1,
    bounds: int = 1,
    draws: int,
    estimators: Sequence[Estimator] = ("total",),
    seed: int = 0,
) -> tuple[Ratio, ...]:
    """The ratios of theta and, by each estimator, of phi with K = ``samples`` and M = ``bounds``."""
    n, d = problem.x.shape
    g = torch.Generator().manual_seed(seed)
    portion = max(1, min(draws, _CHUNK // (bounds * n * samples * d)))
    sums = torch.zeros(1 + len(estimators), d, dtype=torch.float64)
    squares = torch.zeros_like(sums)
    for done in range(0, draws, portion):
        shape = (min(portion, draws - done), bounds, n, samples, d)
        noise = torch.randn(shape, generator=g, dtype=torch.float64)
        found = torch.stack([each.mean(1) for each in gradients(problem, noise, estimators)])
        sums += found.sum(1)
        squares += found.square().sum(1)
    mean = sums / draws
    variance = (squares / draws - mean.square()) * draws / (draws - 1)
    return tuple(_ratio(m, v, draws) for m, v in zip(mean, variance, strict=True))


def measure(toy: Toy, *, scale: float = 1.0) -> list[Curve]:
    """Curves against K with M = 1, of all estimators, and against M with K = 1.

    Args:
        toy: data, parameters, and the seed of the draws.
        scale: part of the draws to make; at 1, some minutes on a CPU.
    """
    keep_large_buffers()
    problem = make_problem(toy)
    by_samples, by_bounds = (
        [
            signal_to_noise(
                problem,
                draws=max(int(draws * scale), 50),
                estimators=ESTIMATORS if against == "samples" else ("total",),
                seed=(toy.seed * 1_000_003 + count) % 2**64,
                **{against: count},
            )
            for count, draws in _DRAWS.items()
        ]
        for against in ("samples", "bounds")
    )
    counts = tuple(_DRAWS)
    curves = [_curve("theta", "total", "K", counts, [r[0] for r in by_samples], 0.5)]
    theories = {"total": -0.5, "dreg": 0.5}
    for i, estimator in enumerate(ESTIMATORS):
        phi = [r[1 + i] for r in by_samples]
        curves.append(_curve("phi", estimator, "K", counts, phi, theories.get(estimator)))
    curves.append(_curve("theta", "total", "M", counts, [r[0] for r in by_bounds], 0.5))
    curves.append(_curve("phi", "total", "M", counts, [r[1] for r in by_bounds], 0.5))
    return curves


def _curve(
    parameter: Literal["theta", "phi"],
    estimator: Estimator,
    against: Literal["K", "M"],
    counts: tuple[int, ...],
    ratios: list[Ratio],
    theory: float | None,
) -> Curve:
    # the laws are those of many samples
    large = [i for i, count in enumerate(counts) if count >= _LEAST_OF_SLOPE]
    fitted = slope([counts[i] for i in large], [ratios[i] for i in large])
    return Curve(parameter, estimator, against, counts, tuple(ratios), fitted, theory)


def slope(samples: Sequence[int], ratios: Sequence[Ratio]) -> float:
    """Least squares of log SNR against log samples, over the known ratios; NaN for fewer than two."""
    points = [(math.log(s), math.log(r.snr)) for s, r in zip(samples, ratios, strict=True) if r.known]
    if len(points) < 2:
        return math.nan
    x, y = (torch.tensor(values, dtype=torch.float64) for values in zip(*points, strict=True))
    return float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())


def _ratio(mean: Tensor, variance: Tensor, draws: int) -> Ratio:
    noise = float(variance.sum())
    signal = max(float((mean.square() - variance / draws).sum()), 0.0)
    return Ratio(math.sqrt(signal / noise) if noise > 0 else math.inf, 1 / math.sqrt(draws))


def _log_normal(distance: Tensor, variance: float) -> Tensor:
    """Log-density of independent normals, summed over the last dimension."""
    return -0.5 * (distance.square() / variance + math.log(2 * math.pi * variance)).sum(-1)
