// The two kernels of error-maximising noise: the loss -CE with its gradient in one pass over the logits, and the fused
// step (L2 gradient, Adam, clamp, sum of squares) in one pass over the noise. Compiled once per instruction set.
//
// Sums run over a fixed number of lanes, whatever the vector length, so that every instruction set adds in one order.
#include "common/floats.h"
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

// ---- error_max_step_ ------------------------------------------------------------------------------------------------

FF_INLINE float root(float x) { return __builtin_sqrtf(x); }
FF_INLINE double root(double x) { return __builtin_sqrt(x); }

// The step's constants in the compute type.
template <class C>
struct AdamConstants {
  C l2, l2_rest, one_minus_beta1, beta2, one_minus_beta2, inverse_bias2, eps, step_size, low, high;

  FF_INLINE AdamConstants from(const AdamStep& s) {
    const C l2 = static_cast<C>(s.l2_gradient);
    return {l2,
            static_cast<C>(s.l2_gradient - static_cast<double>(l2)),
            static_cast<C>(1.0 - s.beta1),
            static_cast<C>(s.beta2),
            static_cast<C>(1.0 - s.beta2),
            static_cast<C>(1.0 / s.sqrt_bias2),
            static_cast<C>(s.eps),
            static_cast<C>(s.step_size),
            static_cast<C>(s.clamp_min),
            static_cast<C>(s.clamp_max)};
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
  const C m = fused(c.one_minus_beta1, g - exp_avg, exp_avg);
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
  const F::V l2 = F::all(c.l2), l2_rest = F::all(c.l2_rest), one_minus_beta1 = F::all(c.one_minus_beta1);
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
      const F::V m = F::multiply_add(one_minus_beta1, g - before, before);
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

// ---- error_max_loss -------------------------------------------------------------------------------------------------

// e^d for d <= 0, through two factors of 2 so that results down to the subnormals come out; NaN stays NaN.
FF_INLINE float exp_negative(float d) {
  constexpr float kLowest = -150.0f;
  const float x = d < kLowest ? kLowest : d;
  const float n = __builtin_rintf(x * 1.44269504f);
  const float r = fused(n, -1.42860677e-6f, fused(n, -0.693145752f, x));
  float p = 0.00138436534f;
  p = fused(p, r, 0.00837415533f);
  p = fused(p, r, 0.041668002f);
  p = fused(p, r, 0.166664313f);
  p = fused(p, r, 0.499999942f);
  p = fused(p, r, 1.00000003f);
  const int32_t exponent = x == x ? static_cast<int32_t>(n) : 0;
  const int32_t half = exponent >> 1;
  const float scale1 = bits_float(static_cast<uint32_t>(127 + half) << 23);
  const float scale2 = bits_float(static_cast<uint32_t>(127 + exponent - half) << 23);
  return fused(r, p, 1.0f) * scale1 * scale2;
}
FF_INLINE double exp_negative(double d) { return __builtin_exp(d); }

template <class C>
struct RowMax {
  C value;
  int64_t index;
};

// Largest logit of a row and the first index that has it. The comparison may pass over a NaN; the sum below won't.
template <class S>
FF_INLINE RowMax<Compute<S>> row_max(const S* row, int64_t classes) {
  using C = Compute<S>;
  C largest = widen(row[0]);
#pragma omp simd reduction(max : largest)
  for (int64_t k = 0; k < classes; ++k) {
    const C z = widen(row[k]);
    largest = z > largest ? z : largest;
  }
  // Where a NaN hid the largest, any index will do: the row is NaN throughout.
  int64_t index = classes - 1;
  if (classes <= kTile) {
    int32_t first = static_cast<int32_t>(index);
#pragma omp simd reduction(min : first)
    for (int32_t k = 0; k < static_cast<int32_t>(classes); ++k) {
      const int32_t here = widen(row[k]) == largest ? k : static_cast<int32_t>(kTile);
      first = here < first ? here : first;
    }
    return {largest, first};
  }
  for (int64_t k = 0; k < index; ++k) {
    if (widen(row[k]) == largest) index = k;
  }
  return {largest, index};
}

// Sum of e^(z - max) without the largest logit itself, whose term is 1: a confident row keeps the digits of 1 - p.
// `terms` ends with the last tile's: all of them, where one tile holds the row.
template <class S>
FF_INLINE double sum_of_others(const S* row, int64_t classes, const RowMax<Compute<S>>& max, Compute<S>* terms) {
  using C = Compute<S>;
  double sum = 0;
  for (int64_t at = 0; at < classes; at += kTile) {
    const int64_t count = classes - at < kTile ? classes - at : kTile;
    const int64_t padded = (count + kLanes - 1) / kLanes * kLanes;
    for (int64_t k = count; k < padded; ++k) terms[k] = 0;
#pragma omp simd
    for (int64_t k = 0; k < count; ++k) terms[k] = exp_negative(widen(row[at + k]) - max.value);
    if (max.index >= at && max.index < at + count) terms[max.index - at] = 0;
    alignas(64) C lanes[kLanes] = {};
    for (int64_t k = 0; k < padded; k += kLanes) {
#pragma omp simd
      for (int j = 0; j < kLanes; ++j) lanes[j] += terms[k + j];
    }
    sum += add_lanes(lanes);
  }
  return sum;
}

template <class S>
void error_max_loss(const void* logits, const int64_t* labels, int64_t n, int64_t classes, int64_t batch, void* loss_,
                    void* dlogits) {
  using C = Compute<S>;
  C* loss = static_cast<C*>(loss_);
  alignas(64) C terms[kTile];
  for (int64_t b = 0; b < n; ++b) {
    const S* row = static_cast<const S*>(logits) + b * classes;
    S* out = static_cast<S*>(dlogits) + b * classes;
    const int64_t label = labels[b];
    const RowMax<C> max = row_max(row, classes);
    // Once a row in double: the label's own entries, where float32 would lose digits to cancellation.
    // A row whose largest logit is infinite has no softmax: NaN throughout, as in torch.
    const bool finite = max.value - max.value == C(0);
    const double others = finite ? sum_of_others(row, classes, max, terms) : __builtin_nan("");
    const double total = 1.0 + others;
    const double below_max = static_cast<double>(widen(row[label])) - static_cast<double>(max.value);
    loss[b] = static_cast<C>(below_max - __builtin_log1p(others));
    const bool label_leads = label == max.index;
    const double p = (label_leads ? 1.0 : __builtin_exp(below_max)) / total;
    const double rest = label_leads && others < 1.0 ? others / total : 1.0 - p;  // 1 - p, whichever form keeps digits
    const double divisor = total * static_cast<double>(batch);
    if constexpr (sizeof(C) == sizeof(double)) {
      for (int64_t k = 0; k < classes; ++k) out[k] = -(exp_negative(row[k] - max.value) / divisor);
    } else {
      // The factor in two parts, so that a class with p near 1 is rounded once, as in torch.
      const float scale = static_cast<float>(1.0 / divisor);
      const float scale_rest = static_cast<float>(1.0 / divisor - static_cast<double>(scale));
      if (finite && classes <= kTile) {
        terms[max.index] = 1.0f;
#pragma omp simd
        for (int64_t k = 0; k < classes; ++k) out[k] = narrow<S>(-fused(terms[k], scale, terms[k] * scale_rest));
      } else {
#pragma omp simd
        for (int64_t k = 0; k < classes; ++k) {
          const float term = exp_negative(widen(row[k]) - max.value);
          out[k] = narrow<S>(-fused(term, scale, term * scale_rest));
        }
      }
    }
    out[label] = narrow<S>(static_cast<C>(rest / static_cast<double>(batch)));
  }
}

}  // namespace

constinit const UpdateTable update_table = {
    {error_max_loss<float>, error_max_loss<BFloat16>, error_max_loss<Float16>, error_max_loss<double>},
    {error_max_step<float>, error_max_step<BFloat16>, error_max_step<Float16>, error_max_step<double>},
};

}  // namespace ff::FF_ISA
