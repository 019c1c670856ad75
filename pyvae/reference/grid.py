"""The grid of a data set's factors: one row for each combination of their classes, the last factor running fastest."""

import math
from collections.abc import Sequence
from numbers import Integral

import torch
from torch import Tensor


def check_whole(name: str, value: object) -> None:
    """Raise TypeError unless an argument is a whole number."""
    if isinstance(value, bool) or not isinstance(value, Integral | torch.SymInt):
        raise TypeError(f"{name}: expected a whole number, got {value!r}")


def check_factor_sizes(factor_sizes: Sequence[int]) -> None:
    """Raise unless there is a factor and each has a class."""
    for size in factor_sizes:
        check_whole("factor_sizes", size)
    if not factor_sizes or min(factor_sizes) < 1:
        raise ValueError(f"factor_sizes: expected positive sizes, got {list(factor_sizes)}")


def factor_classes(rows: int, factor_sizes: Sequence[int], device: torch.device) -> Tensor:
    """Classes int64 [rows, F] of the points of the grid; the last factor runs fastest."""
    index, columns = torch.arange(rows, device=device), []
    stride = math.prod(factor_sizes)
    for size in factor_sizes:
        stride //= size
        columns.append(index // stride % size)
    return torch.stack(columns, -1)
