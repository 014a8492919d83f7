#pragma once
#include <algorithm>

#include "cuda_runtime.h"

namespace cub {
struct DeviceRadixSort {
  template <class T>
  static cudaError_t SortKeys(void* work, size_t& bytes, const T* from, T* to, int64_t size, int, int, cudaStream_t) {
    if (work == nullptr) {
      bytes = 1;
    } else {
      std::copy(from, from + size, to);
      // on bits a (positive) NaN is the largest
      std::sort(to, to + size, [](T a, T b) { return a < b || (a == a && b != b); });
    }
    return cudaSuccess;
  }
};
}  // namespace cub
