#include <algorithm>
#include <optional>
#include <vector>

#include "../common/binning.h"
#include "launch.h"

namespace {

using namespace pyvae;

constexpr int kMostFactors = 16;
constexpr int64_t kSharedBytes = 96 * 1024;

struct Layout {
  int64_t rows;
  int columns, factors, bins, classes, group;  // group: dimensions whose counters one block holds
  int64_t stride[kMostFactors];
  int size[kMostFactors], offset[kMostFactors];
};

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

Tensor histogram(const Tensor& given_codes, const std::optional<Tensor>& given_factors,
                 std::vector<int64_t> factor_sizes, const Tensor& given_edges) {
  check(given_codes, "codes", ScalarType::Float, 2);
  check(given_edges, "edges", ScalarType::Double, 2);
  const torch::stable::accelerator::DeviceGuard guard(given_codes.get_device_index());
  const Tensor codes = dense(given_codes), edges = dense(given_edges);
  STD_TORCH_CHECK(factor_sizes.size() <= kMostFactors, "factor_sizes: at most ", kMostFactors);
  STD_TORCH_CHECK(edges.size(0) == codes.size(1) && edges.size(1) >= 2, "edges: expected [D, bins + 1]");
  std::optional<Tensor> factors;
  if (given_factors) {
    check(*given_factors, "factors", ScalarType::Long, 2);
    STD_TORCH_CHECK(given_factors->size(0) == codes.size(0) &&
                        given_factors->size(1) == static_cast<int64_t>(factor_sizes.size()),
                    "factors: expected [N, F]");
    factors = dense(*given_factors);
  }
  Layout layout{};
  layout.rows = codes.size(0);
  layout.columns = static_cast<int>(codes.size(1));
  layout.factors = static_cast<int>(factor_sizes.size());
  layout.bins = static_cast<int>(edges.size(1) - 1);
  int64_t points = 1;
  for (int f = layout.factors - 1; f >= 0; --f) {
    layout.stride[f] = points;
    points *= factor_sizes[f];
  }
  for (int f = 0; f < layout.factors; ++f) {
    layout.size[f] = static_cast<int>(factor_sizes[f]);
    layout.offset[f] = layout.classes;
    layout.classes += layout.size[f];
  }
  STD_TORCH_CHECK(factors || points == layout.rows, "codes: the grid of the factors has ", points, " points");
  const int64_t column_bytes = static_cast<int64_t>(layout.bins) * layout.classes * 4 + (layout.bins + 1) * 8;
  STD_TORCH_CHECK(column_bytes <= kSharedBytes, "bins: the counters of a code do not fit into shared memory");
  layout.group = static_cast<int>(std::min<int64_t>(layout.columns, kSharedBytes / column_bytes));
  Tensor counts = torch::stable::new_zeros(codes, {layout.columns, layout.bins, layout.classes}, ScalarType::Long);
  const int64_t rows_of_block = std::max<int64_t>(1024, (layout.rows + 511) / 512);
  const dim3 grid(static_cast<unsigned>((layout.rows + rows_of_block - 1) / rows_of_block),
                  static_cast<unsigned>((layout.columns + layout.group - 1) / layout.group));
  const int bytes = static_cast<int>(layout.group * column_bytes);
  STD_CUDA_CHECK(cudaFuncSetAttribute(histogram_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  histogram_kernel<<<grid, 512, bytes, stream_of(codes)>>>(
      codes.const_data_ptr<float>(), factors ? factors->const_data_ptr<int64_t>() : nullptr,
      edges.const_data_ptr<double>(), reinterpret_cast<unsigned long long*>(counts.mutable_data_ptr<int64_t>()), layout,
      rows_of_block);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return counts;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pyvae_native, CUDA, m) { m.impl("code_histogram", TORCH_BOX(&histogram)); }
