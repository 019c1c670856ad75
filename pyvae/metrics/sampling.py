"""What metrics draw: points of a table and splits of them, as functions of (seed, draw)."""

from collections.abc import Collection
from enum import IntEnum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyvae.metrics.table import CodeTable
from pyvae.random import Stream, bits, data_order, make_key

_DRAWS = 64


class Draw(IntEnum):
    """What is drawn: the low part of a key's step. Changing a number changes the scores of every seed."""

    MIG = 0
    CHEN_NOISE = 1
    CHEN_POINTS = 2
    FACTOR_VAE_VARIANCE = 3
    FACTOR_VAE_FACTOR = 4
    FACTOR_VAE_POINTS = 5
    BETA_VAE_FACTOR = 6
    BETA_VAE_FIRST = 7
    BETA_VAE_SECOND = 8
    DCI = 9
    SAP = 10
    MODULARITY = 11
    EXPLICITNESS = 12
    IRS = 13
    UDR = 14
    UNSUPERVISED = 15


class Split(NamedTuple):
    """Codes float64 ``[n, D]`` and factor classes int64 ``[n, F]`` to train on and to test on."""

    train_codes: npt.NDArray[np.float64]
    train_classes: npt.NDArray[np.int64]
    test_codes: npt.NDArray[np.float64]
    test_classes: npt.NDArray[np.int64]


def draw_key(seed: int, draw: Draw, part: int = 0) -> Tensor:
    """Key ``[2]`` of one draw; ``part`` numbers the draws of a kind."""
    return make_key(seed, part * _DRAWS + draw)


def draw_points(count: int | None, size: int, key: Tensor) -> Tensor:
    """int64 ``[count]``: different rows in random order; None means all ``size`` rows, in order.

    Raises:
        ValueError: fewer than two points, or more than there are.
    """
    if count is None:
        return torch.arange(size)
    if count < 2:
        raise ValueError(f"points: at least 2 are needed, got {count}")
    if count > size:
        raise ValueError(
            f"points: {count} asked for, the table has {size} rows: ask for fewer, or for all (None)"
        )
    # data_order draws from the stream of the training batches: a seed of its own keeps metrics apart from them
    low, high = bits(key, 1, 2, Stream.METRIC)[0]
    return data_order(torch.stack([low | high << 32, torch.zeros_like(low)]), torch.arange(count), size)


def draw_integers(size: int, rows: int, columns: int, key: Tensor) -> Tensor:
    """int64 ``[rows, columns]``: uniform in [0, size) up to 2**-32."""
    return bits(key, rows, columns, Stream.METRIC) * size >> 32


def draw_split(
    table: CodeTable, train: int, test: int, without: Collection[str], seed: int, draw: Draw
) -> tuple[list[int], Split]:
    """The positions of the kept factors, and disjoint points to train and to test on.

    Raises:
        ValueError: more points than the table has, or a kept factor that does not vary.
    """
    for name, count in (("train", train), ("test", test)):
        if count < 2:
            raise ValueError(f"{name}: at least 2 points are needed, got {count}")
    if train + test > len(table):
        raise ValueError(f"train + test: {train} + {test} points asked for, the table has {len(table)} rows")
    kept = table.kept(without)
    rows = draw_points(train + test, len(table), draw_key(seed, draw))
    codes, classes = table.mu[rows].double().numpy(), table.classes(rows)[:, kept].numpy()
    check_varied(classes[:train], table.names(kept))
    return kept, Split(codes[:train], classes[:train], codes[train:], classes[train:])


def check_varied(classes: npt.NDArray[np.int64], names: tuple[str, ...]) -> None:
    """Raise ValueError unless every factor, a column of ``classes``, takes two classes at least."""
    for name, constant in zip(names, (classes == classes[0]).all(0), strict=True):
        if constant:
            raise ValueError(
                f"factor {name} has one class among the points: leave it out with without={name!r}"
            )


def sklearn_seed(seed: int) -> int:
    """The seed as scikit-learn takes it."""
    return seed % 2**32
