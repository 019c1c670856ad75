"""Device code, run by a host compiler a thread at a time, is the reference: its indices need no GPU to be tested."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from pyvae import reference
from pyvae.random import bits, make_key

HERE = Path(__file__).resolve().parent
COMPILER = shutil.which("g++")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="g++ is not on the PATH")

HARNESS = """
#include "cuda_on_host.h"
#include "../csrc/cuda/permute_dims.cuh"
namespace { uint32_t words[1 << 16]; }
extern "C" void permute(const int32_t* first, const int32_t* z, const int64_t* key, int32_t* out, int64_t* order,
                        int64_t members, int64_t batch, int64_t columns, int64_t sharing, int64_t stream) {
  for (blockIdx.x = 0; blockIdx.x < members * columns; ++blockIdx.x)
    permute_kernel<int32_t>(first, z, key, out, order, batch, columns, sharing, stream);
}
""", """
#include "cuda_on_host.h"
#include "../csrc/cuda/code_histogram.cuh"
namespace { double edges[1 << 16]; }
extern "C" void histogram(const float* codes, const int64_t* given, const double* edges_, int64_t* counts, int64_t rows,
                          int64_t columns, const int64_t* sizes, int64_t factors, int64_t bins, int64_t group,
                          int64_t rows_of_block) {
  Layout layout = layout_of(sizes, factors, rows, columns, bins);
  layout.group = group;
  for (blockIdx.y = 0; blockIdx.y < (columns + group - 1) / group; ++blockIdx.y)
    for (blockIdx.x = 0; blockIdx.x < (rows + rows_of_block - 1) / rows_of_block; ++blockIdx.x)
      histogram_kernel(codes, given, edges_, reinterpret_cast<unsigned long long*>(counts), layout, rows_of_block);
}
""", """
#include "cuda_on_host.h"
#include "../csrc/cuda/posterior_entropy.cuh"
#include <vector>
extern "C" void posterior_density(const float* mu, const float* logvar, const double* low, const double* step,
                                  double* density, int64_t columns, int64_t rows, const int64_t* sizes, int64_t factors,
                                  int64_t nodes, int64_t kernel) {
  Classes classes{};
  const Plan plan = plan_of(sizes, factors, rows, nodes, classes);
  const int64_t parts = int64_t(columns) * plan.slices * nodes;
  std::vector<float> each(parts * plan.inner, NAN), second(parts * plan.pieces * plan.middle, 0.0f);
  std::vector<float> rest(columns * plan.pieces * plan.outer * nodes, NAN);
  const auto run = kernel == 4 ? density_kernel<4> : kernel == 8 ? density_kernel<8>
                 : kernel == 16 ? density_kernel<16> : density_kernel<32>;
  const unsigned tiles = (nodes + kNodes - 1) / kNodes;
  for (blockIdx.y = 0; blockIdx.y < columns; ++blockIdx.y)
    for (blockIdx.x = 0; blockIdx.x < tiles * plan.slices * plan.pieces; ++blockIdx.x)
      run(mu, logvar, low, step, each.data(), second.data(), rest.data(), plan);
  blockIdx.y = 0;
  for (blockIdx.x = 0; blockIdx.x < columns * classes.total * nodes + 5; ++blockIdx.x)
    collect_kernel(each.data(), second.data(), rest.data(), density, columns, plan, classes);
}
"""  # fmt: skip


@pytest.fixture(scope="module")
def device_code(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cuda_on_host")
    libraries = []
    for i, text in enumerate(HARNESS):
        source, library = folder / f"{i}.cpp", folder / f"{i}.so"
        source.write_text(
            text.replace('"cuda_on_host.h"', f'"{HERE}/cuda_on_host.h"').replace('"../', f'"{HERE}/../')
        )
        # bounds are checked as well as they can be: any index past an array is a fault or a wrong result
        options = ["-std=c++17", "-O1", "-ffp-contract=off", "-w", "-shared", "-fPIC", "-include", "cmath"]
        subprocess.run([COMPILER, *options, source, "-o", library], check=True)
        libraries.append(ctypes.CDLL(str(library)))
    return libraries


def call(function, *args):
    """Tensors and lists by their addresses, integers as int64."""
    lists = [(ctypes.c_int64 * len(a))(*a) if isinstance(a, tuple) else a for a in args]
    function(
        *(
            ctypes.c_void_p(a.data_ptr())
            if isinstance(a, torch.Tensor)
            else ctypes.c_int64(a)
            if isinstance(a, int)
            else a
            for a in lists
        )
    )


@pytest.mark.parametrize("with_first", [True, False])
@pytest.mark.parametrize("shape", [(1, 1, 1), (4, 64, 10), (2, 65, 7), (6, 300, 3)])
def test_permute_dims(device_code, shape, with_first):
    members, batch, columns = shape
    z, first = torch.randint(2**31 - 1, (2, *shape), dtype=torch.int32)
    keys = torch.stack([make_key(3, 2**40), make_key(-9, 1)])[: 2 if members % 2 == 0 else 1]
    sharing = members // len(keys)
    out = torch.full((members, (1 + with_first) * batch, columns), -1, dtype=torch.int32)
    order = torch.full(shape, -1)
    given = first if with_first else None
    call(device_code[0].permute, given, z, keys, out, order, members, batch, columns, sharing, 1)
    words = bits(keys, sharing * batch, columns, 1).reshape(shape)
    assert torch.equal(order, words.argsort(dim=-2, stable=True))
    expected = z.gather(-2, order)
    assert torch.equal(out, torch.cat([first, expected], -2) if with_first else expected)


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("group", [1, 2, 5])
def test_code_histogram(device_code, given, group):
    sizes, rows = (3, 5, 4, 7), 420
    codes = torch.randn(rows, 5, generator=torch.Generator().manual_seed(1))
    classes = reference.factor_classes(rows, sizes, codes.device)
    classes = classes[torch.randperm(rows)].contiguous() if given else None
    edges = reference.bin_edges(codes, 20)
    counts = torch.zeros(5, 20, sum(sizes), dtype=torch.int64)
    call(device_code[1].histogram, codes, classes, edges, counts, rows, 5, sizes, len(sizes), 20, group, 100)
    assert torch.equal(counts, reference.code_histogram(codes, classes, sizes).counts)


@pytest.mark.parametrize("nodes", [16, 35])
@pytest.mark.parametrize(
    ("sizes", "kernel"),
    [
        ((1,), 4), ((70,), 32), ((3, 2), 8), ((2, 3, 4), 4), ((3, 1, 2, 7), 8), ((2, 3, 2, 3, 16), 16),
        ((2, 70), 32), ((300, 33), 32), ((7, 300, 2), 4), ((2, 2, 600, 3), 4),
    ],
    ids=str,
)  # fmt: skip
def test_posterior_density(device_code, sizes, kernel, nodes):
    rows = int(torch.tensor(sizes).prod())
    mu, logvar = torch.randn(2, 3, rows, generator=torch.Generator().manual_seed(2))
    low, step = reference.quadrature_grid(mu, logvar, nodes)
    density = torch.full((3, sum(sizes), nodes), float("nan"), dtype=torch.float64)
    call(
        device_code[2].posterior_density,
        mu,
        logvar,
        low,
        step,
        density,
        3,
        rows,
        sizes,
        len(sizes),
        nodes,
        kernel,
    )
    exact = reference.posterior_density(mu.double(), logvar.double(), low, step, list(sizes), nodes)
    torch.testing.assert_close(density, exact, rtol=1e-5, atol=1e-12)
