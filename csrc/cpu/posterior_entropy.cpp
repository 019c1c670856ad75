#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <vector>

#include "../check.h"
#include "../common/quadrature.h"
#include "clones.h"

namespace {

using namespace pyvae;

constexpr int kNodes = 64;           // of one task: their sums stay in the nearest cache
constexpr int64_t kFlush = 1024;     // rows added up in float32 before the sums go on in float64
constexpr int64_t kRunAtMost = 256;  // rows added up without going on to the next class

PYVAE_CLONES void parameters(const float* __restrict mu, const float* __restrict logvar, Gaussian* __restrict out,
                             int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = gaussian(mu[i], logvar[i]);
}

// Densities of n successive rows, added to the sum of each row's class and to the sum of all.
PYVAE_CLONES void add_rows(const Gaussian* __restrict rows, int64_t n, const float* __restrict z,
                           float* __restrict each, float* __restrict all) {
  const float centre = 0.5f * (z[0] + z[kNodes - 1]), half_width = 0.5f * (z[kNodes - 1] - z[0]);
  for (int64_t row = 0; row < n; ++row) {
    const Gaussian g = rows[row];
    if (__builtin_fabsf(g.mean - centre) > half_width + g.reach) continue;
    float* own = each + row * kNodes;
#pragma omp simd
    for (int k = 0; k < kNodes; ++k) {
      const float p = density(g, z[k]);
      own[k] += p;
      all[k] += p;
    }
  }
}

PYVAE_CLONES void flush(float* __restrict sum, double* __restrict total, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    total[i] += static_cast<double>(sum[i]);
    sum[i] = 0.0f;
  }
}

PYVAE_CLONES void add(const double* __restrict sum, double* __restrict total) {
#pragma omp simd
  for (int k = 0; k < kNodes; ++k) total[k] += sum[k];
}

// The last factor runs fastest: rows of its classes follow one another and fill ``each``. Sums of whole runs belong to
// the classes of the other factors; each level hands its sum up when it comes round, so that every factor costs one
// addition for each class of the next.
struct Grid {
  std::vector<int64_t> sizes, offsets;
  int64_t classes = 0, runs = 1;

  explicit Grid(const std::vector<int64_t>& factor_sizes) : sizes(factor_sizes) {
    for (int64_t size : sizes) {
      offsets.push_back(classes);
      classes += size;
      runs *= size;
    }
    runs /= sizes.back();
  }

  // sums: [classes, kNodes]
  void operator()(const Gaussian* rows, const float* z, double* sums) const {
    const int64_t run = sizes.back(), levels = static_cast<int64_t>(sizes.size()) - 1;
    std::vector<float> each(static_cast<size_t>(run * kNodes), 0.0f), all(kNodes, 0.0f);
    std::vector<double> level(static_cast<size_t>((levels + 1) * kNodes), 0.0);
    std::vector<int64_t> at(sizes.size(), 0);
    std::fill_n(sums, classes * kNodes, 0.0);
    int64_t unflushed = 0;
    for (int64_t r = 0; r < runs; ++r) {
      double* total = level.data() + levels * kNodes;
      for (int64_t start = 0; start < run; start += kRunAtMost) {
        const int64_t n = std::min(kRunAtMost, run - start);
        add_rows(rows + r * run + start, n, z, each.data() + start * kNodes, all.data());
        flush(all.data(), total, kNodes);
      }
      unflushed += run;
      if (unflushed >= kFlush || r + 1 == runs) {
        flush(each.data(), sums + offsets.back() * kNodes, run * kNodes);
        unflushed = 0;
      }
      for (int64_t f = levels - 1; f >= 0; --f) {
        double* below = level.data() + (f + 1) * kNodes;
        add(below, sums + (offsets[f] + at[f]) * kNodes);
        add(below, level.data() + f * kNodes);
        std::fill_n(below, kNodes, 0.0);
        if (++at[f] < sizes[f]) break;
        at[f] = 0;
      }
      if (levels == 0) std::fill_n(total, kNodes, 0.0);
    }
  }
};

Tensor posterior_density(const Tensor& given_mu, const Tensor& given_logvar, const Tensor& low, const Tensor& step,
                         std::vector<int64_t> factor_sizes, int64_t nodes) {
  check(given_mu, "mu", ScalarType::Float, 2);
  check(given_logvar, "logvar", ScalarType::Float, 2);
  check_same_shape(given_logvar, "logvar", given_mu);
  const Tensor mu = dense(given_mu), logvar = dense(given_logvar);
  const int64_t columns = mu.size(0), rows = mu.size(1), tiles = (nodes + kNodes - 1) / kNodes;
  for (const Tensor* x : {&low, &step}) {
    check(*x, "low, step", ScalarType::Double, 1);
    STD_TORCH_CHECK(x->size(0) == columns && x->is_contiguous(), "low, step: expected [D]");
  }
  STD_TORCH_CHECK(!factor_sizes.empty(), "factor_sizes: empty");
  const Grid grid(factor_sizes);
  STD_TORCH_CHECK(grid.runs * factor_sizes.back() == rows && rows > 0, "mu: not one row for each point of the grid");
  Tensor density = torch::stable::new_empty(mu, {columns, grid.classes, nodes}, ScalarType::Double);
  std::vector<Gaussian> gaussians(static_cast<size_t>(columns * rows));
  const float *m = mu.const_data_ptr<float>(), *lv = logvar.const_data_ptr<float>();
  const double *first = low.const_data_ptr<double>(), *width = step.const_data_ptr<double>();
  double* out = density.mutable_data_ptr<double>();
  torch::stable::parallel_for(0, columns, 1, [&](int64_t begin, int64_t end) {
    parameters(m + begin * rows, lv + begin * rows, gaussians.data() + begin * rows, (end - begin) * rows);
  });
  torch::stable::parallel_for(0, tiles * columns, 1, [&](int64_t begin, int64_t end) {
    std::vector<double> sums(static_cast<size_t>(grid.classes * kNodes));
    alignas(64) float z[kNodes];
    for (int64_t task = begin; task < end; ++task) {
      // neighbouring tasks are of different dimensions: wide posteriors take longer than narrow ones
      const int64_t d = task % columns, start = task / columns * kNodes;
      for (int k = 0; k < kNodes; ++k) {
        z[k] = static_cast<float>(first[d] + static_cast<double>(start + k) * width[d]);
      }
      grid(gaussians.data() + d * rows, z, sums.data());
      const int64_t n = std::min<int64_t>(kNodes, nodes - start);
      for (size_t f = 0; f < factor_sizes.size(); ++f) {
        const double share = static_cast<double>(factor_sizes[f]) / static_cast<double>(rows);
        for (int64_t c = grid.offsets[f]; c < grid.offsets[f] + factor_sizes[f]; ++c) {
          double* own = out + (d * grid.classes + c) * nodes + start;
          for (int64_t k = 0; k < n; ++k) own[k] = sums[c * kNodes + k] * share;
        }
      }
    }
  });
  return density;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pyvae_native, CPU, m) { m.impl("posterior_density", TORCH_BOX(&posterior_density)); }
