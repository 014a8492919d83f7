// Division of 64-bit indices by a divisor that the host knows: the device's own is a call that costs more than the rest
// of what a streaming kernel computes.
#pragma once
#include <cstdint>

#include "common/normal.h"  // fused

namespace ff::cuda {

// Of a float's accuracy, to save room in launch tables. 0 divides nothing.
inline float inverse_of(int64_t d) { return d > 0 ? static_cast<float>(1.0 / static_cast<double>(d)) : 0.0f; }

// n / d for 0 <= n < 2^50. Two Newton steps take the reciprocal to double's accuracy, so the first quotient is off by
// one at most.
FF_HD int64_t quotient(int64_t n, int64_t d, float inverse) {
  const double wide = static_cast<double>(d);
  double reciprocal = static_cast<double>(inverse);
  reciprocal = fused(reciprocal, fused(-wide, reciprocal, 1.0), reciprocal);
  reciprocal = fused(reciprocal, fused(-wide, reciprocal, 1.0), reciprocal);
  const int64_t q = static_cast<int64_t>(static_cast<double>(n) * reciprocal);
  const int64_t rest = n - q * d;
  return rest < 0 ? q - 1 : (rest >= d ? q + 1 : q);
}

}  // namespace ff::cuda
