// What the memory of this machine allows, which streaming kernels are measured against: each byte once, next to no
// arithmetic, values that stay where they are. Compiled once per instruction set.
#include "common/numeric.h"
#include "common/table.h"

namespace ff::FF_ISA {
namespace {

constexpr float kTiny = 0x1p-60f;

float read(const float* a, int64_t n) {
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

void update(float* a, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) a[i] = a[i] + kTiny;
}

void axpy(float* a, const float* b, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) a[i] = fused(b[i], kTiny, a[i]);
}

void select(float* a, const float* b, const float* c, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) a[i] = fused(b[i] + c[i], kTiny, a[i]);
}

void adam(float* a, const float* b, float* c, float* d, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const float g = b[i];
    a[i] = fused(g, kTiny, a[i]);
    c[i] = fused(g, kTiny, c[i]);
    d[i] = fused(g, kTiny, d[i]);
  }
}

}  // namespace

constinit const LimitTable limit_table = {read, update, axpy, select, adam};

}  // namespace ff::FF_ISA
