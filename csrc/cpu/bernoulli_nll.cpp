#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "../check.h"
#include "pixels.h"

namespace {

using namespace pyvae;

struct Rows {
  const float* logits;
  Images target;
  float* loss;
  float* grad;
  int64_t pixels;
  float grad_scale;

  void operator()(int64_t begin, int64_t end) const {
    alignas(64) float scratch[kChunk];
    for (int64_t row = begin; row < end; ++row) {
      double sum = 0.0;
      for (int64_t start = 0; start < pixels; start += kChunk) {
        const int64_t at = row * pixels + start;
        const int n = static_cast<int>(std::min<int64_t>(kChunk, pixels - start));
        const float* x = target.floats(row, start, n, scratch);
        sum += target.nll(x, n, logits + at, grad ? grad + at : nullptr, grad_scale);
      }
      loss[row] = static_cast<float>(sum);
    }
  }
};

struct Result {
  Tensor loss;
  Tensor grad;
};

Result run(const Tensor& given_logits, const Tensor& given_target, double target_scale, bool packed, double scale,
           int64_t rows, int64_t images, bool with_grad) {
  STD_TORCH_CHECK(given_logits.scalar_type() == ScalarType::Float, "logits: wrong dtype");
  STD_TORCH_CHECK(given_logits.dim() >= 1, "logits: expected [rows, ...]");
  const Tensor logits = dense(given_logits), target = dense(given_target);
  if (rows < 0) rows = logits.size(0);
  const int64_t pixels = rows ? logits.numel() / rows : 0;
  STD_TORCH_CHECK(rows * pixels == logits.numel(), "logits: ", logits.numel(), " pixels are not ", rows, " rows");
  STD_TORCH_CHECK(images > 0 && rows % images == 0, "images: ", images, " do not divide ", rows, " rows");
  const bool bytes = target.scalar_type() == ScalarType::Byte;
  STD_TORCH_CHECK(bytes || target.scalar_type() == ScalarType::Float, "target: wrong dtype");
  STD_TORCH_CHECK(bytes || !packed, "target: packed bits are uint8");
  const int64_t columns = packed ? (pixels + 7) / 8 : pixels;
  STD_TORCH_CHECK(target.numel() == rows * columns, "target: expected [", rows, ", ", columns, "]");
  Result result{torch::stable::new_empty(logits, {rows / images}), logits};
  if (with_grad) result.grad = torch::stable::new_empty(logits, logits.sizes());
  std::vector<float> each(static_cast<size_t>(rows));
  const Rows work{logits.const_data_ptr<float>(),
                  {target.const_data_ptr(), columns, static_cast<float>(target_scale), bytes, packed},
                  each.data(),
                  with_grad ? result.grad.mutable_data_ptr<float>() : nullptr,
                  pixels,
                  static_cast<float>(scale)};
  torch::stable::parallel_for(0, rows, std::max<int64_t>(1, 32768 / std::max<int64_t>(pixels, 1)), work);
  float* loss = result.loss.mutable_data_ptr<float>();
  for (int64_t i = 0; i < rows / images; ++i) {
    double sum = 0.0;
    for (int64_t row = i * images; row < (i + 1) * images; ++row) sum += each[static_cast<size_t>(row)];
    loss[i] = static_cast<float>(sum * scale);
  }
  return result;
}

Tensor forward(const Tensor& logits, const Tensor& target, double target_scale, bool packed, double scale, int64_t rows,
               int64_t images) {
  return run(logits, target, target_scale, packed, scale, rows, images, false).loss;
}

std::tuple<Tensor, Tensor> forward_backward(const Tensor& logits, const Tensor& target, double target_scale,
                                            bool packed, double scale, int64_t rows, int64_t images) {
  const Result result = run(logits, target, target_scale, packed, scale, rows, images, true);
  return {result.loss, result.grad};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pyvae_native, CPU, m) {
  m.impl("bernoulli_nll_fwd", TORCH_BOX(&forward));
  m.impl("bernoulli_nll_fwd_bwd", TORCH_BOX(&forward_backward));
}
