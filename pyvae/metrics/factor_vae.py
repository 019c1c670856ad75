"""The metric of FactorVAE: a majority vote on which latent varies least when a factor is held."""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyvae.metrics.layout import Layout, check_count, check_layout, check_number
from pyvae.metrics.sampling import Draw, draw_integers, draw_key, draw_points
from pyvae.metrics.table import CodeTable

FACTOR_VAE_PAPER: Mapping[str, Any] = {
    "points_per_vote": 100,
    "votes": 800,
    "evaluation_votes": 0,
    "prune": "kl",
    "threshold": 1e-2,
}
"""Options of Kim & Mnih 2018: 800 votes of 100 points, accuracy on those votes, latents of KL up to .01 pruned."""

CONSTANT = 0.05
"""Standard deviation of a latent's means over the images below which it says nothing of them, whatever it costs."""
_THRESHOLDS = {"std": CONSTANT, "kl": 1e-2}
_CHUNK = 1024


class FactorVae(NamedTuple):
    """Score; its parts ``active [D]`` (bool) and ``votes [D, F]`` (of the training votes).

    ``evaluation_accuracy`` is None when there are no evaluation votes.
    """

    score: float
    train_accuracy: float
    evaluation_accuracy: float | None
    active: npt.NDArray[np.bool_]
    votes: npt.NDArray[np.int64]
    factors: tuple[str, ...]


def factor_vae(
    table: CodeTable,
    *,
    seed: int = 0,
    points_per_vote: int = 64,
    votes: int = 10_000,
    evaluation_votes: int = 5_000,
    variance_points: int | None = 10_000,
    prune: str = "std",
    threshold: float | None = None,
    without: Collection[str] = (),
) -> FactorVae:
    """Disentanglement metric of Kim & Mnih 2018, "Disentangling by factorising".

    One vote: hold a random factor at a random class, draw the others, and name the active latent whose variance,
    relative to its variance over the data, is the smallest. The classifier says for each latent the factor that most
    training votes name it for. The score is its accuracy on the evaluation votes, or on the training votes when there
    are no others. A random code scores about 1/F.

    Defaults are those of disentanglement_lib (unsupervised_study_v1); ``**FACTOR_VAE_PAPER`` gives the paper's, as
    nicolasigor/FactorVAE has them, which votes equally often for every factor: the pruning threshold is not in the
    paper.

    Args:
        table: codes of the full grid.
        seed: of everything drawn.
        points_per_vote: L.
        votes: to train on.
        evaluation_votes: to score on; 0 for the training votes.
        variance_points: random rows that give the variance over the data; None for all.
        prune: "std" leaves out latents whose standard deviation is below the threshold, "kl" those whose mean KL to
            the prior does not exceed it.
        threshold: .05 for "std" and .01 nats for "kl" by default.
        without: names of factors never held.

    Returns:
        the score, in [0, 1] (0 when every latent is pruned), and its parts.

    Raises:
        ValueError: not the full grid, too few points or votes, an unknown factor, one of one class, unknown pruning.
    """
    kept, rows = check_factor_vae(
        table,
        seed=seed,
        points_per_vote=points_per_vote,
        votes=votes,
        evaluation_votes=evaluation_votes,
        variance_points=variance_points,
        prune=prune,
        threshold=threshold,
        without=without,
    )
    variance = table.mu[rows].double().var(0, unbiased=True)
    active = _active(table, variance, prune, threshold)
    factors = table.names(kept)
    if not bool(active.any()):
        none = np.zeros((table.latents, len(kept)), dtype=np.int64)
        return FactorVae(0.0, 0.0, 0.0 if evaluation_votes else None, active.numpy(), none, factors)
    factor, latent = _cast(table, kept, variance, active, points_per_vote, votes + evaluation_votes, seed)
    counts = torch.zeros(table.latents, len(kept), dtype=torch.int64)
    counts.index_put_((latent[:votes], factor[:votes]), torch.ones(votes, dtype=torch.int64), accumulate=True)
    right = counts.argmax(1)[latent] == factor
    train = float(right[:votes].double().mean())
    evaluation = float(right[votes:].double().mean()) if evaluation_votes else None
    score = train if evaluation is None else evaluation
    return FactorVae(score, train, evaluation, active.numpy(), counts.numpy(), factors)


def check_factor_vae(
    layout: Layout,
    *,
    seed: int,
    points_per_vote: int,
    votes: int,
    evaluation_votes: int,
    variance_points: int | None,
    prune: str,
    threshold: float | None,
    without: Collection[str],
) -> tuple[list[int], Tensor]:
    """The positions of the kept factors and the rows that give the variance, if the metric can be computed; else as
    `factor_vae` raises.
    """
    check_layout(layout)
    kept = layout.kept(without)
    layout.require_sizes(kept)
    check_count("points_per_vote", points_per_vote, 2)
    check_count("votes", votes, 1)
    check_count("evaluation_votes", evaluation_votes, 0)
    if prune not in _THRESHOLDS:
        raise ValueError(f"prune: expected 'std' or 'kl', got {prune!r}")
    if threshold is not None:
        check_number("threshold", threshold)
    layout.require_grid("factor_vae")
    return kept, draw_points(variance_points, len(layout), draw_key(seed, Draw.FACTOR_VAE_VARIANCE))


def _active(table: CodeTable, variance: Tensor, prune: str, threshold: float | None) -> Tensor:
    limit = _THRESHOLDS[prune] if threshold is None else threshold
    used = variance.sqrt() >= limit if prune == "std" else table.mean_kl() > limit
    # a latent that never varies is of variance 0 whatever is held, and cannot be compared
    return used & (variance > 0)


def _cast(
    table: CodeTable, kept: list[int], variance: Tensor, active: Tensor, points: int, votes: int, seed: int
) -> tuple[Tensor, Tensor]:
    """The held factor, as a position in ``kept``, and the latent of the smallest variance: int64 ``[votes]`` each."""
    factor = draw_integers(len(kept), votes, 1, draw_key(seed, Draw.FACTOR_VAE_FACTOR))
    rows = draw_integers(len(table), votes, points, draw_key(seed, Draw.FACTOR_VAE_POINTS))
    held = torch.tensor(kept)[factor]
    rows = table.with_class(rows, held, table.class_of(rows[:, :1], held))
    candidates = active.nonzero().squeeze(-1)
    codes = table.mu[:, candidates]
    latent = torch.cat(
        [
            (codes[chunk].double().var(1, unbiased=True) / variance[candidates]).argmin(1)
            for chunk in rows.split(_CHUNK)
        ]
    )
    return factor.squeeze(-1), candidates[latent]
