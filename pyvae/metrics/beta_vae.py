"""The metric of beta-VAE: a linear classifier on the differences of codes that share a factor."""

from collections.abc import Collection
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyvae.metrics.layout import Layout, check_count, check_layout
from pyvae.metrics.sampling import Draw, draw_integers, draw_key, sklearn_seed
from pyvae.metrics.table import CodeTable

_CHUNK = 1024


class BetaVae(NamedTuple):
    """Score, the accuracy on the training points, and the weights ``[F, D]`` (``[1, D]`` for two factors)."""

    score: float
    train_accuracy: float
    weights: npt.NDArray[np.float64]
    factors: tuple[str, ...]


def beta_vae(
    table: CodeTable,
    *,
    seed: int = 0,
    pairs: int = 64,
    train: int = 10_000,
    evaluation: int = 5_000,
    max_iter: int = 1_000,
    without: Collection[str] = (),
) -> BetaVae:
    """Disentanglement metric of Higgins et al. 2017, "beta-VAE".

    One point: draw a factor, then pairs of images that share its class (a class of its own in each pair), and average
    |mu_1 - mu_2| over the pairs. The score is the accuracy of a linear classifier of the factor on new points. It is
    known to stay 1 when all but one of the factors are disentangled (Kim & Mnih 2018). A random code scores about 1/F.

    Defaults are those of disentanglement_lib (unsupervised_study_v1): scikit-learn's LogisticRegression, but for
    ``max_iter``, which is scikit-learn's 100 there; the paper trains a linear classifier with Adagrad. The study ran a
    scikit-learn whose default was one-vs-rest; today's is multinomial.

    Args:
        table: codes of the full grid.
        seed: of everything drawn.
        pairs: L.
        train: points to train the classifier on.
        evaluation: points to score on.
        max_iter: of the classifier.
        without: names of factors never shared.

    Returns:
        the score, in [0, 1], and its parts.

    Raises:
        ValueError: not the full grid, too few points, an unknown factor, fewer than two factors.
    """
    from sklearn.linear_model import LogisticRegression

    kept, drawn = check_beta_vae(
        table, seed=seed, pairs=pairs, train=train, evaluation=evaluation, max_iter=max_iter, without=without
    )
    factor, features = drawn.squeeze(-1).numpy(), _differences(table, torch.tensor(kept)[drawn], pairs, seed)
    model = LogisticRegression(max_iter=max_iter, random_state=sklearn_seed(seed))
    model.fit(features[:train], factor[:train])
    right = model.predict(features) == factor
    return BetaVae(
        float(right[train:].mean()), float(right[:train].mean()), np.asarray(model.coef_), table.names(kept)
    )


def check_beta_vae(
    layout: Layout,
    *,
    seed: int,
    pairs: int,
    train: int,
    evaluation: int,
    max_iter: int,
    without: Collection[str],
) -> tuple[list[int], Tensor]:
    """The positions of the kept factors and which of them each point shares, int64 ``[points, 1]``, if the metric can
    be computed; else as `beta_vae` raises.
    """
    check_layout(layout)
    kept = layout.kept(without)
    layout.require_factors("beta_vae", kept)
    for option, value in (
        ("pairs", pairs),
        ("train", train),
        ("evaluation", evaluation),
        ("max_iter", max_iter),
    ):
        check_count(option, value, 1)
    factor = draw_integers(len(kept), train + evaluation, 1, draw_key(seed, Draw.BETA_VAE_FACTOR))
    if len(factor[:train].unique()) < len(kept):
        raise ValueError(f"train: {train} points do not hold every factor, ask for more")
    layout.require_grid("beta_vae")
    return kept, factor


def _differences(table: CodeTable, shared: Tensor, pairs: int, seed: int) -> npt.NDArray[np.float64]:
    """Mean |mu_1 - mu_2| ``[points, D]`` of pairs that share the factor ``shared`` ``[points, 1]``."""
    points = len(shared)
    first = draw_integers(len(table), points, pairs, draw_key(seed, Draw.BETA_VAE_FIRST))
    second = draw_integers(len(table), points, pairs, draw_key(seed, Draw.BETA_VAE_SECOND))
    second = table.with_class(second, shared, table.class_of(first, shared))

    def difference(a: Tensor, b: Tensor) -> Tensor:
        return (table.mu[a].double() - table.mu[b]).abs().mean(1)

    chunks = zip(first.split(_CHUNK), second.split(_CHUNK), strict=True)
    return torch.cat([difference(a, b) for a, b in chunks]).numpy()
