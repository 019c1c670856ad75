#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "../check.h"
#include "../common/binning.h"
#include "clones.h"

namespace {

using namespace pyvae;

constexpr int64_t kRows = 1024;

PYVAE_CLONES void bin_column(const float* codes, int64_t stride, int n, const double* edges, double per_bin, int bins,
                             int32_t* __restrict cell, int32_t cells_per_bin) {
#pragma omp simd
  for (int i = 0; i < n; ++i) cell[i] = bin_of(codes[i * stride], edges, per_bin, bins) * cells_per_bin;
}

// Class of each row of a block under one factor, offset to the factor's place among the cells.
void classes_of(const int64_t* factors, int64_t factor_count, int64_t f, int64_t first, int64_t n, int64_t stride,
                int64_t size, int32_t offset, int32_t* out) {
  if (factors) {
    for (int64_t i = 0; i < n; ++i) {
      out[i] = offset + static_cast<int32_t>(factors[(first + i) * factor_count + f]);
    }
    return;
  }
  int64_t within = first % stride, c = first / stride % size;
  for (int64_t i = 0; i < n; ++i) {
    out[i] = offset + static_cast<int32_t>(c);
    if (++within == stride) {
      within = 0;
      c = c + 1 == size ? 0 : c + 1;
    }
  }
}

Tensor histogram(const Tensor& given_codes, const std::optional<Tensor>& given_factors,
                 std::vector<int64_t> factor_sizes, const Tensor& given_edges) {
  check(given_codes, "codes", ScalarType::Float, 2);
  check(given_edges, "edges", ScalarType::Double, 2);
  const Tensor codes = dense(given_codes), edges = dense(given_edges);
  const int64_t rows = codes.size(0), columns = codes.size(1), bins = edges.size(1) - 1;
  const int64_t factor_count = static_cast<int64_t>(factor_sizes.size());
  STD_TORCH_CHECK(edges.size(0) == columns && bins >= 1, "edges: expected [D, bins + 1]");
  std::optional<Tensor> factors;
  if (given_factors) {
    check(*given_factors, "factors", ScalarType::Long, 2);
    STD_TORCH_CHECK(given_factors->size(0) == rows && given_factors->size(1) == factor_count, "factors: [N, F]");
    factors = dense(*given_factors);
  }
  std::vector<int64_t> strides(factor_sizes.size()), offsets(factor_sizes.size());
  int64_t points = 1, classes = 0;
  for (int64_t f = factor_count - 1; f >= 0; --f) {
    strides[f] = points;
    points *= factor_sizes[f];
  }
  for (int64_t f = 0; f < factor_count; ++f) {
    offsets[f] = classes;
    classes += factor_sizes[f];
  }
  STD_TORCH_CHECK(factors || points == rows, "codes: the grid of the factors has ", points, " points, got ", rows);
  STD_TORCH_CHECK(bins * classes < (int64_t(1) << 31), "bins: too many cells");
  Tensor counts = torch::stable::new_zeros(codes, {columns, bins, classes}, ScalarType::Long);
  const float* x = codes.const_data_ptr<float>();
  const double* all_edges = edges.const_data_ptr<double>();
  const int64_t* given = factors ? factors->const_data_ptr<int64_t>() : nullptr;
  int64_t* out = counts.mutable_data_ptr<int64_t>();
  torch::stable::parallel_for(0, columns, 1, [&](int64_t begin, int64_t end) {
    std::vector<int32_t> cell(kRows), class_of(static_cast<size_t>(factor_count) * kRows);
    for (int64_t first = 0; first < rows; first += kRows) {
      const int64_t n = std::min(kRows, rows - first);
      for (int64_t f = 0; f < factor_count; ++f) {
        classes_of(given, factor_count, f, first, n, strides[f], factor_sizes[f], static_cast<int32_t>(offsets[f]),
                   class_of.data() + f * kRows);
      }
      for (int64_t d = begin; d < end; ++d) {
        const double* own = all_edges + d * (bins + 1);
        bin_column(x + first * columns + d, columns, static_cast<int>(n), own,
                   static_cast<double>(bins) / (own[bins] - own[0]), static_cast<int>(bins), cell.data(),
                   static_cast<int32_t>(classes));
        int64_t* own_counts = out + d * bins * classes;
        for (int64_t f = 0; f < factor_count; ++f) {
          const int32_t* of = class_of.data() + f * kRows;
          for (int64_t i = 0; i < n; ++i) ++own_counts[cell[i] + of[i]];
        }
      }
    }
  });
  return counts;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pyvae_native, CPU, m) { m.impl("code_histogram", TORCH_BOX(&histogram)); }
