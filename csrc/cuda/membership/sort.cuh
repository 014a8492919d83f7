// Sorting with the CUDA toolkit's radix sort, compiled once for all ops (sort.cu), and what ROC statistics share.
#pragma once
#include "common/launch.cuh"

namespace ff::cuda {

// Ascending; Key is float, double (a positive NaN is last) or uint64_t, of which the low `bits` bits are looked at.
template <class Key>
void sort_keys(const DeviceScope& scope, const Tensor& like, const Key* from, Key* to, int64_t size,
               int bits = 8 * sizeof(Key));

// The values (float or double) in ascending order, both zeros as 0, in memory that `buffer` holds.
template <class T>
const T* sorted(const DeviceScope& scope, const Tensor& values, Tensor& buffer);

// How many of the ascending values are below `x` (or not above it).
template <bool OrEqual, class T>
FF_HD int64_t count_below(const T* values, int64_t size, T x) {
  int64_t low = 0, high = size;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (OrEqual ? values[middle] <= x : values[middle] < x) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// The largest k with k / nonmembers <= fpr, compared in float64; -1 if even 0 is too many.
int64_t false_positive_budget(double fpr, int64_t nonmembers);

}  // namespace ff::cuda
