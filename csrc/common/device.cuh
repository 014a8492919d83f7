// Device-side helpers shared by the CUDA kernels: storage types, 16-byte packs, reductions in a fixed order.
// Torch-free.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "common/philox.h"  // FF_HD

namespace ff::cuda {

constexpr int kWarp = 32;
constexpr unsigned kFullWarp = 0xffffffffu;

// float64 is computed in float64, everything narrower in float32.
template <class T>
struct ComputeType {
  using type = float;
};
template <>
struct ComputeType<double> {
  using type = double;
};
template <class T>
using Compute = typename ComputeType<T>::type;

FF_HD float widen(float x) { return x; }
FF_HD double widen(double x) { return x; }
FF_HD float widen(__half x) { return __half2float(x); }
FF_HD float widen(__nv_bfloat16 x) { return __bfloat162float(x); }

// To the storage type, rounded to nearest even.
template <class T>
FF_HD T narrow(Compute<T> x) {
  if constexpr (sizeof(T) == 2) {
    if constexpr (std::is_same_v<T, __half>) {
      return __float2half_rn(x);
    } else {
      return __float2bfloat16_rn(x);
    }
  } else {
    return x;
  }
}

// N consecutive elements, moved with 16-byte accesses where the pointer allows it. Kept in storage form until used:
// half the registers for 16-bit types while the loads are in flight.
template <class T, int N = 16 / static_cast<int>(sizeof(T))>
struct alignas(16) Pack {
  static_assert(N * sizeof(T) % 16 == 0);
  static constexpr int kSize = N;
  static constexpr int kWords = N * static_cast<int>(sizeof(T)) / 16;
  T at[N];
};

template <class P, class T>
__device__ __forceinline__ P load_whole(const T* from) {
  uint4 words[P::kWords];
#pragma unroll
  for (int w = 0; w < P::kWords; ++w) words[w] = reinterpret_cast<const uint4*>(from)[w];
  P pack;
  memcpy(pack.at, words, sizeof words);
  return pack;
}

// An ordinary assignment of a uint4 is taken apart into 4-byte stores.
__device__ __forceinline__ void store16(void* to, uint4 words) {
#if defined(__CUDA_ARCH__)
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(words.x), "r"(words.y), "r"(words.z),
               "r"(words.w)
               : "memory");
#else
  *static_cast<uint4*>(to) = words;
#endif
}

template <class P, class T>
__device__ __forceinline__ void store_whole(T* to, const P& pack) {
  uint4 words[P::kWords];
  memcpy(words, pack.at, sizeof words);
#pragma unroll
  for (int w = 0; w < P::kWords; ++w) store16(reinterpret_cast<uint4*>(to) + w, words[w]);
}

// `left` elements remain from `from` on; the missing ones read as zero. `aligned` promises a 16-byte address.
template <class P, class T>
__device__ __forceinline__ P load_pack(const T* from, int64_t left, bool aligned) {
  if (aligned && left >= P::kSize) return load_whole<P>(from);
  P pack;
#pragma unroll
  for (int i = 0; i < P::kSize; ++i) pack.at[i] = i < left ? from[i] : narrow<T>(0);
  return pack;
}

template <class P, class T>
__device__ __forceinline__ void store_pack(T* to, const P& pack, int64_t left, bool aligned) {
  if (aligned && left >= P::kSize) {
    store_whole(to, pack);
    return;
  }
#pragma unroll
  for (int i = 0; i < P::kSize; ++i) {
    if (i < left) to[i] = pack.at[i];
  }
}

struct Sum {
  template <class V>
  __device__ __forceinline__ V operator()(V a, V b) const {
    return a + b;
  }
};

// Every lane gets the result. The order of the butterfly is fixed, so a float sum is the same in every run.
template <class V, class Op>
__device__ __forceinline__ V warp_reduce(V value, Op op) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) value = op(value, __shfl_xor_sync(kFullWarp, value, step));
  return value;
}

// Every thread gets the result; all threads of the block must call it.
template <int Threads, class V, class Op>
__device__ __forceinline__ V block_reduce(V value, Op op) {
  static_assert(Threads % kWarp == 0);
  constexpr int kWarps = Threads / kWarp;
  __shared__ V partial[kWarps];
  value = warp_reduce(value, op);
  __syncthreads();  // the previous call's readers are done
  if (threadIdx.x % kWarp == 0) partial[threadIdx.x / kWarp] = value;
  __syncthreads();
  value = partial[0];
#pragma unroll
  for (int warp = 1; warp < kWarps; ++warp) value = op(value, partial[warp]);
  return value;
}

// Work for one launch over a list of tensors, passed by value as a kernel parameter: no copy to the device, so the
// launch can be captured in a graph. Item i owns the chunks [chunk_end[i - 1], chunk_end[i]).
template <class Item>
struct ListTable {
  static constexpr int kBytes = 4000;  // of the 4 KB every CUDA version takes; the rest is for scalars
  static constexpr int kCapacity = (kBytes - 8) / static_cast<int>(sizeof(Item) + sizeof(int64_t));

  int64_t chunk_end[kCapacity];
  Item items[kCapacity];
  int count;

  __device__ __forceinline__ int64_t chunks() const { return chunk_end[count - 1]; }

  __device__ __forceinline__ int find(int64_t chunk) const {
    int low = 0, high = count - 1;
    while (low < high) {
      const int middle = (low + high) / 2;
      if (chunk < chunk_end[middle]) {
        high = middle;
      } else {
        low = middle + 1;
      }
    }
    return low;
  }

  __device__ __forceinline__ int64_t first_chunk(int item) const { return item == 0 ? 0 : chunk_end[item - 1]; }
};

}  // namespace ff::cuda
