// Philox words of consecutive counters, lane by lane: out[k * kDraw + i] is word k of counter first + i.
#pragma once
#include "../common/philox.h"
#include "clones.h"

#if defined(__x86_64__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // false alarms inside g++ 12's own header
#include <immintrin.h>
#endif

namespace pyvae {

constexpr int kDraw = 256;

namespace {

PYVAE_CLONES void draw_portably(uint64_t seed, uint64_t step, uint32_t stream, uint32_t first, int count,
                                uint32_t* __restrict out) {
#pragma omp simd
  for (int i = 0; i < count; ++i) {
    const Words words = philox(seed, first + static_cast<uint32_t>(i), stream, step);
    out[i] = words.x;
    out[i + kDraw] = words.y;
    out[i + 2 * kDraw] = words.z;
    out[i + 3 * kDraw] = words.w;
  }
}

#if defined(__x86_64__)
// One 32-bit word to a 64-bit lane, its upper half ignored: both halves of a product in one instruction, for which
// compilers emit five. A quarter of the time of reparameterize_kl.
__attribute__((target("avx2"))) void draw_avx2(uint64_t seed, uint64_t step, uint32_t stream, uint32_t first, int count,
                                               uint32_t* out) {
  const __m256i m0 = _mm256_set1_epi64x(0xD2511F53), m1 = _mm256_set1_epi64x(0xCD9E8D57);
  // as a shuffle of the two wants them to leave its words in order
  const __m256i order[2] = {_mm256_set_epi64x(5, 4, 1, 0), _mm256_set_epi64x(7, 6, 3, 2)};
  __m256i keys[10][2];
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (auto& key : keys) {
    key[0] = _mm256_set1_epi64x(k0);
    key[1] = _mm256_set1_epi64x(k1);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  for (int start = 0; start < count; start += 8) {
    const __m256i lanes = _mm256_set1_epi64x(first + static_cast<uint32_t>(start));
    __m256i c0[2], c1[2], c2[2], c3[2];
    for (int h = 0; h < 2; ++h) {
      c0[h] = _mm256_add_epi32(lanes, order[h]);
      c1[h] = _mm256_set1_epi64x(stream);
      c2[h] = _mm256_set1_epi64x(static_cast<int64_t>(step));
      c3[h] = _mm256_set1_epi64x(static_cast<int64_t>(step >> 32));
    }
    for (const auto& key : keys) {
      for (int h = 0; h < 2; ++h) {
        const __m256i p0 = _mm256_mul_epu32(c0[h], m0), p1 = _mm256_mul_epu32(c2[h], m1);
        c0[h] = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(p1, 32), c1[h]), key[0]);
        c2[h] = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(p0, 32), c3[h]), key[1]);
        c1[h] = p1;
        c3[h] = p0;
      }
    }
    const __m256i* words[4] = {c0, c1, c2, c3};
    for (int k = 0; k < 4; ++k) {
      _mm256_storeu_ps(reinterpret_cast<float*>(out + k * kDraw + start),
                       _mm256_shuffle_ps(_mm256_castsi256_ps(words[k][0]), _mm256_castsi256_ps(words[k][1]), 0x88));
    }
  }
}

__attribute__((target("avx512f"))) void draw_avx512(uint64_t seed, uint64_t step, uint32_t stream, uint32_t first,
                                                    int count, uint32_t* out) {
  const __m512i m0 = _mm512_set1_epi64(0xD2511F53), m1 = _mm512_set1_epi64(0xCD9E8D57);
  for (int start = 0; start < count; start += 16) {
    const __m512i lanes = _mm512_add_epi32(_mm512_set1_epi32(static_cast<int>(first + static_cast<uint32_t>(start))),
                                           _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0));
    __m512i c0[2], c1[2], c2[2], c3[2];
    for (int h = 0; h < 2; ++h) {
      c0[h] = _mm512_cvtepu32_epi64(h ? _mm512_extracti64x4_epi64(lanes, 1) : _mm512_castsi512_si256(lanes));
      c1[h] = _mm512_set1_epi64(stream);
      c2[h] = _mm512_set1_epi64(static_cast<int64_t>(step));
      c3[h] = _mm512_set1_epi64(static_cast<int64_t>(step >> 32));
    }
    uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
    for (int round = 0; round < 10; ++round) {
      const __m512i key0 = _mm512_set1_epi64(k0), key1 = _mm512_set1_epi64(k1);
      for (int h = 0; h < 2; ++h) {
        const __m512i p0 = _mm512_mul_epu32(c0[h], m0), p1 = _mm512_mul_epu32(c2[h], m1);
        c0[h] = _mm512_xor_si512(_mm512_xor_si512(_mm512_srli_epi64(p1, 32), c1[h]), key0);
        c2[h] = _mm512_xor_si512(_mm512_xor_si512(_mm512_srli_epi64(p0, 32), c3[h]), key1);
        c1[h] = p1;
        c3[h] = p0;
      }
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
    const __m512i* words[4] = {c0, c1, c2, c3};
    for (int k = 0; k < 4; ++k) {
      for (int h = 0; h < 2; ++h) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + k * kDraw + start + 8 * h),
                            _mm512_cvtepi64_epi32(words[k][h]));
      }
    }
  }
}
#pragma GCC diagnostic pop
#endif

// At most kDraw counters; what lies behind out[k * kDraw + count] may be overwritten.
inline void draw(uint64_t seed, uint64_t step, uint32_t stream, uint32_t first, int count, uint32_t* out) {
#if defined(__x86_64__)
  static const auto best = __builtin_cpu_supports("avx512f") ? draw_avx512
                           : __builtin_cpu_supports("avx2")  ? draw_avx2
                                                             : draw_portably;
  best(seed, step, stream, first, count, out);
#else
  draw_portably(seed, step, stream, first, count, out);
#endif
}

}  // namespace
}  // namespace pyvae
