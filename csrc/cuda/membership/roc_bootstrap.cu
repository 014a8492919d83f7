// Bootstrap of AUC and TPR on CUDA. The scores are sorted once. A resample of the nonmembers is then a count at each
// place, a block's own array, in shared memory where it fits; its running sum says how many drawn nonmembers lie below
// any member, so the drawn members need no array: each adds what lies below it, and whether it is above a threshold.
#include "cuda/membership/sort.cuh"

namespace ff::cuda {
namespace {

// Of the distinct places of a member among the nonmembers: how many are below it, and how many are not above.
struct Below {
  uint32_t strictly, or_equal;
};

template <class T>
__global__ void __launch_bounds__(kThreads)
    places_kernel(const T* member, const T* nonmember, int64_t members, int64_t nonmembers, Below* below,
                  uint32_t* members_not_above) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
#pragma unroll 1
  for (int64_t i = first; i < members; i += stride) {
    below[i] = {static_cast<uint32_t>(count_below<false>(nonmember, nonmembers, member[i])),
                static_cast<uint32_t>(count_below<true>(nonmember, nonmembers, member[i]))};
  }
#pragma unroll 1
  for (int64_t i = first; i < nonmembers; i += stride) {
    members_not_above[i] = static_cast<uint32_t>(count_below<true>(member, members, nonmember[i]));
  }
}

struct Resampling {
  const Below* below;                 // [members]
  const uint32_t* members_not_above;  // [nonmembers]
  uint32_t members, nonmembers;
  uint64_t seed;
  int64_t resamples;
  double* out;  // [resamples, 1 + rates]
  int64_t width;
};

constexpr int kRates = 8;  // false positive rates of one launch
struct Budgets {
  int64_t allowed[kRates];  // false positives
  int64_t first;            // column of the first
  int count;
};

// body(place) for every draw of this thread: word i of (seed, stream, step) scaled to [0, size).
template <int Threads, class Body>
__device__ __forceinline__ void each_draw(uint64_t seed, uint32_t stream, uint32_t step, uint32_t size, Body&& body) {
#pragma unroll 1
  for (uint64_t block = threadIdx.x; 4 * block < size; block += Threads) {
    const Words words = philox(seed, stream, step, block);
#pragma unroll
    for (unsigned lane = 0; lane < 4; ++lane) {
      if (4 * block + lane < size) body(static_cast<uint32_t>(uint64_t{word(words, lane)} * size >> 32));
    }
  }
}

// counts[i] becomes the sum of those before i. Each warp sums its own stretch first, then goes through it again.
template <int Threads>
__device__ __forceinline__ void running_sum(uint32_t* counts, uint32_t size) {
  constexpr int kWarps = Threads / kWarp;
  __shared__ uint32_t stretch_sum[kWarps];
  const uint32_t warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const uint64_t stretch = (size / kWarps / kWarp + 1) * kWarp;
  const uint64_t begin = warp * stretch, end = begin + stretch < size ? begin + stretch : size;
  uint32_t sum = 0;
  for (uint64_t i = begin + lane; i < end; i += kWarp) sum += counts[i];
  sum = warp_reduce(sum, Sum{});
  if (lane == 0) stretch_sum[warp] = sum;
  __syncthreads();
  uint32_t before = 0;
  for (uint32_t w = 0; w < warp; ++w) before += stretch_sum[w];
#pragma unroll 1
  for (uint64_t at = begin; at < end; at += kWarp) {
    const uint64_t i = at + lane;
    const uint32_t mine = i < end ? counts[i] : 0;
    uint32_t prefix = 0, total = mine;
#pragma unroll
    for (unsigned step = 1; step < kWarp; step *= 2) {
      const uint32_t other = __shfl_xor_sync(kFullWarp, total, static_cast<int>(step));
      prefix += (lane & step) != 0 ? other : 0;
      total += other;
    }
    if (i < end) counts[i] = before + prefix;
    before += total;
  }
}

// How many of the ascending counts are at most `x`.
__device__ __forceinline__ uint32_t count_at_most(const uint32_t* counts, uint32_t size, uint32_t x) {
  uint32_t low = 0, high = size;
  while (low < high) {
    const uint32_t middle = low + (high - low) / 2;
    if (counts[middle] <= x) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

template <int Threads>
__device__ __forceinline__ void resample(const Resampling& r, const Budgets& budgets, int64_t index, uint32_t* counts) {
  __shared__ uint32_t first_accepted[kRates];
  const uint32_t step = static_cast<uint32_t>(index);
  for (uint64_t i = threadIdx.x; i < r.nonmembers; i += Threads) counts[i] = 0;
  __syncthreads();
  each_draw<Threads>(r.seed, 1, step, r.nonmembers, [&](uint32_t place) { atomicAdd(&counts[place], 1u); });
  __syncthreads();
  running_sum<Threads>(counts, r.nonmembers);
  if (threadIdx.x == 0) counts[r.nonmembers] = r.nonmembers;
  __syncthreads();
  if (threadIdx.x < kRates) {
    uint32_t accepted = UINT32_MAX;  // no place of a member is that high
    const int64_t allowed = static_cast<int>(threadIdx.x) < budgets.count ? budgets.allowed[threadIdx.x] : -1;
    if (allowed >= r.nonmembers) {
      accepted = 0;
    } else if (allowed >= 0) {
      // the drawn nonmember that is the first beyond the budget
      const uint32_t rank = r.nonmembers - 1 - static_cast<uint32_t>(allowed);
      accepted = r.members_not_above[count_at_most(counts, r.nonmembers, rank) - 1];
    }
    first_accepted[threadIdx.x] = accepted;
  }
  __syncthreads();
  unsigned long long rank_sum = 0;
  uint32_t accepted[kRates] = {};
  each_draw<Threads>(r.seed, 0, step, r.members, [&](uint32_t place) {
    const Below below = r.below[place];
    rank_sum += uint64_t{counts[below.strictly]} + counts[below.or_equal];
#pragma unroll
    for (int i = 0; i < kRates; ++i) accepted[i] += place >= first_accepted[i];
  });
  double* const out = r.out + index * r.width;
  rank_sum = block_reduce<Threads>(rank_sum, Sum{});
  if (threadIdx.x == 0 && budgets.first == 1) {
    out[0] = static_cast<double>(rank_sum) / (2.0 * static_cast<double>(r.members) * static_cast<double>(r.nonmembers));
  }
#pragma unroll
  for (int i = 0; i < kRates; i += 2) {
    // two counts below 2^32 in one sum
    const unsigned long long two = accepted[i] | static_cast<unsigned long long>(accepted[i + 1]) << 32;
    const unsigned long long sum = block_reduce<Threads>(two, Sum{});
    if (threadIdx.x != 0) continue;
    const double n = static_cast<double>(r.members);
    if (i < budgets.count) out[budgets.first + i] = static_cast<double>(sum & 0xffffffffu) / n;
    if (i + 1 < budgets.count) out[budgets.first + i + 1] = static_cast<double>(sum >> 32) / n;
  }
}

constexpr int kSharedCounts = 12000;  // of the 48 KB every kernel may have; the rest is for the reductions

__global__ void __launch_bounds__(kThreads)
    shared_bootstrap_kernel(const __grid_constant__ Resampling r, const __grid_constant__ Budgets budgets) {
  __shared__ uint32_t counts[kSharedCounts];
#pragma unroll 1
  for (int64_t index = blockIdx.x; index < r.resamples; index += gridDim.x) {
    resample<kThreads>(r, budgets, index, counts);
  }
}

// One large block a multiprocessor: the arrays of all blocks then have the best chance to stay in L2.
constexpr int kLargeBlock = 1024;

__global__ void __launch_bounds__(kLargeBlock)
    global_bootstrap_kernel(const __grid_constant__ Resampling r, const __grid_constant__ Budgets budgets,
                            uint32_t* room) {
  uint32_t* const counts = room + blockIdx.x * (uint64_t{r.nonmembers} + 1);
#pragma unroll 1
  for (int64_t index = blockIdx.x; index < r.resamples; index += gridDim.x) {
    resample<kLargeBlock>(r, budgets, index, counts);
  }
}

template <class T>
void run_bootstrap(const DeviceScope& scope, const Tensor& member, const Tensor& nonmember,
                   const std::vector<double>& fprs, int64_t seed, int64_t resamples, double* out) {
  const int64_t members = member.numel(), nonmembers = nonmember.numel();
  Tensor member_buffer, nonmember_buffer;
  const T* const m = sorted<T>(scope, member, member_buffer);
  const T* const u = sorted<T>(scope, nonmember, nonmember_buffer);
  const Tensor below = scratch(member, members * int64_t{sizeof(Below)});
  const Tensor not_above = scratch(member, nonmembers * int64_t{sizeof(uint32_t)});
  launch(scope, places_kernel<T>, scope.blocks(ceil_div(std::max(members, nonmembers), kThreads)), kThreads, m, u,
         members, nonmembers, data<Below>(below), data<uint32_t>(not_above));
  const Resampling r = {data<const Below>(below),
                        data<const uint32_t>(not_above),
                        static_cast<uint32_t>(members),
                        static_cast<uint32_t>(nonmembers),
                        static_cast<uint64_t>(seed),
                        resamples,
                        out,
                        1 + static_cast<int64_t>(fprs.size())};
  const bool shared = nonmembers < kSharedCounts;
  const unsigned blocks = static_cast<unsigned>(std::min<int64_t>(resamples, scope.multiprocessors()));
  const Tensor room = scratch(member, shared ? 1 : int64_t{blocks} * (nonmembers + 1) * int64_t{sizeof(uint32_t)});
  for (size_t first = 0; first == 0 || first < fprs.size(); first += kRates) {
    Budgets budgets = {};
    budgets.first = 1 + static_cast<int64_t>(first);
    budgets.count = static_cast<int>(std::min<size_t>(kRates, fprs.size() - first));
    for (int i = 0; i < budgets.count; ++i) {
      budgets.allowed[i] = false_positive_budget(fprs[first + static_cast<size_t>(i)], nonmembers);
    }
    if (shared) {
      launch(scope, shared_bootstrap_kernel, scope.blocks(resamples), kThreads, r, budgets);
    } else {
      launch(scope, global_bootstrap_kernel, blocks, kLargeBlock, r, budgets, data<uint32_t>(room));
    }
  }
}

void roc_bootstrap(Tensor member, Tensor nonmember, std::vector<double> fprs, int64_t seed, Tensor out) {
  constexpr const char* kOp = "roc_bootstrap";
  const ScalarType dtype = member.scalar_type();
  FF_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double, "roc_bootstrap: member has dtype ",
           torch::headeronly::toString(dtype), "; accepted: float32, float64");
  const int64_t members = member.numel(), nonmembers = nonmember.numel();
  FF_CHECK(members > 0 && nonmembers > 0, "roc_bootstrap: member and nonmember must not be empty");
  FF_CHECK(members <= INT32_MAX && nonmembers <= INT32_MAX, "roc_bootstrap: member and nonmember have ", members,
           " and ", nonmembers, " scores; accepted: at most ", INT32_MAX, " each");
  FF_CHECK(out.dim() == 2, "roc_bootstrap: out has ", out.dim(), " dimensions; expected [resamples, 1 + fprs]");
  const int64_t resamples = out.size(0);
  check_layout(member, dtype, members, kOp, "member");
  check_layout(nonmember, dtype, nonmembers, kOp, "nonmember");
  check_layout(out, ScalarType::Double, resamples * (1 + static_cast<int64_t>(fprs.size())), kOp, "out");
  if (resamples == 0) return;
  const DeviceScope scope(member);
  if (dtype == ScalarType::Float) {
    run_bootstrap<float>(scope, member, nonmember, fprs, seed, resamples, data<double>(out));
  } else {
    run_bootstrap<double>(scope, member, nonmember, fprs, seed, resamples, data<double>(out));
  }
}

}  // namespace
}  // namespace ff::cuda

FF_REGISTER(m) { m.impl("roc_bootstrap", TORCH_BOX(&ff::cuda::roc_bootstrap)); }
