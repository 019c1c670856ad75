#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstring>
#include <tuple>
#include <vector>

#include "../check.h"
#include "../common/math.h"
#include "clones.h"

namespace {

using namespace pyvae;

constexpr int kChunk = 512;

// Where no gradient is wanted it goes to scratch: two loops would round the loss differently.
PYVAE_CLONES float loss_and_grad(const float* __restrict l, const float* __restrict x, float* __restrict grad, int n,
                                 float target_scale, float grad_scale) {
  float loss = 0.0f;
#pragma omp simd reduction(+ : loss)
  for (int i = 0; i < n; ++i) {
    // max(l, 0) - l x and sigma(l) - x would cancel where the answer is confident and right
    const float rest = (l[i] < 0.0f ? 0.0f : 1.0f) - x[i] * target_scale;
    const Tail tail = logistic_tail(l[i]);
    loss += l[i] * rest + tail.log;
    grad[i] = (rest + (l[i] < 0.0f ? tail.probability : -tail.probability)) * grad_scale;
  }
  return loss;
}

// Apart from the loss: bytes beside floats would make its loop four times as wide as there are registers for.
PYVAE_CLONES void to_float(const uint8_t* __restrict bytes, float* __restrict x, int n) {
#pragma omp simd
  for (int i = 0; i < n; ++i) x[i] = static_cast<float>(static_cast<int32_t>(bytes[i]));
}

// Eight bits of each byte to eight bytes of 0 or 1, lowest first.
PYVAE_CLONES void unpack(const uint8_t* __restrict packed, uint8_t* __restrict bits, int n) {
  for (int i = 0; i < n; ++i) {
    const uint64_t spread = (packed[i] * 0x0101010101010101u) & 0x8040201008040201u;
    const uint64_t bytes = ((spread + 0x7F7F7F7F7F7F7F7Fu) >> 7) & 0x0101010101010101u;
    std::memcpy(bits + 8 * i, &bytes, sizeof bytes);
  }
}

struct Rows {
  const float* logits;
  const void* target;
  float* loss;
  float* grad;
  int64_t pixels, target_stride;
  float target_scale, grad_scale;
  bool bytes, packed;

  float piece(int64_t row, int64_t start, int n) const {
    const int64_t at = row * pixels + start;
    const float* x = static_cast<const float*>(target) + at;
    alignas(64) float converted[kChunk];
    alignas(64) float unwanted[kChunk];
    alignas(64) uint8_t unpacked[kChunk];
    if (bytes) {
      const uint8_t* own = static_cast<const uint8_t*>(target) + row * target_stride;
      if (packed) unpack(own + start / 8, unpacked, (n + 7) / 8);
      to_float(packed ? unpacked : own + start, converted, n);
      x = converted;
    }
    return loss_and_grad(logits + at, x, grad ? grad + at : unwanted, n, target_scale, grad_scale);
  }

  void operator()(int64_t begin, int64_t end) const {
    for (int64_t row = begin; row < end; ++row) {
      double sum = 0.0;
      for (int64_t start = 0; start < pixels; start += kChunk) {
        sum += piece(row, start, static_cast<int>(std::min<int64_t>(kChunk, pixels - start)));
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
                  target.const_data_ptr(),
                  each.data(),
                  with_grad ? result.grad.mutable_data_ptr<float>() : nullptr,
                  pixels,
                  columns,
                  static_cast<float>(target_scale),
                  static_cast<float>(scale),
                  bytes,
                  packed};
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
