"""A fixed part of a data set, for what takes too long on all of it."""

import torch
from torch import Tensor

from pyvae.data.dataset import Dataset
from pyvae.random import data_order, make_key

IMAGES = 4096
_SEED = 0


def subset(dataset: Dataset, count: int = IMAGES) -> Tensor:
    """Indices int64 of at most ``count`` images: the first of a fixed keyed permutation."""
    size = len(dataset)
    return data_order(make_key(_SEED), torch.arange(min(count, size)), size)
