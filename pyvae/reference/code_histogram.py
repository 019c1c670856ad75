"""``code_histogram``: how often each bin of each code meets each class of each factor."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pyvae.base.checks import check_columns, check_device
from pyvae.base.transforms import refuse
from pyvae.reference.grid import check_factor_sizes, check_whole, factor_classes


class CodeHistogram(NamedTuple):
    """Ends of the bins of each code, float64 ``[D]``, and counts int64 ``[D, bins, sum(factor_sizes)]``."""

    low: Tensor
    high: Tensor
    counts: Tensor


def check_histogram(codes: Tensor, factors: Tensor | None, factor_sizes: Sequence[int], bins: int) -> None:
    """Raise unless the factors fit the codes; reads the factors, so waits for the device."""
    check_columns("codes", codes)
    if codes.ndim != 2 or len(codes) == 0:
        raise ValueError(f"codes: expected shape [N, D] with N at least 1, got {list(codes.shape)}")
    check_factor_sizes(factor_sizes)
    check_whole("bins", bins)
    if bins < 1:
        raise ValueError(f"bins: expected at least 1, got {bins}")
    if factors is None:
        points = math.prod(factor_sizes)
        if len(codes) != points:
            raise ValueError(
                f"codes: expected [{points}, D], the grid of {tuple(factor_sizes)}, got {list(codes.shape)}"
            )
        return
    if not isinstance(factors, Tensor):
        raise TypeError(f"factors: expected a tensor, got {type(factors).__name__}")
    if factors.dtype != torch.int64:
        raise TypeError(f"factors: expected int64, got {factors.dtype}")
    if factors.shape != (len(codes), len(factor_sizes)):
        want = [len(codes), len(factor_sizes)]
        raise ValueError(f"factors: expected shape {want}, got {list(factors.shape)}")
    check_device("factors", factors, "codes", codes)
    low, high = torch.aminmax(factors, dim=0)
    for f, (least, most) in enumerate(zip(low.tolist(), high.tolist(), strict=True)):
        if least < 0 or most >= factor_sizes[f]:
            raise ValueError(f"factors: classes of factor {f} must lie in [0, {factor_sizes[f]})")


def bin_edges(codes: Tensor, bins: int) -> Tensor:
    """numpy.histogram's edges float64 [D, bins + 1], bit for bit: those of numpy.linspace from least to largest code.

    Raises:
        ValueError: a code is not finite.
    """
    low, high = (end.double() for end in torch.aminmax(codes, dim=0))
    finite = torch.isfinite(low) & torch.isfinite(high)
    if not bool(finite.all()):
        raise ValueError(f"codes: NaN or infinity in dimensions {(~finite).nonzero().flatten().tolist()}")
    constant = low == high
    low, high = torch.where(constant, low - 0.5, low), torch.where(constant, high + 0.5, high)
    width = (high - low).unsqueeze(-1)
    index = torch.arange(bins + 1, dtype=torch.float64, device=codes.device)
    step = width / bins
    # a range of few denormals has a step of zero
    edges = torch.where(step == 0, index / bins * width, index * step) + low.unsqueeze(-1)
    edges[:, -1] = high
    return edges


def code_histogram(
    codes: Tensor, factors: Tensor | None, factor_sizes: Sequence[int], *, bins: int = 20
) -> CodeHistogram:
    """Specification of :func:`pyvae.code_histogram`."""
    refuse("code_histogram", codes)
    check_histogram(codes, factors, factor_sizes, bins)
    edges = bin_edges(codes, bins)
    # on an edge to the right, on the last one to the left
    binned = (
        torch.searchsorted(edges, codes.double().mT.contiguous(), right=True).sub_(1).clamp_(max=bins - 1)
    )
    if factors is None:
        factors = factor_classes(len(codes), factor_sizes, codes.device)
    tables = []
    for f, size in enumerate(factor_sizes):
        cells = [torch.bincount(b * size + factors[:, f], minlength=bins * size) for b in binned]
        tables.append(torch.stack(cells).unflatten(-1, (bins, size)))
    return CodeHistogram(edges[:, 0].clone(), edges[:, -1].clone(), torch.cat(tables, -1))
