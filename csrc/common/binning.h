// numpy.histogram's bins: edges of numpy.linspace in float64, a value on an edge goes right, the last edge left.
#pragma once
#include "portable.h"

namespace pyvae {

// Bin of x, one of low = edges[0] <= x <= edges[bins]; per_bin = bins / (high - low). The quotient is within one bin
// of the truth for float32 values, whose range is many float64 steps wide; the edges decide.
PYVAE_HD int bin_of(float x, const double* edges, double per_bin, int bins) {
  const double value = x;
  int bin = static_cast<int>((value - edges[0]) * per_bin);
  bin = bin > bins - 1 ? bins - 1 : bin;
  bin -= value < edges[bin];
  bin += bin < bins - 1 && value >= edges[bin + 1];
  return bin;
}

}  // namespace pyvae
