"""Separated attribute predictability."""

from collections.abc import Collection
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from pyvae.metrics.layout import Layout, check_layout
from pyvae.metrics.mig import information_gaps
from pyvae.metrics.sampling import Draw, Split, check_split, sklearn_seed, split_codes
from pyvae.metrics.table import CodeTable

_LEAST_VARIANCE = 1e-12


class Sap(NamedTuple):
    """Score, gap ``[F]`` of each factor, and how well each latent predicts each factor ``[D, F]``."""

    score: float
    gaps: npt.NDArray[np.float64]
    predictability: npt.NDArray[np.float64]
    factors: tuple[str, ...]


def sap(
    table: CodeTable,
    *,
    seed: int = 0,
    train: int = 10_000,
    test: int = 5_000,
    continuous: bool = False,
    without: Collection[str] = (),
) -> Sap:
    """Separated attribute predictability of Kumar et al. 2018, "Variational inference of disentangled latent concepts".

    The mean over factors of the difference between the two latents that predict it best, one latent at a time.

    Defaults are those of disentanglement_lib (unsupervised_study_v1): factors are classes, predicted by a linear
    support vector classifier of C = .01 with balanced class weights, test accuracy. It sees the scale of a latent. The
    paper (recalled) takes thresholds on the latent and the balanced accuracy instead, and 0 for an inactive latent.

    Args:
        table: N codes.
        seed: of the points and of the classifier.
        train: points to train on, or to correlate.
        test: other points, to score the classifiers on; of no use to ``continuous``.
        continuous: predictability is the squared correlation of latent and class instead, as in the paper for
            continuous factors; 0 for a latent of variance up to 1e-12.
        without: names of factors to leave out.

    Returns:
        the score, in [0, 1], and its parts.

    Raises:
        ValueError: more points than rows, fewer than two latents, an unknown factor, or one that does not vary.
    """
    kept, rows = check_sap(table, seed=seed, train=train, test=test, without=without)
    split = split_codes(table, kept, rows, train)
    matrix = _squared_correlations(split) if continuous else _accuracies(split, seed)
    gaps = information_gaps(matrix)
    return Sap(float(gaps.mean()), gaps, matrix, table.names(kept))


def check_sap(
    layout: Layout, *, seed: int, train: int, test: int, without: Collection[str]
) -> tuple[list[int], Tensor]:
    """The positions of the kept factors and the rows to read, if the metric can be computed; else as `sap` raises."""
    check_layout(layout)
    layout.require_latents("sap")
    return check_split(layout, train, test, without, seed, Draw.SAP)


def _squared_correlations(split: Split) -> npt.NDArray[np.float64]:
    codes = split.train_codes - split.train_codes.mean(0)
    classes = split.train_classes - split.train_classes.mean(0)
    variance = (codes**2).sum(0) / (len(codes) - 1)
    varied = variance > _LEAST_VARIANCE
    codes = codes / np.sqrt(np.where(varied, variance, 1.0))
    classes = classes / classes.std(0, ddof=1)
    return np.where(varied[:, None], (codes.T @ classes / (len(codes) - 1)) ** 2, 0.0)


def _accuracies(split: Split, seed: int) -> npt.NDArray[np.float64]:
    from sklearn.svm import LinearSVC

    matrix = np.empty((split.train_codes.shape[1], split.train_classes.shape[1]))
    for j, k in np.ndindex(*matrix.shape):
        model = LinearSVC(C=0.01, class_weight="balanced", random_state=sklearn_seed(seed))
        model.fit(split.train_codes[:, j : j + 1], split.train_classes[:, k])
        matrix[j, k] = model.score(split.test_codes[:, j : j + 1], split.test_classes[:, k])
    return matrix
