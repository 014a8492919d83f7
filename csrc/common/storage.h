// Storage types of the kernels: what a tensor holds (S) and what is computed with (Compute<S>). The 16-bit types pass
// through a float block in L1, so every kernel is written once, for float and double.
#pragma once
#include <cstdint>

#include "common/numeric.h"

#define FF_INLINE static inline __attribute__((always_inline))

namespace ff::FF_ISA {

template <class S>
struct ComputeOf {
  using type = float;
};
template <>
struct ComputeOf<double> {
  using type = double;
};
template <class S>
using Compute = typename ComputeOf<S>::type;

template <class S>
constexpr bool kStaged = sizeof(S) == 2;

FF_INLINE float widen(float x) { return x; }
FF_INLINE double widen(double x) { return x; }
FF_INLINE float widen(BFloat16 x) { return to_float(x); }
FF_INLINE float widen(Float16 x) { return to_float(x); }

template <class S, class C>
FF_INLINE S narrow(C x) {
  if constexpr (sizeof(S) != 2) {
    return x;
  } else if constexpr (__is_same(S, BFloat16)) {
    return to_bfloat16(x);
  } else {
    return to_float16(x);
  }
}

FF_INLINE float absolute(float x) { return __builtin_fabsf(x); }
FF_INLINE double absolute(double x) { return __builtin_fabs(x); }

// Block copies between storage and compute type (or double, for a kernel that wants more).
template <class S, class C>
FF_INLINE void load_block(const S* from, C* to, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) to[i] = static_cast<C>(widen(from[i]));
}

template <class S, class C>
FF_INLINE void store_block(const C* from, S* to, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) to[i] = narrow<S>(static_cast<Compute<S>>(from[i]));
}

}  // namespace ff::FF_ISA
