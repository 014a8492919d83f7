// Exact ROC statistics on CUDA: both score sets are sorted once, every count is a binary search, and all of it stays on
// the device.
#include "common/call.h"
#include "cuda/membership/sort.cuh"

namespace ff::cuda {
namespace {

template <class T>
struct Sorted {
  const T* member;
  const T* nonmember;
  int64_t members, nonmembers;
};

// members * nonmembers * (TPR - FPR) of a decision "score >= t", from how many of each lie below t. In integers, so
// that equal gains compare equal.
template <class T>
FF_HD int64_t gain(const Sorted<T>& s, int64_t members_below, int64_t nonmembers_below) {
  return (s.members - members_below) * s.nonmembers - (s.nonmembers - nonmembers_below) * s.members;
}

struct RocPart {
  unsigned long long rank_sum;  // twice the Mann-Whitney statistic
  int64_t best;                 // largest gain at a member's value
  int64_t best_at;              // the last member that attains it
  int64_t worst;                // largest loss at a nonmember's value
};

FF_HD RocPart empty_part() { return {0, INT64_MIN, -1, INT64_MIN}; }

FF_HD RocPart merge(const RocPart& a, const RocPart& b) {
  const bool take_b = b.best > a.best || (b.best == a.best && b.best_at > a.best_at);
  return {a.rank_sum + b.rank_sum, take_b ? b.best : a.best, take_b ? b.best_at : a.best_at,
          a.worst > b.worst ? a.worst : b.worst};
}

__device__ __forceinline__ RocPart block_merge(RocPart part) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) {
    RocPart other;
    other.rank_sum = __shfl_xor_sync(kFullWarp, part.rank_sum, step);
    other.best = __shfl_xor_sync(kFullWarp, static_cast<long long>(part.best), step);
    other.best_at = __shfl_xor_sync(kFullWarp, static_cast<long long>(part.best_at), step);
    other.worst = __shfl_xor_sync(kFullWarp, static_cast<long long>(part.worst), step);
    part = merge(part, other);
  }
  __shared__ RocPart partial[kThreads / kWarp];
  if (threadIdx.x % kWarp == 0) partial[threadIdx.x / kWarp] = part;
  __syncthreads();
  part = partial[0];
  // Unrolled, it takes 9 to 30 registers more, and spills on sm_75.
#pragma unroll 1
  for (int warp = 1; warp < kThreads / kWarp; ++warp) part = merge(part, partial[warp]);
  return part;
}

template <class T>
__global__ void __launch_bounds__(kThreads) count_kernel(const __grid_constant__ Sorted<T> s, RocPart* parts) {
  RocPart part = empty_part();
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  // Unrolling would bring a 64-bit division for the trip count, and spills around its call.
#pragma unroll 1
  for (int64_t i = first; i < s.members; i += stride) {
    const T t = s.member[i];
    const int64_t below = count_below<false>(s.nonmember, s.nonmembers, t);
    const int64_t below_or_equal = count_below<true>(s.nonmember, s.nonmembers, t);
    const int64_t here = gain(s, count_below<false>(s.member, s.members, t), below);
    part.rank_sum += static_cast<unsigned long long>(below + below_or_equal);
    part.best_at = here >= part.best ? i : part.best_at;  // i grows: of equal gains the last
    part.best = here >= part.best ? here : part.best;
  }
#pragma unroll 1
  for (int64_t i = first; i < s.nonmembers; i += stride) {
    const T t = s.nonmember[i];
    const int64_t members_below = count_below<false>(s.member, s.members, t);
    const int64_t loss = -gain(s, members_below, count_below<false>(s.nonmember, s.nonmembers, t));
    part.worst = loss > part.worst ? loss : part.worst;
  }
  part = block_merge(part);
  if (threadIdx.x == 0) parts[blockIdx.x] = part;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    summary_kernel(const __grid_constant__ Sorted<T> s, const RocPart* parts, int count, double* out) {
  RocPart part = empty_part();
  for (int i = threadIdx.x; i < count; i += kThreads) part = merge(part, parts[i]);
  part = block_merge(part);
  if (threadIdx.x != 0) return;
  const int64_t best = part.best > 0 ? part.best : 0;  // to call nobody a member gains 0
  const int64_t most = part.worst > best ? part.worst : best;
  const double pairs = static_cast<double>(s.members * s.nonmembers);
  out[0] =
      static_cast<double>(part.rank_sum) / (2.0 * static_cast<double>(s.members) * static_cast<double>(s.nonmembers));
  out[1] = (1.0 + static_cast<double>(best) / pairs) / 2.0;
  out[2] = static_cast<double>(most) / pairs;
  out[3] = best > 0 ? static_cast<double>(s.member[part.best_at]) : __builtin_huge_val();
}

constexpr int kBudgetsPerLaunch = 256;
struct Budgets {
  int64_t allowed[kBudgetsPerLaunch];  // false positives
  int count;
};

// One thread per false positive rate: TPR to tpr[i], the threshold to threshold[i].
template <class T>
__global__ void __launch_bounds__(kBudgetsPerLaunch)
    budget_kernel(const __grid_constant__ Sorted<T> s, const __grid_constant__ Budgets budgets, double* tpr,
                  double* threshold) {
  const int i = static_cast<int>(threadIdx.x);
  if (i >= budgets.count) return;
  const int64_t allowed = budgets.allowed[i];
  int64_t rejected = 0;  // members that score no more than the first nonmember beyond the budget
  if (allowed < 0) {
    rejected = s.members;
  } else if (allowed < s.nonmembers) {
    rejected = count_below<true>(s.member, s.members, s.nonmember[s.nonmembers - 1 - allowed]);
  }
  tpr[i] = static_cast<double>(s.members - rejected) / static_cast<double>(s.members);
  threshold[i] = rejected < s.members ? static_cast<double>(s.member[rejected]) : __builtin_huge_val();
}

template <class T>
void run_roc(const DeviceScope& scope, const Tensor& member, const Tensor& nonmember, const std::vector<double>& fprs,
             double* out) {
  Tensor member_buffer, nonmember_buffer;
  const Sorted<T> s = {sorted<T>(scope, member, member_buffer), sorted<T>(scope, nonmember, nonmember_buffer),
                       member.numel(), nonmember.numel()};
  const unsigned blocks = scope.blocks(ceil_div(std::max(s.members, s.nonmembers), kThreads));
  const Tensor parts = scratch(member, int64_t{blocks} * int64_t{sizeof(RocPart)});
  launch(scope, count_kernel<T>, blocks, kThreads, s, data<RocPart>(parts));
  launch(scope, summary_kernel<T>, 1u, kThreads, s, data<RocPart>(parts), static_cast<int>(blocks), out);
  for (size_t first = 0; first < fprs.size(); first += kBudgetsPerLaunch) {
    Budgets budgets = {};
    budgets.count = static_cast<int>(std::min<size_t>(kBudgetsPerLaunch, fprs.size() - first));
    for (int i = 0; i < budgets.count; ++i) {
      budgets.allowed[i] = false_positive_budget(fprs[first + static_cast<size_t>(i)], s.nonmembers);
    }
    double* const tpr = out + 4 + first;
    launch(scope, budget_kernel<T>, 1u, kBudgetsPerLaunch, s, budgets, tpr, tpr + fprs.size());
  }
}

void roc_stats(Tensor member, Tensor nonmember, std::vector<double> fprs, Tensor out) {
  constexpr const char* kOp = "roc_stats";
  const ScalarType dtype = member.scalar_type();
  FF_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double, "roc_stats: member has dtype ",
           torch::headeronly::toString(dtype), "; accepted: float32, float64");
  FF_CHECK(member.numel() > 0 && nonmember.numel() > 0, "roc_stats: member and nonmember must not be empty");
  check_layout(member, dtype, member.numel(), kOp, "member");
  check_layout(nonmember, dtype, nonmember.numel(), kOp, "nonmember");
  check_layout(out, ScalarType::Double, 4 + 2 * static_cast<int64_t>(fprs.size()), kOp, "out");
  check_call(kOp, false, {given(member, "member"), given(nonmember, "nonmember"), changed(out, "out")});
  const DeviceScope scope(member);
  if (dtype == ScalarType::Float) {
    run_roc<float>(scope, member, nonmember, fprs, data<double>(out));
  } else {
    run_roc<double>(scope, member, nonmember, fprs, data<double>(out));
  }
}

}  // namespace
}  // namespace ff::cuda

FF_REGISTER(m) { m.impl("roc_stats", TORCH_BOX(&ff::cuda::roc_stats)); }
