// RMIA on CUDA. A pair counts where fl(x / z) >= gamma, by the division itself: it falls as z grows, so among sorted z
// the counted ones are the first ones, and a binary search with that same predicate finds how many. Where each of
// several queries has a say there is no order to search in; then the largest z that still counts stands for the
// division, and a pair costs a comparison of integers a query.
#include <limits>

#include "cuda/membership/sort.cuh"

namespace ff::cuda {
namespace {

template <class T>
__device__ __forceinline__ bool dominates(T x, T z, T gamma, bool strict) {
  const T quotient = x / z;
  return strict ? quotient > gamma : quotient >= gamma;
}

// Bits of floats >= 0 are in the order of the values.
template <class T>
struct Bits {
  using Key = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
  static constexpr Key kInfinity = sizeof(T) == 4 ? Key(0x7f800000) : static_cast<Key>(0x7ff0000000000000);
  static constexpr Key kNever = std::numeric_limits<Key>::max();  // a NaN

  __device__ __forceinline__ static T value(Key key) {
    T x;
    memcpy(&x, &key, sizeof x);
    return x;
  }
  // A NaN, a -0 and what is negative never count; all become the same NaN.
  __device__ __forceinline__ static Key key(T z) {
    Key bits;
    memcpy(&bits, &z, sizeof bits);
    return bits >= 0 && bits <= kInfinity ? bits : kNever;
  }
};

// What the sort sees. One row: the values. Several rows of float32: the row above the value's bits, so that one sort
// does for all.
template <class T, class Stored>
__global__ void __launch_bounds__(kThreads) stored_kernel(const T* from, Stored* to, int64_t row_size, int64_t size) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
#pragma unroll 1
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < size; i += stride) {
    const auto key = Bits<T>::key(from[i]);
    if constexpr (std::is_same_v<T, Stored>) {
      to[i] = Bits<T>::value(key);
    } else {
      to[i] = static_cast<uint64_t>(i / row_size) << 32 | static_cast<uint32_t>(key);
    }
  }
}

template <class T, class Stored>
__device__ __forceinline__ T restored(Stored stored) {
  if constexpr (std::is_same_v<T, Stored>) {
    return stored;
  } else {
    return Bits<T>::value(static_cast<int32_t>(static_cast<uint32_t>(stored)));
  }
}

constexpr int kGammasPerLaunch = 64;
struct Gammas {
  double at[kGammasPerLaunch];
  int count;
  bool strict;
};

struct RowBounds {
  int64_t zeros, numbers;  // entries that are 0, and that are no NaN
};

template <class T, class Stored>
__global__ void __launch_bounds__(kThreads)
    bounds_kernel(const Stored* z, RowBounds* bounds, int64_t rows, int64_t row_size) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
#pragma unroll 1
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; row < rows; row += stride) {
    const Stored* const values = z + row * row_size;
    const auto first_above = [&](T limit) {
      int64_t low = 0, high = row_size;
      while (low < high) {
        const int64_t middle = low + (high - low) / 2;
        if (restored<T>(values[middle]) <= limit) {
          low = middle + 1;
        } else {
          high = middle;
        }
      }
      return low;
    };
    bounds[row] = {first_above(T(0)), first_above(static_cast<T>(__builtin_huge_val()))};
  }
}

// x is [rows, samples]; the counts of one gamma are `gamma_step` behind those of the one before.
template <class T, class Stored>
__global__ void __launch_bounds__(kThreads)
    counts_kernel(const T* ratios, const Stored* z, const RowBounds* bounds, int64_t rows, int64_t samples,
                  int64_t row_size, const __grid_constant__ Gammas gammas, int64_t* counts, int64_t gamma_step) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads, size = rows * samples;
#pragma unroll 1
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < size; i += stride) {
    const int64_t row = i / samples;
    const RowBounds bound = bounds[row];
    const Stored* const values = z + row * row_size;
    const T x = ratios[i];
#pragma unroll 1
    for (int g = 0; g < gammas.count; ++g) {
      const T gamma = static_cast<T>(gammas.at[g]);
      // x / 0 is the largest quotient, or none at all for x = 0, whose other quotients may still do
      const int64_t zeros = dominates(x, T(0), gamma, gammas.strict) ? bound.zeros : 0;
      int64_t low = bound.zeros, high = bound.numbers;
      while (low < high) {
        const int64_t middle = low + (high - low) / 2;
        if (dominates(x, restored<T>(values[middle]), gamma, gammas.strict)) {
          low = middle + 1;
        } else {
          high = middle;
        }
      }
      counts[g * gamma_step + i] = zeros + low - bound.zeros;
    }
  }
}

// `z` is [rows, row_size].
template <class T, class Stored>
void count_rows(const DeviceScope& scope, const Tensor& like, const T* x, const T* z, int64_t rows, int64_t samples,
                int64_t row_size, const std::vector<double>& gammas, bool strict, int64_t* counts, int64_t gamma_step) {
  const int64_t size = rows * row_size;
  const Tensor room = scratch(like, 2 * size * int64_t{sizeof(Stored)});
  const Tensor bounds = scratch(like, rows * int64_t{sizeof(RowBounds)});
  Stored* const stored = data<Stored>(room);
  Stored* const ascending = stored + size;
  if (size > 0) {
    launch(scope, stored_kernel<T, Stored>, scope.blocks(ceil_div(size, kThreads)), kThreads, z, stored, row_size,
           size);
    int bits = 8 * sizeof(Stored);
    if constexpr (!std::is_same_v<T, Stored>) {
      bits = 32;
      while (rows > int64_t{1} << (bits - 32)) ++bits;
    }
    sort_keys(scope, like, stored, ascending, size, bits);
  }
  launch(scope, bounds_kernel<T, Stored>, scope.blocks(ceil_div(rows, kThreads)), kThreads, ascending,
         data<RowBounds>(bounds), rows, row_size);
  for (size_t first = 0; first < gammas.size(); first += kGammasPerLaunch) {
    Gammas table = {};
    table.count = static_cast<int>(std::min<size_t>(kGammasPerLaunch, gammas.size() - first));
    table.strict = strict;
    std::copy_n(gammas.begin() + static_cast<int64_t>(first), table.count, table.at);
    launch(scope, counts_kernel<T, Stored>, scope.blocks(ceil_div(rows * samples, kThreads)), kThreads, x, ascending,
           data<RowBounds>(bounds), rows, samples, row_size, table, counts + static_cast<int64_t>(first) * gamma_step,
           gamma_step);
  }
}

void check_ratios(const Tensor& x, const Tensor& z, const char* op) {
  const ScalarType dtype = x.scalar_type();
  if (dtype != ScalarType::Float && dtype != ScalarType::Double) {
    fail("fastforget.", op, ": ratio_x has dtype ", torch::headeronly::toString(dtype), "; accepted: float32, float64");
  }
  if (x.dim() != 2 || z.dim() != 2) {
    fail("fastforget.", op, ": ratio_x and ratio_z have ", x.dim(), " and ", z.dim(), " dimensions; expected 2");
  }
  check_layout(x, dtype, x.size(0) * x.size(1), op, "ratio_x");
  check_layout(z, dtype, x.size(0) * z.size(1), op, "ratio_z");
}

void rmia_counts(Tensor ratio_x, Tensor ratio_z, std::vector<double> gammas, bool strict, Tensor counts) {
  constexpr const char* kOp = "rmia_counts";
  check_ratios(ratio_x, ratio_z, kOp);
  const int64_t rows = ratio_x.size(0), samples = ratio_x.size(1), row_size = ratio_z.size(1), all = rows * samples;
  check_layout(counts, ScalarType::Long, static_cast<int64_t>(gammas.size()) * all, kOp, "counts");
  if (all == 0 || gammas.empty()) return;
  const DeviceScope scope(ratio_x);
  int64_t* const out = data<int64_t>(counts);
  if (ratio_x.scalar_type() == ScalarType::Double) {
    for (int64_t row = 0; row < rows; ++row) {
      count_rows<double, double>(scope, ratio_x, data<const double>(ratio_x) + row * samples,
                                 data<const double>(ratio_z) + row * row_size, 1, samples, row_size, gammas, strict,
                                 out + row * samples, all);
    }
  } else if (rows == 1) {
    count_rows<float, float>(scope, ratio_x, data<const float>(ratio_x), data<const float>(ratio_z), 1, samples,
                             row_size, gammas, strict, out, all);
  } else {
    count_rows<float, uint64_t>(scope, ratio_x, data<const float>(ratio_x), data<const float>(ratio_z), rows, samples,
                                row_size, gammas, strict, out, all);
  }
}

// ---- a vote of several queries

constexpr int kVoteX = 4, kVoteZ = 8;  // pairs of one thread at a time
constexpr int kVoteTile = kThreads * kVoteX;

// [queries, size] to [queries, padded] keys; what is added never counts.
template <class T>
__global__ void __launch_bounds__(kThreads)
    keys_kernel(const T* from, typename Bits<T>::Key* to, int64_t size, int64_t padded, int64_t total) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
#pragma unroll 1
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < total; i += stride) {
    const int64_t query = i / padded, at = i - query * padded;
    to[i] = at < size ? Bits<T>::key(from[query * size + at]) : Bits<T>::kNever;
  }
}

// For gamma > 0: the first key that no longer counts, so that a pair counts exactly where key < limit.
template <class T>
__global__ void __launch_bounds__(kThreads) limits_kernel(const T* from, typename Bits<T>::Key* to, int64_t size,
                                                          int64_t padded, int64_t total, T gamma, bool strict) {
  using Key = typename Bits<T>::Key;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
#pragma unroll 1
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < total; i += stride) {
    const int64_t query = i / padded, at = i - query * padded;
    const T x = at < size ? from[query * size + at] : T(0);
    Key low = 0, high = Bits<T>::kInfinity + 1;
    while (low < high) {
      const Key middle = low + (high - low) / 2;
      if (dominates(x, Bits<T>::value(middle), gamma, strict)) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    to[i] = low;
  }
}

// Block (tile of x, part of z). The counts of the parts are integers: their order does not matter.
// All tiles times parts are fewer than 2^32: a 64-bit division would bring a call, and spills around it. Left to itself
// the compiler stops at 64 registers and spills; two blocks on a multiprocessor leave it 128.
template <class Key>
__global__ void __launch_bounds__(kThreads, 2)
    vote_kernel(const Key* limits, const Key* keys, int64_t samples, int64_t padded_x, int64_t padded_z, int queries,
                uint32_t parts, uint32_t items, int64_t part_size, unsigned long long* counts) {
  using Keys = Pack<Key, kVoteZ>;
#pragma unroll 1
  for (uint32_t item = blockIdx.x; item < items; item += gridDim.x) {
    const uint32_t tile = item / parts;
    const int64_t begin = (item - tile * parts) * part_size;
    const int64_t end = begin + part_size < padded_z ? begin + part_size : padded_z;
    const int64_t first = int64_t{tile} * kVoteTile + threadIdx.x;
    uint32_t total[kVoteX] = {};
#pragma unroll 1
    for (int64_t z = begin; z < end; z += kVoteZ) {
      int votes[kVoteX][kVoteZ] = {};
#pragma unroll 1
      for (int query = 0; query < queries; ++query) {
        const Keys key = load_whole<Keys>(keys + query * padded_z + z);
#pragma unroll
        for (int i = 0; i < kVoteX; ++i) {
          const Key limit = limits[query * padded_x + first + i * kThreads];
#pragma unroll
          for (int j = 0; j < kVoteZ; ++j) votes[i][j] += key.at[j] < limit;
        }
      }
#pragma unroll
      for (int i = 0; i < kVoteX; ++i) {
        int counted = 0;
#pragma unroll
        for (int j = 0; j < kVoteZ; ++j) counted += votes[i][j] > queries / 2;
        total[i] += static_cast<uint32_t>(counted);
      }
    }
#pragma unroll
    for (int i = 0; i < kVoteX; ++i) {
      const int64_t at = first + i * kThreads;
      if (at < samples && total[i] > 0) atomicAdd(counts + at, static_cast<unsigned long long>(total[i]));
    }
  }
}

// For gamma <= 0, where 0 / z counts but 0 / 0 does not, and there is no one limit.
template <class T>
__global__ void __launch_bounds__(kThreads) divide_kernel(const T* x, const T* z, int64_t samples, int64_t zs,
                                                          int queries, T gamma, bool strict, int64_t* counts) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
#pragma unroll 1
  for (int64_t n = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; n < samples; n += stride) {
    int64_t total = 0;
#pragma unroll 1
    for (int64_t i = 0; i < zs; ++i) {
      int votes = 0;
#pragma unroll 1
      for (int query = 0; query < queries; ++query) {
        votes += dominates(x[query * samples + n], z[query * zs + i], gamma, strict);
      }
      total += votes > queries / 2;
    }
    counts[n] = total;
  }
}

template <class T>
void run_vote(const DeviceScope& scope, const Tensor& ratio_x, const Tensor& ratio_z, T gamma, bool strict,
              int64_t* counts) {
  using Key = typename Bits<T>::Key;
  const int64_t queries = ratio_x.size(0), samples = ratio_x.size(1), zs = ratio_z.size(1);
  const T* const x = data<const T>(ratio_x);
  const T* const z = data<const T>(ratio_z);
  if (!(gamma > T(0))) {
    launch(scope, divide_kernel<T>, scope.blocks(ceil_div(samples, kThreads)), kThreads, x, z, samples, zs,
           static_cast<int>(queries), gamma, strict, counts);
    return;
  }
  FF_CUDA_CHECK(cudaMemsetAsync(counts, 0, static_cast<size_t>(samples) * sizeof(int64_t), scope.stream()));
  if (queries * zs == 0) return;
  const int64_t padded_x = ceil_div(samples, kVoteTile) * kVoteTile, padded_z = ceil_div(zs, kVoteZ) * kVoteZ;
  const Tensor limits = scratch(ratio_x, queries * padded_x * int64_t{sizeof(Key)});
  const Tensor keys = scratch(ratio_x, queries * padded_z * int64_t{sizeof(Key)});
  launch(scope, limits_kernel<T>, scope.blocks(ceil_div(queries * padded_x, kThreads)), kThreads, x, data<Key>(limits),
         samples, padded_x, queries * padded_x, gamma, strict);
  launch(scope, keys_kernel<T>, scope.blocks(ceil_div(queries * padded_z, kThreads)), kThreads, z, data<Key>(keys), zs,
         padded_z, queries * padded_z);
  // as many parts of z as fill the device with the tiles of x, of 64 z at least
  const int64_t tiles = padded_x / kVoteTile;
  const int64_t wanted = std::clamp<int64_t>(16 * int64_t{scope.multiprocessors()} / tiles, 1, ceil_div(padded_z, 64));
  const int64_t part_size = std::min(ceil_div(ceil_div(padded_z, wanted), kVoteZ) * kVoteZ, int64_t{1} << 30);
  const int64_t parts = ceil_div(padded_z, part_size);
  launch(scope, vote_kernel<Key>, scope.blocks(tiles * parts), kThreads, data<const Key>(limits), data<const Key>(keys),
         samples, padded_x, padded_z, static_cast<int>(queries), static_cast<uint32_t>(parts),
         static_cast<uint32_t>(tiles * parts), part_size, reinterpret_cast<unsigned long long*>(counts));
}

void rmia_vote(Tensor ratio_x, Tensor ratio_z, double gamma, bool strict, Tensor counts) {
  constexpr const char* kOp = "rmia_vote";
  check_ratios(ratio_x, ratio_z, kOp);
  const int64_t queries = ratio_x.size(0), samples = ratio_x.size(1);
  FF_CHECK(queries <= INT32_MAX, "rmia_vote: ratio_x has ", queries, " queries; accepted: at most ", INT32_MAX);
  check_layout(counts, ScalarType::Long, samples, kOp, "counts");
  if (samples == 0) return;
  const DeviceScope scope(ratio_x);
  if (ratio_x.scalar_type() == ScalarType::Double) {
    run_vote<double>(scope, ratio_x, ratio_z, gamma, strict, data<int64_t>(counts));
  } else {
    run_vote<float>(scope, ratio_x, ratio_z, static_cast<float>(gamma), strict, data<int64_t>(counts));
  }
}

}  // namespace
}  // namespace ff::cuda

FF_REGISTER(m) {
  m.impl("rmia_counts", TORCH_BOX(&ff::cuda::rmia_counts));
  m.impl("rmia_vote", TORCH_BOX(&ff::cuda::rmia_vote));
}
