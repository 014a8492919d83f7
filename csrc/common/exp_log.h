// Logarithm and exponential of doubles in forms that loops of them vectorise. Compiled once per instruction set.
#pragma once
#include <cstdint>

#include "common/storage.h"

namespace ff::FF_ISA {

FF_INLINE uint64_t bits_of(double x) { return __builtin_bit_cast(uint64_t, x); }
FF_INLINE double from_bits(uint64_t x) { return __builtin_bit_cast(double, x); }

// Natural logarithm in a form that loops of it vectorise; below 1 ulp. (FreeBSD's e_log.c has the same polynomial.)
FF_INLINE double log_of(double x) {
  constexpr uint64_t kRootHalf = 0x3fe6a09e667f3bcd;
  const bool small = x < 0x1p-1022;
  const uint64_t i = bits_of(small ? x * 0x1p54 : x) - kRootHalf;
  // the exponent as a double: 1024 added while it is an integer keeps it positive, 2^52 in front makes it a double
  const double k = from_bits(((i + (1024ull << 52)) >> 52) | 0x4330000000000000) - (0x1p52 + 1024.0) - (small ? 54 : 0);
  const double f = from_bits((i & 0xfffffffffffff) + kRootHalf) - 1.0;
  const double s = f / (2.0 + f), z = s * s, half = 0.5 * f * f;
  double r = z * 1.479819860511658591e-01 + 1.531383769920937332e-01;
  r = z * r + 1.818357216161805012e-01;
  r = z * r + 2.222219843214978396e-01;
  r = z * r + 2.857142874366239149e-01;
  r = z * r + 3.999999999940941908e-01;
  r = z * r + 6.666666666666735130e-01;
  r = z * r;
  const double y = k * 6.93147180369123816490e-01 - ((half - (s * (half + r) + k * 1.90821492927058770002e-10)) - f);
  return x > 0.0 && x < __builtin_inf() ? y : x == 0.0 ? -__builtin_inf() : x < 0.0 ? __builtin_nan("") : x;
}

// log(1 + x) of x >= 0, to a few ulp: what 1 + x was rounded by is put right.
FF_INLINE double log_of_one_and(double x) {
  const double sum = 1.0 + x;
  return log_of(sum) + (x - (sum - 1.0)) / sum;
}

// e^x of x <= 0, to a few ulp; below -600 as of -600, which is as good as 0. NaN stays NaN.
FF_INLINE double exp_of_negative(double x) {
  constexpr double kToInteger = 0x1.8p52;  // added, it leaves an integer in the lowest bits
  const double bounded = x < -600.0 ? -600.0 : x;
  const double shifted = bounded * 1.4426950408889634 + kToInteger;
  const double n = shifted - kToInteger;
  const double r = (bounded - n * 6.93147180369123816490e-01) - n * 1.90821492927058770002e-10;
  double p = 1.0 / 479001600.0;
  p = p * r + 1.0 / 39916800.0;
  p = p * r + 1.0 / 3628800.0;
  p = p * r + 1.0 / 362880.0;
  p = p * r + 1.0 / 40320.0;
  p = p * r + 1.0 / 5040.0;
  p = p * r + 1.0 / 720.0;
  p = p * r + 1.0 / 120.0;
  p = p * r + 1.0 / 24.0;
  p = p * r + 1.0 / 6.0;
  p = p * r + 0.5;
  p = p * r + 1.0;
  p = p * r + 1.0;
  return p * from_bits((bits_of(shifted) + 1023) << 52);
}

}  // namespace ff::FF_ISA
