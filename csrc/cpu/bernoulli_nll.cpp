#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstring>
#include <tuple>

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

void run(const Tensor& given_logits, const Tensor& given_target, double target_scale, bool packed, Tensor& loss,
         Tensor* grad, double grad_scale) {
  const Tensor logits = dense(given_logits), target = dense(given_target);
  const int64_t rows = logits.size(0), pixels = logits.size(1);
  const bool bytes = target.scalar_type() == ScalarType::Byte;
  check(target, "target", bytes ? ScalarType::Byte : ScalarType::Float, 2);
  STD_TORCH_CHECK(bytes || !packed, "target: packed bits are uint8");
  const int64_t columns = packed ? (pixels + 7) / 8 : pixels;
  STD_TORCH_CHECK(target.size(0) == rows && target.size(1) == columns, "target: expected [", rows, ", ", columns, "]");
  const Rows work{logits.const_data_ptr<float>(),
                  target.const_data_ptr(),
                  loss.mutable_data_ptr<float>(),
                  grad ? grad->mutable_data_ptr<float>() : nullptr,
                  pixels,
                  columns,
                  static_cast<float>(target_scale),
                  static_cast<float>(grad_scale),
                  bytes,
                  packed};
  torch::stable::parallel_for(0, rows, std::max<int64_t>(1, 32768 / std::max<int64_t>(pixels, 1)), work);
}

Tensor forward(const Tensor& logits, const Tensor& target, double target_scale, bool packed) {
  check(logits, "logits", ScalarType::Float, 2);
  Tensor loss = torch::stable::new_empty(logits, {logits.size(0)});
  run(logits, target, target_scale, packed, loss, nullptr, 0.0);
  return loss;
}

std::tuple<Tensor, Tensor> forward_backward(
    const Tensor& logits, const Tensor& target, double target_scale, bool packed, double grad_scale) {
  check(logits, "logits", ScalarType::Float, 2);
  Tensor loss = torch::stable::new_empty(logits, {logits.size(0)});
  Tensor grad = torch::stable::new_empty(logits, {logits.size(0), logits.size(1)});
  run(logits, target, target_scale, packed, loss, &grad, grad_scale);
  return {loss, grad};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pyvae_native, CPU, m) {
  m.impl("bernoulli_nll_fwd", TORCH_BOX(&forward));
  m.impl("bernoulli_nll_fwd_bwd", TORCH_BOX(&forward_backward));
}
