"""``code_histogram``: joint counts of every code with every factor, for the mutual information of metrics."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pyvae import reference
from pyvae.backend import take
from pyvae.base.transforms import refuse
from pyvae.reference import CodeHistogram

# counters of one code in the shared memory of a block
MOST_CELLS_CUDA = 12_000


def code_histogram(
    codes: Tensor, factors: Tensor | None, factor_sizes: Sequence[int], *, bins: int = 20
) -> CodeHistogram:
    """Count how often each bin of each code meets each class of each factor.

    Bins are those of ``numpy.histogram2d``: of equal width from a code's least to its largest value, edges in float64,
    a value on an edge goes right, the last bin holds its right edge, the range of a constant code is 1 wide about it.
    The mutual information of codes and factors follows (Locatello et al. 2019, "Challenging common assumptions in the
    unsupervised learning of disentangled representations": 20 bins).

    Args:
        codes: ``[N, D]``, float32, bfloat16, float16 or float64.
        factors: classes int64 ``[N, F]``, each in [0, size). ``None``: row n is point n of the full grid of
            the factors, the last of them running fastest, and nothing is read.
        factor_sizes: number of classes of each factor.
        bins: of each code.

    Returns:
        ``low`` and ``high``, float64 ``[D]``, the ends of the bins; ``counts`` int64 ``[D, bins, sum(factor_sizes)]``,
        classes of the factors side by side.

    Raises:
        TypeError: wrong dtype. ValueError: wrong shape, device or class; NaN or infinity, with its code dimensions.
        RuntimeError: inside a transform of torch that has no values or asks for derivatives.

    >>> import torch
    >>> code_histogram(torch.tensor([[0.0], [1.0], [2.0], [3.0]]), None, (2, 2), bins=2).counts
    tensor([[[2, 0, 1, 1],
             [0, 2, 1, 1]]])
    """
    refuse("code_histogram", codes)
    reference.check_histogram(codes, factors, factor_sizes, bins)
    cells = bins * sum(factor_sizes)
    # float64 is for the reference: the edges of a narrow range may coincide, which only a search gets right
    too_large = (codes.is_cuda and cells > MOST_CELLS_CUDA) or cells >= 2**31
    if too_large or take("code_histogram", codes) == "reference":
        return reference.code_histogram(codes, factors, factor_sizes, bins=bins)
    codes = codes.detach().float()
    edges = reference.bin_edges(codes, bins)
    # half a unit to either side is nothing to a constant above 2^48
    if not bool((edges.diff() > 0).all()):
        return reference.code_histogram(codes, factors, factor_sizes, bins=bins)
    counts = torch.ops.pyvae_native.code_histogram(codes, factors, list(factor_sizes), edges)
    return CodeHistogram(edges[:, 0].clone(), edges[:, -1].clone(), counts)
