// What two lists of gradients have to do with each other: their products, in one pass over both. Compiled once per
// instruction set.
//
// Sums run over a fixed number of lanes in double, whatever the vector length, so that every instruction set adds in
// one order; the product of two float32 numbers is exact there.
#include "common/normal.h"
#include "common/storage.h"
#include "common/table.h"

namespace ff::FF_ISA {
namespace {

constexpr int64_t kTile = 1024;
constexpr int kLanes = 16;

struct Lanes {
  alignas(64) double dot[kLanes] = {}, a[kLanes] = {}, b[kLanes] = {};
};

template <class C>
FF_INLINE void add_products(const C* a, const C* b, int64_t n, Lanes& sums) {
  const auto add = [&](int64_t i, int j) __attribute__((always_inline)) {
    const double x = static_cast<double>(a[i]), y = static_cast<double>(b[i]);
    sums.dot[j] = fused(x, y, sums.dot[j]);
    sums.a[j] = fused(x, x, sums.a[j]);
    sums.b[j] = fused(y, y, sums.b[j]);
  };
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
#pragma omp simd
    for (int j = 0; j < kLanes; ++j) add(i + j, j);
  }
  for (int j = 0; i + j < n; ++j) add(i + j, j);
}

FF_INLINE double sum_of(const double (&lanes)[kLanes]) {
  double sum = 0.0;
  for (double lane : lanes) sum += lane;
  return sum;
}

template <class S>
void products(const void* a_, const void* b_, int64_t n, double* out) {
  using C = Compute<S>;
  const S* a = static_cast<const S*>(a_);
  const S* b = static_cast<const S*>(b_);
  Lanes sums;
  if constexpr (kStaged<S>) {
    for (int64_t at = 0; at < n; at += kTile) {
      const int64_t count = n - at < kTile ? n - at : kTile;
      alignas(64) C x[kTile], y[kTile];
      load_block(a + at, x, count);
      load_block(b + at, y, count);
      add_products(x, y, count, sums);
    }
  } else {
    add_products(a, b, n, sums);
  }
  out[0] = sum_of(sums.dot);
  out[1] = sum_of(sums.a);
  out[2] = sum_of(sums.b);
}

}  // namespace

constinit const UpdateGradientsTable update_gradients_table = {
    {products<float>, products<BFloat16>, products<Float16>, products<double>},
};

}  // namespace ff::FF_ISA
