// The fused step of error-maximising noise (L2 gradient, Adam, clamp, sum of squares) in one pass over the noise.
// Compiled once per instruction set.
//
// Sums run over a fixed number of lanes, whatever the vector length, so that every instruction set adds in one order.
#include "common/floats.h"
#include "common/lerp.h"
#include "common/normal.h"
#include "common/storage.h"
#include "common/table.h"

namespace ff::FF_ISA {
namespace {

constexpr int64_t kTile = 1024;
constexpr int kLanes = 16;

template <class C>
FF_INLINE double add_lanes(const C (&lanes)[kLanes]) {
  double sum = 0;
  for (int j = 0; j < kLanes; ++j) sum += static_cast<double>(lanes[j]);
  return sum;
}

FF_INLINE float root(float x) { return __builtin_sqrtf(x); }
FF_INLINE double root(double x) { return __builtin_sqrt(x); }

// The step's constants in the compute type.
template <class C>
struct AdamConstants {
  C l2, l2_rest, beta2, one_minus_beta2, inverse_bias2, eps, step_size, low, high;
  Lerp<C> average;

  FF_INLINE AdamConstants from(const AdamStep& s) {
    const C l2 = static_cast<C>(s.l2_gradient);
    return {l2,
            static_cast<C>(s.l2_gradient - static_cast<double>(l2)),
            static_cast<C>(s.beta2),
            static_cast<C>(1.0 - s.beta2),
            static_cast<C>(1.0 / s.sqrt_bias2),
            static_cast<C>(s.eps),
            static_cast<C>(s.step_size),
            static_cast<C>(s.clamp_min),
            static_cast<C>(s.clamp_max),
            Lerp<C>(1.0 - s.beta1)};
  }
};

#if defined(__FMA__) || !defined(__x86_64__)
constexpr bool kFused = true;
#else
constexpr bool kFused = false;
#endif

// The gradient with its L2 term, and the second moment. The constant l2 comes in two parts: where the terms cancel,
// Adam divides what is left by its own size, and the rounding of the constant alone would decide the step. Without a
// fused multiply-add float32 would round three times more than torch does: the baseline build takes these two in
// double.
template <class C>
FF_INLINE void moments(C x, C grad, C& g, C& v, const AdamConstants<C>& c) {
  if constexpr (kFused || sizeof(C) == sizeof(double)) {
    g = fused(c.l2_rest, x, fused(c.l2, x, grad));
    v = fused(c.beta2, v, c.one_minus_beta2 * g * g);
  } else {
    const double l2 = static_cast<double>(c.l2) + static_cast<double>(c.l2_rest);
    const double wide = l2 * static_cast<double>(x) + static_cast<double>(grad);
    g = static_cast<C>(wide);
    v = static_cast<C>(static_cast<double>(c.beta2) * static_cast<double>(v) +
                       static_cast<double>(c.one_minus_beta2) * wide * wide);
  }
}

template <class C>
FF_INLINE void adam_element(C& x, C grad, C& exp_avg, C& exp_avg_sq, const AdamConstants<C>& c) {
  C g, v = exp_avg_sq;
  moments(x, grad, g, v, c);
  const C m = fused(c.average.factor, g - exp_avg, c.average.from_end ? g : exp_avg);
  const C moved = x - c.step_size * m / fused(root(v), c.inverse_bias2, c.eps);
  const C above = moved < c.low ? c.low : moved;  // in this form a NaN passes both comparisons
  x = above > c.high ? c.high : above;
  exp_avg = m;
  exp_avg_sq = v;
}

// The elements that fill all lanes; returns how many. Adds up x^2 before the step, lane by lane.
template <class C>
FF_INLINE int64_t adam_lanes(C* x, const C* grad, C* exp_avg, C* exp_avg_sq, int64_t n, const AdamConstants<C>& c,
                             C (&squares)[kLanes]) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
#pragma omp simd
    for (int j = 0; j < kLanes; ++j) {
      squares[j] = fused(x[i + j], x[i + j], squares[j]);
      adam_element(x[i + j], grad[i + j], exp_avg[i + j], exp_avg_sq[i + j], c);
    }
  }
  return i;
}

#if defined(FF_HAS_FLOATS)
// adam_element on vectors: the same operations, and a NaN passes the clamp as it does there.
FF_INLINE int64_t adam_lanes(float* x, const float* grad, float* exp_avg, float* exp_avg_sq, int64_t n,
                             const AdamConstants<float>& c, float (&squares)[kLanes]) {
  using F = Floats;
  constexpr int kVectors = kLanes / F::kWidth;
  const F::V l2 = F::all(c.l2), l2_rest = F::all(c.l2_rest), factor = F::all(c.average.factor);
  const F::Mask from_end = F::all(c.average.from_end);
  const F::V beta2 = F::all(c.beta2), one_minus_beta2 = F::all(c.one_minus_beta2), eps = F::all(c.eps);
  const F::V inverse_bias2 = F::all(c.inverse_bias2), step_size = F::all(c.step_size);
  const F::V low = F::all(c.low), high = F::all(c.high);
  F::V sums[kVectors] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
#pragma GCC unroll 2
    for (int k = 0; k < kVectors; ++k) {
      const int64_t at = i + k * F::kWidth;
      const F::V value = F::load(x + at), before = F::load(exp_avg + at);
      sums[k] = F::multiply_add(value, value, sums[k]);
      const F::V g = F::multiply_add(l2_rest, value, F::multiply_add(l2, value, F::load(grad + at)));
      const F::V m = F::multiply_add(factor, g - before, F::choose(from_end, g, before));
      const F::V v = F::multiply_add(beta2, F::load(exp_avg_sq + at), one_minus_beta2 * g * g);
      const F::V moved = value - step_size * m / F::multiply_add(F::root(v), inverse_bias2, eps);
      F::store(x + at, F::lower(high, F::upper(low, moved)));
      F::store(exp_avg + at, m);
      F::store(exp_avg_sq + at, v);
    }
  }
  for (int k = 0; k < kVectors; ++k) F::store(squares + k * F::kWidth, sums[k]);
  return i;
}
#endif

// Returns the sum of x^2 before the step. The sum shares the pass: division and square root leave the adders idle.
template <class C>
FF_INLINE double adam_values(C* x, const C* grad, C* exp_avg, C* exp_avg_sq, int64_t n, const AdamConstants<C>& c) {
  alignas(64) C squares[kLanes] = {};
  const int64_t i = adam_lanes(x, grad, exp_avg, exp_avg_sq, n, c, squares);
  for (int j = 0; i + j < n; ++j) {
    squares[j] = fused(x[i + j], x[i + j], squares[j]);
    adam_element(x[i + j], grad[i + j], exp_avg[i + j], exp_avg_sq[i + j], c);
  }
  return add_lanes(squares);
}

template <class S>
double error_max_step(void* x_, const void* grad_, void* exp_avg_, void* exp_avg_sq_, int64_t n, const AdamStep& step) {
  using C = Compute<S>;
  const AdamConstants<C> constants = AdamConstants<C>::from(step);
  S* x = static_cast<S*>(x_);
  const S* grad = static_cast<const S*>(grad_);
  S* exp_avg = static_cast<S*>(exp_avg_);
  S* exp_avg_sq = static_cast<S*>(exp_avg_sq_);
  double squares = 0;
  for (int64_t at = 0; at < n; at += kTile) {
    const int64_t count = n - at < kTile ? n - at : kTile;
    if constexpr (kStaged<S>) {
      alignas(64) C values[kTile], g[kTile], m[kTile], v[kTile];
      load_block(x + at, values, count);
      load_block(grad + at, g, count);
      load_block(exp_avg + at, m, count);
      load_block(exp_avg_sq + at, v, count);
      squares += adam_values(values, g, m, v, count, constants);
      store_block(values, x + at, count);
      store_block(m, exp_avg + at, count);
      store_block(v, exp_avg_sq + at, count);
    } else {
      squares += adam_values(x + at, grad + at, exp_avg + at, exp_avg_sq + at, count, constants);
    }
  }
  return squares;
}

}  // namespace

constinit const UpdateTable update_table = {
    {error_max_step<float>, error_max_step<BFloat16>, error_max_step<Float16>, error_max_step<double>},
};

}  // namespace ff::FF_ISA
