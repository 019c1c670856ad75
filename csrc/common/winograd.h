// Winograd's F(2 x 2, 2 x 2) for convolutions of kernel 4, stride 2 and padding 1, and for transposed ones.
//
// Such a convolution from a big map of 2n x 2n pixels to a small one of n x n is the sum of four of kernel 2 and stride
// 1, one for each parity of row and column of the big map. Two neighbours of the small map are then, in one dimension,
//   y0 = d0 g0 + d1 g1,  y1 = d1 g0 + d2 g1,
// which three products give, since with
//   m = ((d0 - d1) g0, d1 (g0 + g1), (d2 - d1) g1)
// y0 = m0 + m1 and y1 = m1 + m2; in two dimensions nine products are enough for four pixels, instead of sixteen. The
// gradient of the weights has the same form, with the gradients of y0 and y1 where g0 and g1 stand:
//   dg0 = e0 d0 + e1 d1,  dg1 = e0 d1 + e1 d2.
// Lavin & Gray 2016, "Fast algorithms for convolutional neural networks". T is a number or several side by side.
#pragma once
#include "portable.h"

namespace pyvae {

template <class T>
struct Three {
  T first, middle, last;
};
template <class T>
struct Two {
  T first, last;
};

template <class T>
PYVAE_HD Three<T> spread(T d0, T d1, T d2) {
  return {d0 - d1, d1, d2 - d1};
}

// Of a pair of weights, or of gradients of outputs.
template <class T>
PYVAE_HD Three<T> both(T g0, T g1) {
  return {g0, g0 + g1, g1};
}

// Outputs of three products, or gradients of weights.
template <class T>
PYVAE_HD Two<T> gather(T m0, T m1, T m2) {
  return {m0 + m1, m1 + m2};
}

// Pixels of a transposed convolution: rows 2i of the big map are of taps 3 and 1, on rows i - 1 and i of the small one,
// rows 2i + 1 of taps 2 and 0, on rows i and i + 1. Four neighbours serve two rows of either parity, and of what the
// parities need, d2 - d1 is one thing but for its sign, which the weights of odd rows take over.
template <class T>
struct Five {
  T value[5];
};

template <class T>
PYVAE_HD Five<T> spread(T d0, T d1, T d2, T d3) {
  return {{d0 - d1, d1, d2 - d1, d2, d3 - d2}};
}

// Weights of the rows of a parity, for values [2 * odd, 2 * odd + 3) of the five.
template <class T>
PYVAE_HD Three<T> both_transposed(bool odd, T g0, T g1) {
  const T zero = g0 - g0;
  return {odd ? zero - g0 : g0, g0 + g1, g1};
}

PYVAE_HD int tap_transposed(bool odd, int which) { return (odd ? 2 : 3) - 2 * which; }

}  // namespace pyvae
