"""Disentanglement, completeness and informativeness."""

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from pyvae.metrics.layout import Layout, check_layout
from pyvae.metrics.sampling import Draw, check_split, sklearn_seed, split_codes
from pyvae.metrics.table import CodeTable

Array = npt.NDArray[np.float64]

# keeps the entropy of a code or factor of no importance at its maximum: disentanglement 0
_TINY = 1e-11


class Dci(NamedTuple):
    """Disentanglement (the score), completeness, informativeness (test accuracy), and their parts.

    ``importance [D, F]``, ``per_code [D]`` and ``per_factor [F]``: the disentanglement and completeness of each.
    """

    score: float
    completeness: float
    informativeness: float
    informativeness_train: float
    importance: Array
    per_code: Array
    per_factor: Array
    factors: tuple[str, ...]


def dci(
    table: CodeTable,
    *,
    seed: int = 0,
    train: int = 10_000,
    test: int = 5_000,
    classifier: Callable[[], Any] | None = None,
    without: Collection[str] = (),
    progress: bool = True,
) -> Dci:
    """Disentanglement, completeness, informativeness of Eastwood & Williams 2018.

    A classifier per factor says how important each latent is to it: the importance matrix R. Disentanglement is the
    mean over latents of 1 - H(R_j. / sum) / log F weighted by the latent's share of R; completeness the mean over
    factors of 1 - H(R_.k / sum) / log D weighted likewise; informativeness the mean accuracy on test points.

    The authors' code (cianeastwood/qedr, quantify.ipynb) averages completeness over factors without weights;
    ``per_factor.mean()`` is theirs, the weights are disentanglement_lib's. The two are one where the importances of
    every factor add up to the same, as those of the default classifier do.

    Defaults are those of disentanglement_lib (unsupervised_study_v1): scikit-learn's GradientBoostingClassifier, whose
    trees are one per class and round, so that it takes minutes. The paper uses a lasso and a random forest, and the
    error of prediction in place of the accuracy; ``classifier`` takes either's classifier.

    A latent that is constant over the points to train on is of no importance.

    Args:
        table: N codes.
        seed: of the points and of the classifier.
        train: points to train on.
        test: other points, to measure the informativeness on.
        classifier: makes a scikit-learn classifier that has ``feature_importances_`` or ``coef_`` once trained.
        without: names of factors to leave out.
        progress: whether to show a progress bar.

    Returns:
        disentanglement, completeness, informativeness, each in [0, 1], and their parts.

    Raises:
        ValueError: more points than rows, fewer than two latents or factors, an unknown factor, or one that does not
            vary.
    """
    from tqdm import tqdm

    kept, rows = check_dci(table, seed=seed, train=train, test=test, without=without)
    split = split_codes(table, kept, rows, train)
    make = classifier or _boosting(seed)
    # a linear classifier weighs a constant like an intercept
    varied = (split.train_codes != split.train_codes[0]).any(0)
    importance, accuracies = [], []
    for k in tqdm(range(len(kept)), desc="dci", unit="factor", disable=not progress):
        model = make().fit(split.train_codes, split.train_classes[:, k])
        importance.append(_importance(model) * varied)
        accuracies.append(
            (
                (model.predict(split.test_codes) == split.test_classes[:, k]).mean(),
                (model.predict(split.train_codes) == split.train_classes[:, k]).mean(),
            )
        )
    matrix = np.stack(importance, -1)
    per_code, per_factor = 1 - _relative_entropy(matrix), 1 - _relative_entropy(matrix.T)
    informativeness, informativeness_train = np.mean(accuracies, 0)
    return Dci(
        float(per_code @ _shares(matrix)),
        float(per_factor @ _shares(matrix.T)),
        float(informativeness),
        float(informativeness_train),
        matrix,
        per_code,
        per_factor,
        table.names(kept),
    )


def check_dci(
    layout: Layout, *, seed: int, train: int, test: int, without: Collection[str]
) -> tuple[list[int], Tensor]:
    """The positions of the kept factors and the rows to read, if the metric can be computed; else as `dci` raises."""
    check_layout(layout)
    layout.require_latents("dci")
    layout.require_factors("dci", layout.kept(without))
    return check_split(layout, train, test, without, seed, Draw.DCI)


def _boosting(seed: int) -> Callable[[], Any]:
    from sklearn.ensemble import GradientBoostingClassifier

    return lambda: GradientBoostingClassifier(random_state=sklearn_seed(seed))


def _importance(model: Any) -> Array:
    """``[D]``; of a linear classifier, the mean magnitude of a latent's weights over classes."""
    if hasattr(model, "feature_importances_"):
        return np.abs(model.feature_importances_)
    return np.abs(model.coef_).mean(0)


def _relative_entropy(rows: Array) -> Array:
    """Entropy of each row, normalised to a distribution, relative to the largest possible."""
    # weights of a linear classifier are small where codes are large
    p = rows / (rows.max() or 1.0) + _TINY
    p = p / p.sum(1, keepdims=True)
    return -(p * np.log(p)).sum(1) / np.log(rows.shape[1])


def _shares(rows: Array) -> Array:
    """Share of each row in the sum of all; equal when all are 0."""
    total = rows.sum()
    return rows.sum(1) / total if total > 0 else np.full(len(rows), 1 / len(rows))
