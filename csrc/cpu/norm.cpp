// The Euclidean norm of many tensors together, one at least; infinite where its square is no float. A square of a float is
// exact in a double, and sums are of chunks in order: the same bits for any number of threads and any instruction set.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "../check.h"
#include "clones.h"

namespace {

using namespace pyvae;

constexpr int64_t kChunk = 1 << 13;
constexpr int64_t kWorth = 8;  // chunks that are worth a thread
constexpr int kSideBySide = 16;

PYVAE_CLONES double sum_of_squares(const float* x, int64_t count) {
  double sums[kSideBySide] = {};
  int64_t i = 0;
  for (; i + kSideBySide <= count; i += kSideBySide) {
    for (int j = 0; j < kSideBySide; ++j) {
      const double value = x[i + j];
      sums[j] += value * value;
    }
  }
  for (; i < count; ++i) {
    const double value = x[i];
    sums[i % kSideBySide] += value * value;
  }
  double sum = 0.0;
  for (const double part : sums) sum += part;
  return sum;
}

// Whether a tensor's numbers lie without gaps, in whatever order of its dimensions.
bool fills_its_memory(const Tensor& x) {
  std::vector<std::pair<int64_t, int64_t>> dims;
  for (int64_t i = 0; i < x.dim(); ++i) {
    if (x.size(i) != 1) dims.emplace_back(x.stride(i), x.size(i));
  }
  std::sort(dims.begin(), dims.end());
  int64_t expected = 1;
  for (const auto& [stride, size] : dims) {
    if (stride != expected) return false;
    expected *= size;
  }
  return true;
}

Tensor norm(const std::vector<Tensor>& tensors) {
  std::vector<Tensor> held;
  std::vector<std::pair<const float*, int64_t>> chunks;
  for (const Tensor& x : tensors) {
    STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float, "tensors: wrong dtype");
    held.push_back(fills_its_memory(x) ? x : dense(x));
    const float* data = held.back().const_data_ptr<float>();
    for (int64_t at = 0; at < x.numel(); at += kChunk) chunks.emplace_back(data + at, std::min(kChunk, x.numel() - at));
  }
  std::vector<double> sums(chunks.size());
  torch::stable::parallel_for(0, static_cast<int64_t>(chunks.size()), kWorth, [&](int64_t begin, int64_t end) {
    for (auto i = static_cast<size_t>(begin); i < static_cast<size_t>(end); ++i) {
      sums[i] = sum_of_squares(chunks[i].first, chunks[i].second);
    }
  });
  double sum = 0.0;
  for (const double part : sums) sum += part;
  Tensor out = torch::stable::new_empty(tensors[0], {});
  // where squares overflow a float, they would in Adam's second moments too, and stay there: the step must not be learnt
  const bool overflows = sum > static_cast<double>(std::numeric_limits<float>::max());
  *out.mutable_data_ptr<float>() =
      overflows ? std::numeric_limits<float>::infinity() : static_cast<float>(std::sqrt(sum));
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pyvae_native, CPU, m) { m.impl("norm", TORCH_BOX(&norm)); }
