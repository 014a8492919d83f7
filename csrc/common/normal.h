// Box-Muller from two 32-bit words: u = max(float32(even), 0.5) * 2^-32 in (0, 1], t = 2*pi*odd*2^-32,
// r = sqrt(-2 ln u), (z0, z1) = (r cos t, r sin t). Torch-free, host and device, branch-free so that a plain loop over
// these functions vectorises.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "common/philox.h"

namespace ff {

template <class T>
struct NormalPair {
  T z0, z1;
};

FF_HD uint32_t float_bits(float f) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(f);
#else
  uint32_t u;
  memcpy(&u, &f, sizeof u);
  return u;
#endif
}

FF_HD float bits_float(uint32_t u) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(u);
#else
  float f;
  memcpy(&f, &u, sizeof f);
  return f;
#endif
}

// One rounding where the hardware has a fused multiply-add, written out so that the AVX2 and AVX-512 builds agree to
// the bit. The baseline build has none, and libm's exact emulation would cost more than the two roundings it saves.
FF_HD float fused(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return fmaf(a, b, c);
#elif defined(__FMA__) || !defined(__x86_64__)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

FF_HD double fused(double a, double b, double c) {
#if defined(__CUDA_ARCH__)
  return fma(a, b, c);
#elif defined(__FMA__) || !defined(__x86_64__)
  return __builtin_fma(a, b, c);
#else
  return a * b + c;
#endif
}

// float32(x), rounded to nearest even, on every build.
FF_HD float uint_to_float(uint32_t x) {
#if defined(__CUDA_ARCH__) || defined(__AVX512F__)
  return static_cast<float>(x);
#else
  // AVX2 only converts signed integers. Both halves and the product are exact, so the sum is the one rounding.
  return fused(static_cast<float>(static_cast<int32_t>(x >> 16)), 65536.0f,
               static_cast<float>(static_cast<int32_t>(x & 0xffffu)));
#endif
}

// r = sqrt(-2 ln u). u = 2^e (1 + t) with 1 + t in [2/3, 4/3), so that ln(1 + t) keeps its relative accuracy at u -> 1.
// The polynomial is a minimax fit of -2 ln(1 + t) / t.
FF_HD float normal_radius(uint32_t even) {
  constexpr uint32_t kTwoThirds = 0x3f2aaaabu;
  constexpr uint32_t kScale = 32u << 23;  // the factor 2^-32, taken off the exponent
  const float x = uint_to_float(even);
  const float floor_half = x > 0.5f ? x : 0.5f;
  const int32_t shifted = static_cast<int32_t>(float_bits(floor_half) - (kTwoThirds + kScale));
  const float t = bits_float((static_cast<uint32_t>(shifted) & 0x7fffffu) + kTwoThirds) - 1.0f;
  float p = -0.281121625f;
  p = fused(p, t, 0.308063964f);
  p = fused(p, t, -0.279753159f);
  p = fused(p, t, 0.328255821f);
  p = fused(p, t, -0.400238877f);
  p = fused(p, t, 0.500160545f);
  p = fused(p, t, -0.666663374f);
  p = fused(p, t, 0.999998642f);
  p = fused(p, t, -2.0f);
  // The exponent stays in place (e * 2^23), which the conversion to float keeps exact; the constant is -2 ln 2 * 2^-23.
  const float exponent = static_cast<float>(shifted & static_cast<int32_t>(0xff800000u));
  const float y = fused(t, p, exponent * (-1.38629436111989f * 0x1p-23f));
#if defined(__CUDA_ARCH__)
  return __fsqrt_rn(y);
#else
  return __builtin_sqrtf(y);
#endif
}

// (cos, sin) of odd * 2^-32 turns. The quadrant comes from the integer's top bits, so no range reduction loses digits.
// The polynomials take quarter turns, y in [-1/2, 1/2): scaling by a power of two is exact, and pi/2 enters split in
// two so that sin(y pi/2) = y pi/2_high + y (pi/2_low + y^2 P(y^2)) rounds once where it matters.
FF_HD NormalPair<float> turn_cos_sin(uint32_t odd) {
  constexpr float kHalfPiHigh = 1.57079637f;
  constexpr float kHalfPiLow = -4.37113901e-08f;
  const float y = static_cast<float>(static_cast<int32_t>(odd << 2)) * 0x1p-32f;
  const float y2 = y * y;
  float ps = -0.00460483417f;
  ps = fused(ps, y2, 0.0796814128f);
  ps = fused(ps, y2, -0.64596363f);
  ps = fused(ps, y2, kHalfPiLow);
  float pc = 0.000903767118f;
  pc = fused(pc, y2, -0.0208601653f);
  pc = fused(pc, y2, 0.253669226f);
  pc = fused(pc, y2, -1.23370054f);
  const uint32_t sine = float_bits(fused(y, kHalfPiHigh, y * ps));
  const uint32_t cosine = float_bits(fused(y2, pc, 1.0f));
  const uint32_t quadrant = odd + 0x20000000u;  // top two bits, after rounding to the nearest quarter turn
  const uint32_t swap = (sine ^ cosine) & (0u - ((quadrant >> 30) & 1u));
  return {bits_float((cosine ^ swap) ^ ((quadrant + 0x40000000u) & 0x80000000u)),
          bits_float((sine ^ swap) ^ (quadrant & 0x80000000u))};
}

// Within 4 ulp of the float64 definition for |z| > 1e-3, within 1e-6 below.
FF_HD NormalPair<float> normal_pair_f32(uint32_t even, uint32_t odd) {
  const float r = normal_radius(even);
  const NormalPair<float> angle = turn_cos_sin(odd);
  return {r * angle.z0, r * angle.z1};
}

// The definition itself, for float64 tensors.
FF_HD NormalPair<double> normal_pair_f64(uint32_t even, uint32_t odd) {
  const float x = uint_to_float(even);
  const double u = static_cast<double>(x > 0.5f ? x : 0.5f) * 0x1p-32;
#if defined(__CUDA_ARCH__)
  // In half turns the argument is exact and small; sin and cos of t would bring a range reduction in local memory.
  double sine, cosine;
  sincospi(static_cast<double>(odd) * 0x1p-31, &sine, &cosine);
  const double r = sqrt(-2.0 * log(u));
  return {r * cosine, r * sine};
#else
  const double t = 6.283185307179586476925 * (static_cast<double>(odd) * 0x1p-32);
  const double r = __builtin_sqrt(-2.0 * __builtin_log(u));
  return {r * __builtin_cos(t), r * __builtin_sin(t)};
#endif
}

// float or double by type, for templates.
template <class T>
FF_HD NormalPair<T> normal_pair(uint32_t even, uint32_t odd) {
  if constexpr (sizeof(T) == sizeof(double)) {
    return normal_pair_f64(even, odd);
  } else {
    return normal_pair_f32(even, odd);
  }
}

}  // namespace ff
