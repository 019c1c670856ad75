"""code_histogram is numpy.histogram2d of every code with every factor."""

import math

import numpy as np
import pytest
import torch

from pyvae import reference
from pyvae.base import native
from pyvae.ops.code_histogram import code_histogram

BACKENDS = [
    "reference",
    pytest.param("native", marks=pytest.mark.skipif(native.load() is not None, reason=str(native.load()))),
]


@pytest.fixture(params=BACKENDS, autouse=True)
def backend(request, monkeypatch):
    monkeypatch.setenv("PYVAE_BACKEND", request.param)
    return request.param


def by_numpy(codes, factors, factor_sizes, bins):
    """Edges [D, bins + 1], and counts; a class is a bin of width 1 about it."""
    edges, counts = [], []
    for column in codes.double().numpy().T:
        tables = []
        for f, size in enumerate(factor_sizes):
            by_class = [bins, np.arange(size + 1) - 0.5]
            table, own, _ = np.histogram2d(column, factors[:, f].numpy(), bins=by_class)
            tables.append(table)
        edges.append(own)
        counts.append(np.concatenate(tables, 1))
    return np.stack(edges), np.stack(counts).astype(np.int64)


def assert_is_numpys(codes, factors, factor_sizes, bins=20):
    found = code_histogram(codes, factors, factor_sizes, bins=bins)
    classes = reference.factor_classes(len(codes), factor_sizes, codes.device) if factors is None else factors
    edges, counts = by_numpy(codes, classes, factor_sizes, bins)
    assert found.low.tolist() == edges[:, 0].tolist()
    assert found.high.tolist() == edges[:, -1].tolist()
    assert found.low.dtype == found.high.dtype == torch.float64
    assert found.counts.dtype == torch.int64
    assert np.array_equal(found.counts.numpy(), counts)
    return found


def codes(rows, columns, seed=0, dtype=torch.float32):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(
        dtype
    )


SIZES = (3, 5, 4, 7)


@pytest.mark.parametrize("bins", [1, 2, 7, 20, 100])
def test_the_grid(bins):
    found = assert_is_numpys(codes(420, 5), None, SIZES, bins)
    for f, size in enumerate(SIZES):
        own = found.counts[..., sum(SIZES[:f]) : sum(SIZES[: f + 1])]
        assert own.sum(1).eq(420 // size).all()


@pytest.mark.parametrize("rows", [1, 2, 1023, 1024, 1025, 3000])
def test_given_factors(rows):
    generator = torch.Generator().manual_seed(rows)
    factors = torch.stack([torch.randint(n, (rows,), generator=generator) for n in SIZES], -1)
    assert_is_numpys(codes(rows, 3), factors, SIZES)
    assert_is_numpys(codes(rows, 3), factors.mT.contiguous().mT, SIZES)


def test_given_and_implied_classes_agree():
    x = codes(420, 5)
    classes = reference.factor_classes(420, SIZES, x.device)
    assert torch.equal(code_histogram(x, classes, SIZES).counts, code_histogram(x, None, SIZES).counts)


@pytest.mark.parametrize(
    "ends", [(0.0, 1.0), (-1.0, 1.0), (0.1, 0.7), (-3.3, 1e-3), (1e6, 1e6 + 3), (1e-30, 3e-30)]
)
@pytest.mark.parametrize("bins", [3, 10, 20, 49])
def test_values_on_and_beside_edges(ends, bins):
    """Every edge as near as float32 comes, and its neighbours."""
    edges = np.linspace(*(float(np.float32(e)) for e in ends), bins + 1).astype(np.float32)
    beside = [np.nextafter(edges, np.float32(side)) for side in (-np.inf, np.inf)]
    values = np.clip(np.concatenate([edges, *beside]), edges[0], edges[-1])
    assert_is_numpys(torch.from_numpy(values)[:, None], None, (len(values),), bins)


def test_an_edge_that_its_quotient_falls_short_of():
    """49 * (1 / 49) < 1 in float64."""
    for step in (3.0, 49.0, 98.0, 103.0, 107.0):
        assert_is_numpys(step * torch.arange(21.0)[:, None], None, (21,))


def test_constant_codes():
    x = torch.stack([torch.full((12,), v) for v in (0.0, 1.0, -2.5, 1e8)], -1)
    found = assert_is_numpys(x, None, (3, 4))
    assert (found.high - found.low).tolist() == [1, 1, 1, 1]
    assert_is_numpys(torch.tensor([[2.0]]), None, (1,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ranges_of_few_steps(dtype):
    """A few float32 apart, and float64 whose edges coincide."""
    one, columns = torch.tensor(1.0, dtype=dtype), []
    for steps in (1, 2, 3, 30):
        x = [one]
        for _ in range(steps):
            x.append(torch.nextafter(x[-1], 2 * one))
        columns.append(torch.stack(x * 31)[:31])
    assert_is_numpys(torch.stack(columns, -1), None, (31,))


def test_denormal_and_huge_ranges():
    x = torch.tensor([[0.0, -3e38], [1e-45, 3e38], [7e-45, 0.0], [3e-45, 1e38]])
    assert_is_numpys(x, None, (4,))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes(dtype):
    assert_is_numpys(codes(420, 5, dtype=dtype), None, SIZES)


def test_layouts():
    x = codes(420, 5)
    expected = code_histogram(x, None, SIZES).counts
    for view in (x.mT.contiguous().mT, x.repeat(1, 2)[:, :5], x.repeat_interleave(2, 0)[::2]):
        assert torch.equal(code_histogram(view, None, SIZES).counts, expected)


def test_not_finite():
    for bad in (math.nan, math.inf, -math.inf):
        x = codes(12, 4)
        x[3, 2] = x[7, 1] = bad
        with pytest.raises(ValueError, match=r"codes: NaN or infinity in dimensions \[1, 2\]"):
            code_histogram(x, None, (3, 4))


def test_wrong_arguments():
    x, factors = codes(12, 4), torch.zeros(12, 2, dtype=torch.int64)
    for wrong, message in (
        ((x[:, 0], None, (3, 4)), r"codes: expected shape \[..., rows, columns\]"),
        ((x[:0], None, (3, 4)), r"codes: expected shape \[N, D\] with N at least 1"),
        ((x, None, (3, 5)), r"codes: expected \[15, D\], the grid of \(3, 5\), got \[12, 4\]"),
        ((x, None, ()), "factor_sizes: expected positive sizes"),
        ((x, None, (12, 0)), "factor_sizes: expected positive sizes"),
        ((x, factors, (3, 4, 1)), r"factors: expected shape \[12, 3\], got \[12, 2\]"),
        ((x, factors + 3, (3, 4)), r"factors: classes of factor 0 must lie in \[0, 3\)"),
        ((x, factors - 1, (3, 4)), r"factors: classes of factor 0 must lie in \[0, 3\)"),
    ):
        with pytest.raises(ValueError, match=message):
            code_histogram(*wrong)
    with pytest.raises(TypeError, match="factors: expected int64"):
        code_histogram(x, factors.int(), (3, 4))
    with pytest.raises(TypeError, match="codes: expected float32"):
        code_histogram(x.long(), None, (3, 4))
    with pytest.raises(ValueError, match="bins: expected at least 1"):
        code_histogram(x, None, (3, 4), bins=0)


@pytest.mark.parametrize("value", [2.0**46, 2.0**50, 2.0**53, 1e17, -3e38])
def test_huge_constants(value):
    """Half a unit to either side is less than a step of float64, or some of it: bins of no width, and no fault."""
    x = torch.full((12, 2), value)
    x[:, 1] = torch.arange(12)
    found = code_histogram(x, None, (3, 4))
    expected = reference.code_histogram(x, None, (3, 4))
    assert torch.equal(found.counts, expected.counts)
    assert found.counts[0].amax(0).tolist() == [4, 4, 4, 3, 3, 3, 3]
    assert (found.low[0], found.high[0]) == (float(x[0, 0]) - 0.5, float(x[0, 0]) + 0.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bins": 2.5}, r"bins: expected a whole number, got 2\.5"),
        ({"factor_sizes": (2.0, 3)}, r"factor_sizes: expected a whole number, got 2\.0"),
        ({"factors": [[0, 1]] * 6}, "factors: expected a tensor, got list"),
        ({"factors": torch.zeros(6, 2)}, "factors: expected int64, got torch.float32"),
        ({"codes": [[0.0]]}, "codes: expected a tensor, got list"),
    ],
)
def test_arguments_of_other_types(change, message):
    arguments = {
        "codes": torch.zeros(6, 2),
        "factors": torch.zeros(6, 2).long(),
        "factor_sizes": (2, 3),
        "bins": 4,
    }
    with pytest.raises(TypeError, match=message):
        code_histogram(**{**arguments, **change})
