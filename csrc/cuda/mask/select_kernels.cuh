// Kernels of saliency_mask (select.cu).
#pragma once
#include "common/launch.cuh"

namespace ff::cuda {
namespace {

constexpr int kDigitBits = 11;
constexpr int kBins = 1 << kDigitBits;
constexpr int kElements = 8;                            // consecutive ones of a thread: a byte of a packed mask
constexpr int kGroups = 2;                              // of these in flight
constexpr int kChunk = kThreads * kElements * kGroups;  // for every dtype: chunks are ranked across the list
constexpr int kHistogramThreads = 512;
constexpr int kScanThreads = 1024;

struct SelectItem {
  const void* x;
  uint8_t* mask;
  int64_t size;
  int64_t first;  // the first chunk's number in the whole list
  bool aligned;
  bool packed;
  bool mask_aligned;
};

// Where the search stands. For k = 0 all bits are set, a key above all others.
struct Found {
  uint64_t key;        // the digits found so far; in the end the k-th largest magnitude's key
  uint64_t remaining;  // how many of those that share these digits are to be kept
  uint64_t sharing;    // how many share them
};

// All NaN are one key, above infinity's.
FF_HD uint32_t key_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  bits &= 0x7fffffffu;
  return bits > 0x7f800000u ? 0x7fc00000u : bits;
}
FF_HD uint64_t key_of(double x) {
  uint64_t bits;
  memcpy(&bits, &x, sizeof bits);
  bits &= 0x7fffffffffffffffu;
  return bits > 0x7ff0000000000000u ? 0x7ff8000000000000u : bits;
}

// float32, or float64 where the list has any.
template <class Key>
using Value = std::conditional_t<sizeof(Key) == 8, double, float>;

template <class Key, class T>
FF_HD Key select_key(T x) {
  return key_of(static_cast<Value<Key>>(widen(x)));
}

struct Digit {
  int shift, bits;
  bool first;
};

template <class T, class Key>
__global__ void __launch_bounds__(kHistogramThreads)
    histogram_kernel(const __grid_constant__ ListTable<SelectItem> table, const Found* found, Digit digit,
                     unsigned long long* histogram) {
  using P = Pack<T>;
  constexpr int kPacks = kChunk / (kHistogramThreads * P::kSize);
  __shared__ unsigned bins[kBins];
  for (int bin = threadIdx.x; bin < kBins; bin += kHistogramThreads) bins[bin] = 0;
  __syncthreads();
  const Key above = digit.first ? Key(0) : static_cast<Key>(found->key);
  const unsigned low_bits = (1u << digit.bits) - 1u;
  for (int64_t chunk = blockIdx.x; chunk < table.chunks(); chunk += gridDim.x) {
    const int at = table.find(chunk);
    const SelectItem& item = table.items[at];
    const int64_t begin = (chunk - table.first_chunk(at)) * kChunk + threadIdx.x * P::kSize;
    P packs[kPacks];
#pragma unroll
    for (int j = 0; j < kPacks; ++j) {
      const int64_t base = begin + j * kHistogramThreads * P::kSize;
      packs[j] = load_pack<P>(static_cast<const T*>(item.x) + base, item.size - base, item.aligned);
    }
    // equal digits in a row are counted before they go to shared memory: all of them, where weights are pruned
    unsigned last = 0, run = 0;
#pragma unroll
    for (int j = 0; j < kPacks; ++j) {
      const int64_t left = item.size - (begin + j * kHistogramThreads * P::kSize);
#pragma unroll
      for (int i = 0; i < P::kSize; ++i) {
        const Key key = select_key<Key>(packs[j].at[i]);
        if (i >= left || (key >> digit.shift >> digit.bits) != above) continue;
        const unsigned bin = static_cast<unsigned>(key >> digit.shift) & low_bits;
        if (bin != last) {
          if (run != 0) atomicAdd(&bins[last], run);
          last = bin;
          run = 0;
        }
        ++run;
      }
    }
    if (run != 0) atomicAdd(&bins[last], run);
  }
  __syncthreads();
  for (int bin = threadIdx.x; bin < kBins; bin += kHistogramThreads) {
    if (bins[bin] != 0) atomicAdd(&histogram[bin], static_cast<unsigned long long>(bins[bin]));
  }
}

// The sum of the values of the threads before; all threads of the block must call it.
template <int Threads, class V>
__device__ __forceinline__ V block_exclusive_sum(V value, V& total) {
  constexpr int kWarps = Threads / kWarp;
  __shared__ V sums[kWarps];
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  V upto = value;
#pragma unroll
  for (int step = 1; step < kWarp; step *= 2) {
    const V other = __shfl_up_sync(kFullWarp, upto, step);
    if (lane >= step) upto += other;
  }
  __syncthreads();  // the previous call's readers are done
  if (lane == kWarp - 1) sums[warp] = upto;
  __syncthreads();
  V before = 0;
  total = 0;
#pragma unroll
  for (int other = 0; other < kWarps; ++other) {
    if (other < warp) before += sums[other];
    total += sums[other];
  }
  return before + upto - value;
}

// The digit that the k-th largest has: bins are added up from the highest down.
template <class Key>
__global__ void __launch_bounds__(kThreads) digit_kernel(Found* found, const unsigned long long* histogram, Digit digit,
                                                         uint64_t k, bool last, Value<Key>* threshold) {
  constexpr int kEach = kBins / kThreads;
  const unsigned long long wanted = digit.first ? k : found->remaining;
  const uint64_t prefix = digit.first ? 0 : found->key;
  const int top = kBins - 1 - static_cast<int>(threadIdx.x) * kEach;
  unsigned long long counts[kEach], sum = 0, all;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    counts[i] = histogram[top - i];
    sum += counts[i];
  }
  unsigned long long before = block_exclusive_sum<kThreads>(sum, all);
  if (before >= wanted || before + sum < wanted) return;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    if (before < wanted && before + counts[i] >= wanted) {
      uint64_t key = prefix << digit.bits | static_cast<uint64_t>(top - i);
      if (last) {
        key <<= digit.shift;  // what was left out is zero in every key
        const Key bits = static_cast<Key>(key);
        memcpy(threshold, &bits, sizeof bits);
      }
      found->key = key;
      found->remaining = wanted - before;
      found->sharing = counts[i];
    }
    before += counts[i];
  }
}

template <class V>
__global__ void infinity_kernel(V* threshold) {
  if (threadIdx.x == 0) *threshold = static_cast<V>(__builtin_huge_val());
}

template <class T>
__device__ __forceinline__ Pack<T, kElements> load_elements(const SelectItem& item, int64_t base) {
  return load_pack<Pack<T, kElements>>(static_cast<const T*>(item.x) + base, item.size - base, item.aligned);
}

// Bit i of the result: whether compare(key of element i) holds.
template <class Key, class T, class Compare>
__device__ __forceinline__ unsigned compare_keys(const Pack<T, kElements>& pack, int64_t left, Compare compare) {
  unsigned bits = 0;
#pragma unroll
  for (int i = 0; i < kElements; ++i) {
    bits |= static_cast<unsigned>(i < left && compare(select_key<Key>(pack.at[i]))) << i;
  }
  return bits;
}

template <class T, class Key>
__global__ void __launch_bounds__(kThreads)
    ties_kernel(const __grid_constant__ ListTable<SelectItem> table, const Found* found, int64_t* ties) {
  if (found->remaining == found->sharing) return;
  const Key limit = static_cast<Key>(found->key);
  for (int64_t chunk = blockIdx.x; chunk < table.chunks(); chunk += gridDim.x) {
    const int at = table.find(chunk);
    const SelectItem& item = table.items[at];
    const int64_t local = chunk - table.first_chunk(at);
    Pack<T, kElements> packs[kGroups];
#pragma unroll
    for (int j = 0; j < kGroups; ++j) {
      packs[j] = load_elements<T>(item, local * kChunk + (j * kThreads + threadIdx.x) * kElements);
    }
    int count = 0;
#pragma unroll
    for (int j = 0; j < kGroups; ++j) {
      const int64_t left = item.size - (local * kChunk + (j * kThreads + threadIdx.x) * kElements);
      count += __popc(compare_keys<Key>(packs[j], left, [=](Key key) { return key == limit; }));
    }
    count = block_reduce<kThreads>(count, Sum{});
    if (threadIdx.x == 0) ties[item.first + local] = count;
  }
}

// Each chunk's count becomes the sum of those before it.
__global__ void __launch_bounds__(kScanThreads) scan_kernel(const Found* found, int64_t* ties, int64_t chunks) {
  constexpr int kEach = 4;
  if (found->remaining == found->sharing) return;
  long long carried = 0;
  for (int64_t begin = 0; begin < chunks; begin += kScanThreads * kEach) {
    const int64_t first = begin + static_cast<int64_t>(threadIdx.x) * kEach;
    long long counts[kEach], sum = 0, all;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      counts[i] = first + i < chunks ? ties[first + i] : 0;
      sum += counts[i];
    }
    long long before = carried + block_exclusive_sum<kScanThreads>(sum, all);
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      if (first + i < chunks) ties[first + i] = before;
      before += counts[i];
    }
    carried += all;
  }
}

__device__ __forceinline__ void store_mask(const SelectItem& item, int64_t base, unsigned on) {
  const int64_t left = item.size - base;
  if (left <= 0) return;
  if (item.packed) {
    item.mask[base / kElements] = static_cast<uint8_t>(on);
  } else if (item.mask_aligned && left >= kElements) {
    uint64_t bytes = 0;
#pragma unroll
    for (int i = 0; i < kElements; ++i) bytes |= static_cast<uint64_t>(on >> i & 1u) << 8 * i;
    *reinterpret_cast<uint64_t*>(item.mask + base) = bytes;
  } else {
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
      if (i < left) item.mask[base + i] = static_cast<uint8_t>(on >> i & 1u);
    }
  }
}

template <class T, class Key>
__global__ void __launch_bounds__(kThreads)
    mask_kernel(const __grid_constant__ ListTable<SelectItem> table, const Found* found, const int64_t* ties) {
  const Key limit = static_cast<Key>(found->key);
  const int64_t wanted = static_cast<int64_t>(found->remaining);
  const bool all_ties = found->remaining == found->sharing;
  for (int64_t chunk = blockIdx.x; chunk < table.chunks(); chunk += gridDim.x) {
    const int at = table.find(chunk);
    const SelectItem& item = table.items[at];
    const int64_t local = chunk - table.first_chunk(at);
    const int64_t begin = local * kChunk + static_cast<int64_t>(threadIdx.x) * kElements;
    Pack<T, kElements> packs[kGroups];
#pragma unroll
    for (int j = 0; j < kGroups; ++j) packs[j] = load_elements<T>(item, begin + j * kThreads * kElements);
    unsigned on[kGroups], tied[kGroups];
#pragma unroll
    for (int j = 0; j < kGroups; ++j) {
      const int64_t left = item.size - (begin + j * kThreads * kElements);
      on[j] = compare_keys<Key>(packs[j], left, [=](Key key) { return key > limit; });
      tied[j] = compare_keys<Key>(packs[j], left, [=](Key key) { return key == limit; });
    }
    if (all_ties) {
#pragma unroll
      for (int j = 0; j < kGroups; ++j) on[j] |= tied[j];
    } else {
      // both groups' counts in one sum: at most 2048 ties in either half
      static_assert(kGroups == 2 && kThreads * kElements < 1 << 16);
      unsigned all;
      const unsigned before = block_exclusive_sum<kThreads>(
          static_cast<unsigned>(__popc(tied[0])) | static_cast<unsigned>(__popc(tied[1])) << 16, all);
      int64_t rank[kGroups];
      rank[0] = ties[item.first + local] + (before & 0xffffu);
      rank[1] = ties[item.first + local] + (all & 0xffffu) + (before >> 16);
#pragma unroll
      for (int j = 0; j < kGroups; ++j) {
#pragma unroll
        for (int i = 0; i < kElements; ++i) {
          if ((tied[j] >> i & 1u) == 0) continue;
          on[j] |= static_cast<unsigned>(rank[j] < wanted) << i;
          ++rank[j];
        }
      }
    }
#pragma unroll
    for (int j = 0; j < kGroups; ++j) store_mask(item, begin + j * kThreads * kElements, on[j]);
  }
}

}  // namespace
}  // namespace ff::cuda
