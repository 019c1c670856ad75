// The permutation of one dimension: the stable argsort of its 32-bit words.
#pragma once
#include "philox.h"

namespace pyvae {

// Words are drawn four to a counter; dimension d takes word d % 4.
PYVAE_HD uint32_t permutation_word(
    uint64_t seed, uint64_t step, uint32_t stream, int64_t row, int64_t column, int64_t columns) {
  const int64_t quads = (columns + 3) / 4;
  const Words words = philox(seed, static_cast<uint32_t>(row * quads + column / 4), stream, step);
  const int lane = static_cast<int>(column & 3);
  return lane == 0 ? words.x : lane == 1 ? words.y : lane == 2 ? words.z : words.w;
}

// Whether row j stands before row i in the order.
PYVAE_HD bool stands_before(uint32_t word_j, int64_t j, uint32_t word_i, int64_t i) {
  return word_j < word_i || (word_j == word_i && j < i);
}

}  // namespace pyvae
