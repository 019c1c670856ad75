"""What metrics draw: points of a table and splits of them, as functions of (seed, draw)."""

from collections.abc import Collection
from enum import IntEnum
from numbers import Integral
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyvae.metrics.layout import Layout, TooFewCodes, check_count
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
    TOTAL_CORRELATION_ROWS = 16
    TOTAL_CORRELATION_NOISE = 17


class Split(NamedTuple):
    """Codes float64 ``[n, D]`` and factor classes int64 ``[n, F]`` to train on and to test on."""

    train_codes: npt.NDArray[np.float64]
    train_classes: npt.NDArray[np.int64]
    test_codes: npt.NDArray[np.float64]
    test_classes: npt.NDArray[np.int64]


def draw_key(seed: int, draw: Draw, part: int = 0) -> Tensor:
    """Key ``[2]`` of one draw; ``part`` numbers the draws of a kind."""
    if not isinstance(seed, Integral):
        raise TypeError(f"seed: expected a whole number, got {seed!r}")
    return make_key(int(seed), part * _DRAWS + draw)


def draw_points(count: int | None, size: int, key: Tensor) -> Tensor:
    """int64 ``[count]``: different rows in random order; None means all ``size`` rows, in order.

    Raises:
        TypeError: not a whole number. ValueError: fewer than two points, or more than there are.
    """
    if size < 2:
        raise TooFewCodes(f"points: at least 2 are needed, the table has {size} row")
    if count is None:
        return torch.arange(size)
    check_count("points", count, 2)
    if count > size:
        raise TooFewCodes(
            f"points: {count} asked for, the table has {size} rows: ask for fewer, or for all (None)"
        )
    # data_order draws from the stream of the training batches: a seed of its own keeps metrics apart from them
    low, high = bits(key, 1, 2, Stream.METRIC)[0]
    return data_order(torch.stack([low | high << 32, torch.zeros_like(low)]), torch.arange(count), size)


def draw_integers(size: int, rows: int, columns: int, key: Tensor) -> Tensor:
    """int64 ``[rows, columns]``: uniform in [0, size) up to 2**-32."""
    return bits(key, rows, columns, Stream.METRIC) * size >> 32


def check_split(
    layout: Layout, train: int, test: int, without: Collection[str], seed: int, draw: Draw
) -> tuple[list[int], Tensor]:
    """The positions of the kept factors, and different rows ``[train + test]`` to train and to test on.

    Raises:
        TypeError: a number of points that is not whole.
        ValueError: more points than the table has, or a kept factor that does not vary in those to train on.
    """
    kept = layout.kept(without)
    for name, count in (("train", train), ("test", test)):
        check_count(name, count, 2)
    if train + test > len(layout):
        raise TooFewCodes(
            f"train + test: {train} + {test} points asked for, the table has {len(layout)} rows"
        )
    rows = draw_points(train + test, len(layout), draw_key(seed, draw))
    layout.require_varied(rows[:train], kept)
    return kept, rows


def split_codes(table: CodeTable, kept: list[int], rows: Tensor, train: int) -> Split:
    """The codes and classes of rows, the first ``train`` of them to train on."""
    codes, classes = table.mu[rows].double().numpy(), table.classes(rows)[:, kept].numpy()
    return Split(codes[:train], classes[:train], codes[train:], classes[train:])


def sklearn_seed(seed: int) -> int:
    """The seed as scikit-learn takes it."""
    return seed % 2**32
