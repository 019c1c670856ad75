// Box-Muller on words (0, 1) and (2, 3) of a counter.
#pragma once
#include <cmath>

#include "math.h"
#include "philox.h"

namespace pyvae {

struct Pair {
  float first, second;
};

PYVAE_HD Pair box_muller(uint32_t for_radius, uint32_t for_angle) {
  const float radius = sqrtf(-2.0f * log(uniform(for_radius)));
  const float t = uniform(for_angle) - 0.5f;  // exact; in turns, half a turn behind the angle
  const float far = fabsf(t), rest = 0.5f - far;
  const float near = far < rest ? far : rest;
  return {radius * sin_turns(far - 0.25f), -radius * sin_turns(copysignf(near, t))};
}

}  // namespace pyvae
