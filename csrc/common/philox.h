// Philox4x32-10 (Salmon et al. 2011) under the contract of pyvae/random.py: key = seed,
// counter = (index, stream, step_lo, step_hi).
#pragma once
#include "portable.h"

namespace pyvae {

struct Words {
  uint32_t x, y, z, w;
};

PYVAE_HD uint32_t high_half(uint32_t a, uint32_t b) {
  return static_cast<uint32_t>((static_cast<uint64_t>(a) * b) >> 32);
}

PYVAE_HD Words philox(uint64_t seed, uint32_t index, uint32_t stream, uint64_t step) {
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  uint32_t c0 = index, c1 = stream, c2 = static_cast<uint32_t>(step), c3 = static_cast<uint32_t>(step >> 32);
#pragma GCC unroll 10
  for (int round = 0; round < 10; ++round) {
    const uint32_t h0 = high_half(0xD2511F53u, c0), l0 = 0xD2511F53u * c0;
    const uint32_t h1 = high_half(0xCD9E8D57u, c2), l1 = 0xCD9E8D57u * c2;
    c0 = h1 ^ c1 ^ k0;
    c1 = l1;
    c2 = h0 ^ c3 ^ k1;
    c3 = l0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {c0, c1, c2, c3};
}

// ((x >> 9) + 0.5) * 2^-23: exact, in the open interval (0, 1)
PYVAE_HD float uniform(uint32_t x) {
  return (static_cast<float>(static_cast<int32_t>(x >> 9)) + 0.5f) * 1.1920928955078125e-7f;
}

}  // namespace pyvae
