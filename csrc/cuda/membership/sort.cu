#include "cuda/membership/sort.cuh"

#include <cub/device/device_radix_sort.cuh>

#include <cmath>

namespace ff::cuda {
namespace {

// -0.0 and 0.0 are one threshold; their sum with 0.0 is 0.0.
template <class T>
__global__ void __launch_bounds__(kThreads) canonical_kernel(const T* from, T* to, int64_t size) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < size; i += stride) {
    to[i] = from[i] + T(0);
  }
}

}  // namespace

template <class Key>
void sort_keys(const DeviceScope& scope, const Tensor& like, const Key* from, Key* to, int64_t size, int bits) {
  size_t bytes = 0;
  FF_CUDA_CHECK(cub::DeviceRadixSort::SortKeys(nullptr, bytes, from, to, size, 0, bits, scope.stream()));
  const Tensor work = scratch(like, static_cast<int64_t>(std::max<size_t>(bytes, 1)));
  FF_CUDA_CHECK(cub::DeviceRadixSort::SortKeys(work.data_ptr(), bytes, from, to, size, 0, bits, scope.stream()));
}

template void sort_keys(const DeviceScope&, const Tensor&, const float*, float*, int64_t, int);
template void sort_keys(const DeviceScope&, const Tensor&, const double*, double*, int64_t, int);
template void sort_keys(const DeviceScope&, const Tensor&, const uint64_t*, uint64_t*, int64_t, int);

template <class T>
const T* sorted(const DeviceScope& scope, const Tensor& values, Tensor& buffer) {
  const int64_t size = values.numel();
  buffer = scratch(values, 2 * size * int64_t{sizeof(T)});
  T* const from = data<T>(buffer);
  T* const to = from + size;
  launch(scope, canonical_kernel<T>, scope.blocks(ceil_div(size, kThreads)), kThreads, data<const T>(values), from,
         size);
  sort_keys(scope, values, from, to, size);
  return to;
}

template const float* sorted(const DeviceScope&, const Tensor&, Tensor&);
template const double* sorted(const DeviceScope&, const Tensor&, Tensor&);

int64_t false_positive_budget(double fpr, int64_t nonmembers) {
  const double n = static_cast<double>(nonmembers);
  if (!(fpr >= 0.0)) return -1;
  if (fpr >= 1.0) return nonmembers;
  int64_t k = static_cast<int64_t>(std::floor(fpr * n));
  while (k > 0 && static_cast<double>(k) / n > fpr) --k;
  while (k < nonmembers && static_cast<double>(k + 1) / n <= fpr) ++k;
  return k;
}

}  // namespace ff::cuda
