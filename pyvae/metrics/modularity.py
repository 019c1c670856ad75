"""Modularity and explicitness."""

from collections.abc import Collection
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from pyvae.metrics.counts import information_matrix, table_counts
from pyvae.metrics.layout import Layout, TooFewCodes, check_count, check_layout
from pyvae.metrics.sampling import Draw, check_split, draw_key, draw_points, sklearn_seed, split_codes
from pyvae.metrics.table import CodeTable

Array = npt.NDArray[np.float64]


class Modularity(NamedTuple):
    """Score, modularity ``[D]`` of each latent, and information ``[D, F]`` (nats)."""

    score: float
    per_code: Array
    information: Array
    factors: tuple[str, ...]


class Explicitness(NamedTuple):
    """Score (on test points), that on training points, and the mean test AUC ``[F]`` of each factor's classes."""

    score: float
    train_score: float
    per_factor: Array
    factors: tuple[str, ...]


def modularity(
    table: CodeTable,
    *,
    seed: int = 0,
    points: int | None = 10_000,
    bins: int = 20,
    without: Collection[str] = (),
) -> Modularity:
    """Modularity of Ridgeway & Mozer 2018, "Learning deep disentangled embeddings with the F-statistic loss".

    For each latent 1 - (sum of the squared information with all factors but its best) / (best squared * (F - 1)), 0
    when it informs on none; the mean over all latents. Information is that of histograms, as in `mig`, so a latent of
    pure noise has some and scores by chance.

    Defaults are those of disentanglement_lib (unsupervised_study_v1).

    Args:
        table: N codes.
        seed: of the points.
        points: random rows; None for all.
        bins: equal-width bins of each latent.
        without: names of factors to leave out.

    Returns:
        the score, in [0, 1], and its parts.

    Raises:
        ValueError: too few rows for ``points``, an unknown factor, fewer than two factors.
    """
    kept, rows = check_modularity(table, seed=seed, points=points, bins=bins, without=without)
    histogram = table_counts(table, rows if points is not None else None, bins)
    information = information_matrix(histogram, table.factor_sizes)[:, kept]
    per_code = per_code_modularity(information)
    return Modularity(float(per_code.mean()), per_code, information, table.names(kept))


def check_modularity(
    layout: Layout, *, seed: int, points: int | None, bins: int, without: Collection[str]
) -> tuple[list[int], Tensor]:
    """The positions of the kept factors and the rows to read, if the metric can be computed; else as `modularity`
    raises.
    """
    check_layout(layout)
    kept = layout.kept(without)
    layout.require_factors("modularity", kept)
    check_count("bins", bins, 1)
    return kept, draw_points(points, len(layout), draw_key(seed, Draw.MODULARITY))


def per_code_modularity(information: Array) -> Array:
    """Modularity ``[D]`` of information ``[D, F]``."""
    best = information.max(1)
    informed = best > 0
    relative = information / np.where(informed, best, 1.0)[:, None]
    excess = ((relative**2).sum(1) - 1) / (information.shape[1] - 1)
    return np.where(informed, 1 - excess, 0.0)


def explicitness(
    table: CodeTable,
    *,
    seed: int = 0,
    train: int = 10_000,
    test: int = 5_000,
    max_iter: int = 1_000,
    without: Collection[str] = (),
) -> Explicitness:
    """Explicitness of Ridgeway & Mozer 2018: how well a linear classifier reads factors off all latents.

    A logistic regression per factor on standardised codes; the area under the ROC curve of each class against the
    rest, averaged over the factor's classes and then over factors.

    Defaults are those of disentanglement_lib (unsupervised_study_v1), but for ``max_iter``, scikit-learn's 100 there.

    Args:
        table: N codes.
        seed: of the points and of the classifier.
        train: points to train on.
        test: other points, to score on.
        max_iter: of the classifier.
        without: names of factors to leave out.

    Returns:
        the score, in [0, 1] (.5 for codes that say nothing), and its parts.

    Raises:
        ValueError: more points than rows, an unknown factor, or one that does not vary.
    """
    from sklearn.linear_model import LogisticRegression

    kept, rows = check_explicitness(
        table, seed=seed, train=train, test=test, max_iter=max_iter, without=without
    )
    split = split_codes(table, kept, rows, train)
    mean, deviation = split.train_codes.mean(0), split.train_codes.std(0)
    deviation[deviation == 0] = 1.0
    train_codes, test_codes = ((codes - mean) / deviation for codes in (split.train_codes, split.test_codes))
    areas = []
    for k in range(len(kept)):
        model = LogisticRegression(max_iter=max_iter, random_state=sklearn_seed(seed))
        model.fit(train_codes, split.train_classes[:, k])
        areas.append(
            (
                mean_area(model.classes_, split.test_classes[:, k], model.predict_proba(test_codes)),
                mean_area(model.classes_, split.train_classes[:, k], model.predict_proba(train_codes)),
            )
        )
    per_factor = np.array(areas)
    score, train_score = per_factor.mean(0)
    return Explicitness(float(score), float(train_score), per_factor[:, 0], table.names(kept))


def check_explicitness(
    layout: Layout, *, seed: int, train: int, test: int, max_iter: int, without: Collection[str]
) -> tuple[list[int], Tensor]:
    """The positions of the kept factors and the rows to read, if the metric can be computed; else as `explicitness`
    raises.
    """
    check_layout(layout)
    check_count("max_iter", max_iter, 1)
    return check_split(layout, train, test, without, seed, Draw.EXPLICITNESS)


def mean_area(known: npt.NDArray[np.int64], classes: npt.NDArray[np.int64], probabilities: Array) -> float:
    """Mean area under the ROC curve over the known classes; classes of no or of all points left out."""
    from sklearn.metrics import roc_auc_score

    areas = [
        roc_auc_score(classes == c, probabilities[:, i])
        for i, c in enumerate(known)
        if 0 < (classes == c).sum() < len(classes)
    ]
    if not areas:
        raise TooFewCodes("test: the points have one class of a factor, ask for more")
    return float(np.mean(areas))
