// Bernoulli pixels row by row, in chunks that stay in the first level of the cache.
#pragma once
#include <cstring>

#include "../common/math.h"
#include "clones.h"

namespace pyvae {

constexpr int kChunk = 512;

namespace {

// Where no gradient is wanted it goes to scratch: two loops would round the loss differently.
PYVAE_CLONES float loss_and_grad(const float* __restrict l, const float* __restrict x, float* __restrict grad, int n,
                                 float grad_scale) {
  float loss = 0.0f;
#pragma omp simd reduction(+ : loss)
  for (int i = 0; i < n; ++i) {
    // max(l, 0) - l x and sigma(l) - x would cancel where the answer is confident and right
    const float rest = (l[i] < 0.0f ? 0.0f : 1.0f) - x[i];
    const Tail tail = logistic_tail(l[i]);
    // infinity times 0, a certain answer that is right, costs nothing
    loss += (rest == 0.0f ? 0.0f : l[i]) * rest + tail.log;
    grad[i] = (rest + (l[i] < 0.0f ? tail.probability : -tail.probability)) * grad_scale;
  }
  return loss;
}

// Apart from the loss: bytes beside floats would make its loop four times as wide as there are registers for. And 1 - x
// as a fused multiply-add would not vanish at 255 / 255.
PYVAE_CLONES void to_float(const uint8_t* __restrict bytes, float* __restrict x, int n, float scale) {
#pragma omp simd
  for (int i = 0; i < n; ++i) x[i] = static_cast<float>(static_cast<int32_t>(bytes[i])) * scale;
}

// Eight bits of each byte to eight bytes of 0 or 1, lowest first.
PYVAE_CLONES void unpack(const uint8_t* __restrict packed, uint8_t* __restrict bits, int n) {
  for (int i = 0; i < n; ++i) {
    const uint64_t spread = (packed[i] * 0x0101010101010101u) & 0x8040201008040201u;
    const uint64_t bytes = ((spread + 0x7F7F7F7F7F7F7F7Fu) >> 7) & 0x0101010101010101u;
    std::memcpy(bits + 8 * i, &bytes, sizeof bytes);
  }
}

// The target's rows: floats, bytes to be multiplied by the scale, or eight pixels to a byte.
struct Images {
  const void* data;
  int64_t stride;
  float scale;
  bool bytes, packed;

  // Pixels [start, start + n) of a row, n at most kChunk; converted ones go to scratch.
  const float* floats(int64_t row, int64_t start, int n, float* scratch) const {
    if (!bytes) return static_cast<const float*>(data) + row * stride + start;
    alignas(64) uint8_t unpacked[kChunk];
    const uint8_t* own = static_cast<const uint8_t*>(data) + row * stride;
    if (packed) unpack(own + start / 8, unpacked, (n + 7) / 8);
    to_float(packed ? unpacked : own + start, scratch, n, scale);
    return scratch;
  }

  // Negative log-likelihood of n pixels x, at most kChunk, under logits, and its gradient times grad_scale, where there
  // is a place for it.
  float nll(const float* x, int n, const float* logits, float* grad, float grad_scale) const {
    alignas(64) float unwanted[kChunk];
    return loss_and_grad(logits, x, grad ? grad : unwanted, n, grad_scale);
  }
};

}  // namespace
}  // namespace pyvae
