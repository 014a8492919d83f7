// Elementwise masking over a range: selective synaptic dampening, importance sums, soft thresholds. Compiled once per
// instruction set; plain loops, because these are bound by memory.
#include "common/floats.h"
#include "common/normal.h"
#include "common/storage.h"
#include "common/table.h"

namespace ff::FF_ISA {
namespace {

constexpr int64_t kTile = 1024;

// Counts in the width of the values, so that the loop keeps one vector length; a tile can't overflow either.
template <class C>
struct Counter {
  using type = int32_t;
};
template <>
struct Counter<double> {
  using type = int64_t;
};

// Select semantics: what is not selected keeps its bits, and a NaN importance (0/0 included) selects nothing. A NaN
// factor of a selected element stays NaN, as torch.clamp keeps it.
template <class C>
FF_INLINE int64_t dampen_values(C* p, const C* forget, const C* retain, int64_t n, C alpha, C lam) {
  typename Counter<C>::type selected = 0;
#pragma omp simd reduction(+ : selected)
  for (int64_t i = 0; i < n; ++i) {
    const bool select = forget[i] > alpha * retain[i];
    const C ratio = lam * retain[i] / forget[i];
    const C factor = ratio > C(1) ? C(1) : ratio;
    const C damped = p[i] * factor;
    p[i] = select ? damped : p[i];
    selected += select ? 1 : 0;
  }
  return selected;
}

// Whether dampen_values counts without overflow however long the range is. Then it takes all of it: from memory the
// pause after each tile cost 5 to 10 %.
template <class S>
constexpr bool kAnyLength = false;

#if defined(FF_HAS_FLOATS)
template <>
constexpr bool kAnyLength<float> = true;

// The same for float32, with the vector minimum and a count that costs no vector operations: from memory on AVX2 an
// eighth faster, in cache a quarter.
FF_INLINE int64_t dampen_values(float* p, const float* forget, const float* retain, int64_t n, float alpha, float lam) {
  using F = Floats;
  const F::V alphas = F::all(alpha), lams = F::all(lam), one = F::all(1.0f);
  int64_t selected = 0, i = 0;
  for (; i + F::kWidth <= n; i += F::kWidth) {
    const F::V f = F::load(forget + i), r = F::load(retain + i), x = F::load(p + i);
    const F::Mask select = F::greater(f, alphas * r);
    F::store(p + i, F::choose(select, x * F::lower(one, lams * r / f), x));
    selected += F::count(select);
  }
  return selected + dampen_values<float>(p + i, forget + i, retain + i, n - i, alpha, lam);
}
#endif

template <class S>
int64_t dampen(void* param, const void* forget_, const void* retain_, int64_t n, double alpha_, double lam_) {
  using C = Compute<S>;
  const C alpha = static_cast<C>(alpha_), lam = static_cast<C>(lam_);
  S* p = static_cast<S*>(param);
  const S* forget = static_cast<const S*>(forget_);
  const S* retain = static_cast<const S*>(retain_);
  if constexpr (kAnyLength<S>) return dampen_values(p, forget, retain, n, alpha, lam);
  int64_t selected = 0;
  for (int64_t at = 0; at < n; at += kTile) {
    const int64_t count = n - at < kTile ? n - at : kTile;
    if constexpr (kStaged<S>) {
      alignas(64) C values[kTile], f[kTile], r[kTile];
      load_block(p + at, values, count);
      load_block(forget + at, f, count);
      load_block(retain + at, r, count);
      selected += dampen_values(values, f, r, count, alpha, lam);
      store_block(values, p + at, count);
    } else {
      selected += dampen_values(p + at, forget + at, retain + at, count, alpha, lam);
    }
  }
  return selected;
}

// In the order and with the roundings of the definition, so the results are its bits.
template <class C, int kPower>
FF_INLINE void accumulate_values(C* importance, const C* grad, int64_t n, C scale) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const C g = grad[i];
    importance[i] += scale * (kPower == 1 ? absolute(g) : g * g);
  }
}

template <class S, class G, int kPower>
void accumulate_power(void* importance_, const void* grad_, int64_t n, double scale_) {
  using C = Compute<S>;
  const C scale = static_cast<C>(scale_);
  S* importance = static_cast<S*>(importance_);
  const G* grad = static_cast<const G*>(grad_);
  if constexpr (!kStaged<S> && !kStaged<G>) {
    accumulate_values<C, kPower>(importance, grad, n, scale);
  } else {
    for (int64_t at = 0; at < n; at += kTile) {
      const int64_t count = n - at < kTile ? n - at : kTile;
      alignas(64) C g[kTile];
      load_block(grad + at, g, count);
      if constexpr (kStaged<S>) {
        alignas(64) C values[kTile];
        load_block(importance + at, values, count);
        accumulate_values<C, kPower>(values, g, count, scale);
        store_block(values, importance + at, count);
      } else {
        accumulate_values<C, kPower>(importance + at, g, count, scale);
      }
    }
  }
}

template <class S, class G>
void accumulate(void* importance, const void* grad, int64_t n, int64_t power, double scale) {
  if (power == 1) {
    accumulate_power<S, G, 1>(importance, grad, n, scale);
  } else {
    accumulate_power<S, G, 2>(importance, grad, n, scale);
  }
}

// max(|x| - t, 0) with the sign of x, in place; a NaN stays one.
FF_INLINE void shrink(float* x, int64_t n, float t) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const float over = __builtin_fabsf(x[i]) - t;
    x[i] = __builtin_copysignf(over < 0.0f ? 0.0f : over, x[i]);
  }
}

FF_INLINE void shrink(double* x, int64_t n, double t) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const double over = __builtin_fabs(x[i]) - t;
    x[i] = __builtin_copysign(over < 0.0 ? 0.0 : over, x[i]);
  }
}

// By lanes in double: the sum of a whole model's magnitudes keeps all of float32's digits.
template <class C>
FF_INLINE int64_t norms(const C* x, int64_t n, double* l1) {
  constexpr int kLanes = 32;
  double sums[kLanes] = {};
  typename Counter<C>::type nonzero = 0;
#pragma omp simd reduction(+ : nonzero)
  for (int64_t i = 0; i < n; ++i) nonzero += x[i] != C(0) ? 1 : 0;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
#pragma omp simd
    for (int j = 0; j < kLanes; ++j) sums[j] += static_cast<double>(absolute(x[i + j]));
  }
  for (; i < n; ++i) sums[i % kLanes] += static_cast<double>(absolute(x[i]));
  double sum = 0;
  for (double part : sums) sum += part;
  *l1 += sum;
  return nonzero;
}

template <class S>
int64_t soft_threshold(void* x_, int64_t n, double threshold, double* l1) {
  using C = Compute<S>;
  const C t = static_cast<C>(threshold);
  S* x = static_cast<S*>(x_);
  int64_t nonzero = 0;
  for (int64_t at = 0; at < n; at += kTile) {
    const int64_t count = n - at < kTile ? n - at : kTile;
    if constexpr (kStaged<S>) {
      alignas(64) C values[kTile];
      load_block(x + at, values, count);
      shrink(values, count, t);
      store_block(values, x + at, count);
      load_block(x + at, values, count);  // the sums are of what is stored
      nonzero += norms(values, count, l1);
    } else {
      shrink(x + at, count, t);
      nonzero += norms(x + at, count, l1);
    }
  }
  return nonzero;
}

}  // namespace

constinit const MaskElementwiseTable mask_elementwise_table = {
    {dampen<float>, dampen<BFloat16>, dampen<Float16>, dampen<double>},
    {{accumulate<float, float>, accumulate<float, float>},
     {accumulate<BFloat16, BFloat16>, accumulate<float, BFloat16>},
     {accumulate<Float16, Float16>, accumulate<float, Float16>},
     {accumulate<double, double>, accumulate<double, double>}},
    {soft_threshold<float>, soft_threshold<BFloat16>, soft_threshold<Float16>, soft_threshold<double>},
};

}  // namespace ff::FF_ISA
