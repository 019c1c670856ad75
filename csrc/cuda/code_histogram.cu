#include <algorithm>
#include <optional>
#include <vector>

#include "launch.h"
#include "code_histogram.cuh"

namespace {

using namespace pyvae;

constexpr int64_t kSharedBytes = 96 * 1024;

Tensor histogram(const Tensor& given_codes, const std::optional<Tensor>& given_factors,
                 std::vector<int64_t> factor_sizes, const Tensor& given_edges) {
  check(given_codes, "codes", ScalarType::Float, 2);
  check(given_edges, "edges", ScalarType::Double, 2);
  const torch::stable::accelerator::DeviceGuard guard(given_codes.get_device_index());
  const Tensor codes = dense(given_codes), edges = dense(given_edges);
  STD_TORCH_CHECK(!factor_sizes.empty() && factor_sizes.size() <= kMostFactors, "factor_sizes: 1 to ", kMostFactors);
  STD_TORCH_CHECK(edges.size(0) == codes.size(1) && edges.size(1) >= 2, "edges: expected [D, bins + 1]");
  std::optional<Tensor> factors;
  if (given_factors) {
    check(*given_factors, "factors", ScalarType::Long, 2);
    STD_TORCH_CHECK(given_factors->size(0) == codes.size(0) &&
                        given_factors->size(1) == static_cast<int64_t>(factor_sizes.size()),
                    "factors: expected [N, F]");
    factors = dense(*given_factors);
  }
  Layout layout = layout_of(factor_sizes.data(), static_cast<int>(factor_sizes.size()), codes.size(0), codes.size(1),
                            edges.size(1) - 1);
  const int64_t points = layout.stride[0] * layout.size[0];
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
