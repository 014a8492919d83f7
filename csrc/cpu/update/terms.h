// A row of logits as compute type, and what its softmax is made of. For files that are compiled once per instruction
// set.
//
// Sums run over 16 lanes, whatever the vector length, so that every instruction set adds in one order.
#pragma once
#include "common/vectors.h"

namespace ff::FF_ISA {

constexpr int kLanes = 16;
constexpr int kVectors = kLanes / W;

FF_INLINE int64_t rounded_up(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

// `count` logits from `row` as compute type, then -inf up to whole lanes.
template <class S>
FF_INLINE void load_logits(const S* row, int64_t count, float* to) {
  int64_t k = 0;
  for (; k + W <= count; k += W) store_vec(to + k, load_as_float(row + k));
  if (k < count) {
    store_vec(to + k, load_few(row + k, count - k));
    k += W;
  }
  for (; k < rounded_up(count); k += W) store_vec(to + k, splat(-kInf));
}
FF_INLINE void load_logits(const double* row, int64_t count, double* to) {
  for (int64_t k = 0; k < count; ++k) to[k] = row[k];
  for (int64_t k = count; k < rounded_up(count); ++k) to[k] = -__builtin_inf();
}

// The comparison may pass over a NaN; the sum won't.
FF_INLINE float largest_of(const float* z, int64_t padded) {
  Vec largest[kVectors];
  for (int v = 0; v < kVectors; ++v) largest[v] = load_vec(z + v * W);
  for (int64_t k = kLanes; k < padded; k += kLanes) {
    for (int v = 0; v < kVectors; ++v) largest[v] = max_of(load_vec(z + k + v * W), largest[v]);
  }
  Vec top = largest[0];
  for (int v = 1; v < kVectors; ++v) top = max_of(largest[v], top);
  if constexpr (W > 8) top = max_of(exchange<8>(top), top);
  if constexpr (W > 4) top = max_of(exchange<4>(top), top);
  top = max_of(exchange<2>(top), top);
  top = max_of(exchange<1>(top), top);
  return top[0];
}
FF_INLINE double largest_of(const double* z, int64_t padded) {
  double largest = z[0];
  for (int64_t k = 1; k < padded; ++k) largest = z[k] > largest ? z[k] : largest;
  return largest;
}

// e^x of x <= 0, through two factors of 2 so that results down to the subnormals come out; NaN stays NaN. What would be
// less than the least of them is not computed: products that underflow take a hundred times as long, and the lanes that
// fill up a row are such.
FF_INLINE Vec exp_terms(Vec x) {
  constexpr float kInteger = 12582912.0f;  // added, it rounds to an integer
  const Mask zero = x < splat(-103.98f);
  x = select(zero, Vec{}, x);
  const Vec n = (x * 1.44269504f + kInteger) - kInteger;
  const Vec r = n * -1.42860677e-6f + (n * -0.693145752f + x);
  Vec p = r * 0.00138436534f + 0.00837415533f;
  p = p * r + 0.041668002f;
  p = p * r + 0.166664313f;
  p = p * r + 0.499999942f;
  p = p * r + 1.00000003f;
  const Vec half = n * 0.5f + kRounder, rest = n - (half - kRounder) + kRounder;
  return select(zero, Vec{}, (r * p + 1.0f) * power_of_two(half) * power_of_two(rest));
}

// The sum of 16 lanes in one order, in double.
FF_INLINE double sum_of(const Vec (&lanes)[kVectors]) {
  alignas(64) float single[kLanes];
  alignas(64) double pairs[kLanes / 2];
  for (int v = 0; v < kVectors; ++v) store_vec(single + v * W, lanes[v]);
#pragma omp simd
  for (int j = 0; j < kLanes / 2; ++j) {
    pairs[j] = static_cast<double>(single[j]) + static_cast<double>(single[j + kLanes / 2]);
  }
  return ((pairs[0] + pairs[4]) + (pairs[2] + pairs[6])) + ((pairs[1] + pairs[5]) + (pairs[3] + pairs[7]));
}

}  // namespace ff::FF_ISA
