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
      std::sort(to, to + size);
    }
    return cudaSuccess;
  }
};
}  // namespace cub
