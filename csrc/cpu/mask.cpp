// Selective synaptic dampening over a range, and the memory-limit kernels it is measured against. Compiled once per
// instruction set; plain loops, because these are bound by memory.
#include "cpu/floats.h"
#include "cpu/storage.h"
#include "cpu/table.h"
#include "normal.h"

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

#if defined(FF_HAS_FLOATS)
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

// ---- memory limits: each byte once, next to no arithmetic, values that stay where they are --------------------------

constexpr float kTiny = 0x1p-60f;

float limit_read(const float* a, int64_t n) {
  // As many independent sums as it takes to hide the latency of the addition.
  constexpr int kSums = 128;
  alignas(64) float sums[kSums] = {};
  int64_t i = 0;
  for (; i + kSums <= n; i += kSums) {
#pragma omp simd
    for (int j = 0; j < kSums; ++j) sums[j] += a[i + j];
  }
  for (; i < n; ++i) sums[0] += a[i];
  float sum = 0;
  for (float part : sums) sum += part;
  return sum;
}

void limit_update(float* a, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) a[i] = a[i] + kTiny;
}

void limit_axpy(float* a, const float* b, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) a[i] = fused(b[i], kTiny, a[i]);
}

void limit_select(float* a, const float* b, const float* c, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) a[i] = fused(b[i] + c[i], kTiny, a[i]);
}

void limit_adam(float* a, const float* b, float* c, float* d, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const float g = b[i];
    a[i] = fused(g, kTiny, a[i]);
    c[i] = fused(g, kTiny, c[i]);
    d[i] = fused(g, kTiny, d[i]);
  }
}

}  // namespace

constinit const MaskTable mask_table = {
    {dampen<float>, dampen<BFloat16>, dampen<Float16>, dampen<double>},
    limit_read,
    limit_update,
    limit_axpy,
    limit_select,
    limit_adam,
};

}  // namespace ff::FF_ISA
