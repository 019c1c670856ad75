// One term of the aggregate posterior on a quadrature grid.
#pragma once
#include "math.h"

namespace pyvae {

constexpr float kReach = 8.0f;  // standard deviations beyond which a Gaussian (e^-32 of its peak) is left out

struct alignas(16) Gaussian {  // one load of a GPU's shared memory
  float mean, scale, log2_height, reach;
};

// Density of N(mean, e^logvar) as 2^(log2_height - (scale (z - mean))^2)
PYVAE_HD Gaussian gaussian(float mean, float logvar) {
  constexpr float kHalfLog2Tau = 1.32574806473616f;  // log2(sqrt(2 pi))
  const float half = 0.5f * logvar;
  return {mean, 0.849321800288019f * exp(-half), -1.44269504088896341f * half - kHalfLog2Tau, kReach * exp(half)};
}

PYVAE_HD float density(const Gaussian& g, float z) {
  const float distance = (z - g.mean) * g.scale;
  const float exponent = g.log2_height - distance * distance;
#ifdef __CUDA_ARCH__
  float power;
  // exp2f would scale denormal results, which no entropy sees
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(exponent));
  return power;
#else
  const float t = exponent < -126.0f ? -126.0f : exponent;
  const float rounded = t + kRounder;
  const float p = exp2_fraction(t - (rounded - kRounder));
  return as_float(as_int(p) + ((as_int(rounded) - kRounderBits) << 23));
#endif
}

}  // namespace pyvae
