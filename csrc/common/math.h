// Branch-free polynomials (minimax, fitted for this file) that g++ vectorises for whatever target a loop is cloned for.
// Under -fno-trapping-math alone: -fassociative-math would cancel the rounding tricks away, -ffast-math loses NaN.
#pragma once
#include <cstring>

#include "portable.h"

namespace pyvae {

PYVAE_HD float as_float(int32_t i) {
  float f;
  memcpy(&f, &i, sizeof f);
  return f;
}

PYVAE_HD int32_t as_int(float f) {
  int32_t i;
  memcpy(&i, &f, sizeof i);
  return i;
}

// Adding it leaves the nearest integer in the low bits of the sum.
constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23
constexpr int32_t kRounderBits = 0x4B400000;

// 2^f for |f| <= 1/2, to 1e-7 relative
PYVAE_HD float exp2_fraction(float f) {
  float p = 1.5345812e-4f;
  p = p * f + 1.33999314e-3f;
  p = p * f + 9.61848896e-3f;
  p = p * f + 5.55032878e-2f;
  p = p * f + 2.40226469e-1f;
  p = p * f + 6.93147206e-1f;
  return p * f + 1.0f;
}

// e^r for |r| <= ln(2) / 2, to 1e-7 relative
PYVAE_HD float exp_fraction(float r) {
  float p = 1.38368460e-03f;
  p = p * r + 8.37481589e-03f;
  p = p * r + 4.16682256e-02f;
  p = p * r + 1.66664202e-01f;
  p = p * r + 4.99999921e-01f;
  p = p * r + 1.0f;
  return p * r + 1.0f;
}

// e^x everywhere: infinities, denormal results and NaN included
PYVAE_HD float exp(float x) {
  const float t = x < -104.0f ? -104.0f : (x > 89.0f ? 89.0f : x);
  const float rounded = t * 1.44269504088896341f + kRounder;
  const int32_t n = as_int(rounded) - kRounderBits;
  const float whole = rounded - kRounder;
  // ln 2 in two parts keeps the remainder exact
  const float r = (t - whole * 0.693359375f) + whole * 2.12194440e-4f;
  const float p = exp_fraction(r);
  // in two factors: 2^n itself leaves the range of normal numbers at both ends
  const int32_t half = n >> 1;
  return p * as_float((half + 127) << 23) * as_float((n - half + 127) << 23);
}

// ln x for normal x > 0
PYVAE_HD float log(float x) {
  const int32_t i = as_int(x);
  const int32_t e = (i - 0x3F3504F3) >> 23;  // the mantissa then lies in [sqrt(1/2), sqrt(2))
  const float m = as_float(i - (e << 23)) - 1.0f;
  const float square = m * m;
  float p = 7.0376836292e-2f;
  p = p * m - 1.1514610310e-1f;
  p = p * m + 1.1676998740e-1f;
  p = p * m - 1.2420140846e-1f;
  p = p * m + 1.4249322787e-1f;
  p = p * m - 1.6668057665e-1f;
  p = p * m + 2.0000714765e-1f;
  p = p * m - 2.4999993993e-1f;
  p = p * m + 3.3333331174e-1f;
  const float exponent = static_cast<float>(e);
  const float tail = p * m * square - 2.12194440e-4f * exponent - 0.5f * square;
  return m + tail + 0.693359375f * exponent;
}

// sin(2 pi a) for |a| <= 1/4: an angle in turns needs no range reduction
PYVAE_HD float sin_turns(float a) {
  const float s = a * a;
  float p = -1.4347240574e1f;
  p = p * s + 4.2001837482e1f;
  p = p * s - 7.6703791376e1f;
  p = p * s + 8.1605213144e1f;
  p = p * s - 4.1341701978e1f;
  p = p * s + 6.2831853067f;
  return a * p;
}

// e^x - 1 and e^x - 1 - x, given e^x: small x would cancel, and there collapsed dimensions live
struct Expm1 {
  float minus_one, minus_one_minus_x;
};

PYVAE_HD Expm1 expm1(float x, float exp_x) {
  float p = 2.4957055e-5f;
  p = p * x + 1.9962185e-4f;
  p = p * x + 1.3888608e-3f;
  p = p * x + 8.3331820e-3f;
  p = p * x + 4.1666668e-2f;
  p = p * x + 1.6666667e-1f;
  p = p * x + 0.5f;
  const float small = p * x * x;
  const float big = exp_x - 1.0f;
  const bool near_zero = x > -0.5f && x < 0.5f;
  return {near_zero ? small + x : big, near_zero ? small : big - x};
}

// ln(1 + e^-|l|) and 1 / (1 + e^|l|), from one exponential and one division
struct Tail {
  float log, probability;
};

PYVAE_HD Tail logistic_tail(float l) {
  const float magnitude = l < 0.0f ? -l : l;
  const float t = magnitude > 87.0f ? 87.0f : magnitude;
  const float rounded = t * -1.44269504088896341f + kRounder;
  const float whole = rounded - kRounder;
  const float r = (-t - whole * 0.693359375f) + whole * 2.12194440e-4f;
  const float power = as_float((as_int(rounded) - kRounderBits + 127) << 23);
  const float computed = exp_fraction(r) * power;
  const float e = magnitude > 87.0f ? 0.0f : computed;
  // ln(1 + e) = 2 artanh(w), w = e / (2 + e) <= 1/3
  const float a = 1.0f + e, b = 2.0f + e, q = 1.0f / (a * b);
  const float w = e * a * q, s = w * w;
  float p = 1.2212454257e-1f;
  p = p * s + 1.0694980445e-1f;
  p = p * s + 1.4310521019e-1f;
  p = p * s + 1.9999339101e-1f;
  p = p * s + 3.3333339742e-1f;
  p = p * s + 1.0f;
  return {2.0f * w * p, e * b * q};
}

}  // namespace pyvae
