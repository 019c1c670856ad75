// Device code alone, free of torch and of CUDA's headers, so that a host compiler can run it too.
#pragma once
#include "../common/binning.h"

namespace {

using namespace pyvae;

constexpr int kMostFactors = 16;

struct Layout {
  int64_t rows;
  int columns, factors, bins, classes, group;  // group: dimensions whose counters one block holds
  int64_t stride[kMostFactors];
  int size[kMostFactors], offset[kMostFactors];
};

inline Layout layout_of(const int64_t* factor_sizes, int factors, int64_t rows, int64_t columns, int64_t bins) {
  Layout layout{};
  layout.rows = rows;
  layout.columns = static_cast<int>(columns);
  layout.factors = factors;
  layout.bins = static_cast<int>(bins);
  int64_t points = 1;
  for (int f = factors - 1; f >= 0; --f) {
    layout.stride[f] = points;
    points *= factor_sizes[f];
  }
  for (int f = 0; f < factors; ++f) {
    layout.size[f] = static_cast<int>(factor_sizes[f]);
    layout.offset[f] = layout.classes;
    layout.classes += layout.size[f];
  }
  return layout;
}

// Counters in shared memory, integers, so that the order of the additions does not matter.
__global__ void __launch_bounds__(512)
    histogram_kernel(const float* __restrict__ codes, const int64_t* __restrict__ given,
                     const double* __restrict__ all_edges, unsigned long long* __restrict__ counts, Layout layout,
                     int64_t rows_of_block) {
  extern __shared__ double edges[];
  const int first_column = blockIdx.y * layout.group, group = min(layout.group, layout.columns - first_column);
  const int cells = layout.bins * layout.classes, per_column = layout.bins + 1;
  int* counters = reinterpret_cast<int*>(edges + layout.group * per_column);
  for (int i = threadIdx.x; i < group * per_column; i += blockDim.x) edges[i] = all_edges[first_column * per_column + i];
  for (int i = threadIdx.x; i < group * cells; i += blockDim.x) counters[i] = 0;
  __syncthreads();
  const int64_t first_row = blockIdx.x * rows_of_block;
  const int64_t n = min(rows_of_block, layout.rows - first_row);
  for (int64_t i = threadIdx.x; i < n * group; i += blockDim.x) {
    const int64_t row = first_row + i / group;
    const int column = static_cast<int>(i % group);
    const double* own = edges + column * per_column;
    const int bin = bin_of(codes[row * layout.columns + first_column + column], own,
                           layout.bins / (own[layout.bins] - own[0]), layout.bins);
    int* cell = counters + column * cells + bin * layout.classes;
    for (int f = 0; f < layout.factors; ++f) {
      const int64_t c = given ? given[row * layout.factors + f] : row / layout.stride[f] % layout.size[f];
      atomicAdd(cell + layout.offset[f] + static_cast<int>(c), 1);
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < group * cells; i += blockDim.x) {
    if (counters[i]) atomicAdd(counts + static_cast<int64_t>(first_column) * cells + i, counters[i]);
  }
}

}  // namespace
