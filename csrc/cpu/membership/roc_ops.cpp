// roc_stats and roc_bootstrap on CPU tensors: checks, sorting, the cut of the work; and roc_stats itself, one walk over
// the sorted values of both sides. Counts are integers throughout, so ties cost no accuracy and the order of equal
// scores does not matter.
#include <algorithm>
#include <limits>
#include <vector>

#include "common/radix.h"
#include "common/scratch.h"
#include "common/table.h"
#include "common/torch_glue.h"

namespace ff {
namespace {

// The largest k with k / n <= fpr, compared in float64; -1 if there is none.
int64_t false_positives_allowed(double fpr, int64_t n) {
  const auto allowed = [&](int64_t k) { return static_cast<double>(k) / static_cast<double>(n) <= fpr; };
  if (allowed(n)) return n;
  if (!allowed(0)) return -1;
  auto k = static_cast<int64_t>(fpr * static_cast<double>(n));
  while (!allowed(k)) --k;
  while (allowed(k + 1)) ++k;
  return k;
}

template <class Score>
using Keys = std::vector<typename KeyOf<Score>::type>;

template <class Score>
Keys<Score> sorted_side(const Tensor& side) {
  Keys<Score> keys(static_cast<size_t>(side.numel()));
  const Score* scores = static_cast<const Score*>(side.data_ptr());
  std::transform(scores, scores + keys.size(), keys.begin(), to_key<Score>);
  sort_keys(keys);
  return keys;
}

// ---- roc_stats ------------------------------------------------------------------------------------------------------

constexpr int64_t kGrainScores = 8192;  // fewer are sorted by one thread

// out[4 + 2 * fprs]: auc, balanced accuracy, advantage, best threshold, then the TPR at each FPR and its threshold.
// Both sides are sorted and hold at least one score and no NaN.
template <class Score>
void statistics(const Keys<Score>& member, const Keys<Score>& nonmember, const std::vector<double>& fprs, double* out) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  const auto n1 = static_cast<int64_t>(member.size()), n0 = static_cast<int64_t>(nonmember.size());
  const auto rates = static_cast<int64_t>(fprs.size());
  const auto score_of = [](auto key) { return static_cast<double>(from_key<Score>(key)); };

  // From the largest score down. TPR - FPR is compared as tp * n0 - fp * n1, an exact integer.
  int64_t tp = 0, fp = 0, best = 0, worst = 0, best_tp = 0;
  uint64_t twice_wins = 0;  // pairs with member > nonmember count 2, ties 1
  while (tp < n1 && fp < n0) {
    const auto m = member[n1 - 1 - tp], o = nonmember[n0 - 1 - fp];
    const auto threshold = std::max(m, o);
    int64_t tied_members = 0, tied_nonmembers = 0;
    while (tp + tied_members < n1 && member[n1 - 1 - tp - tied_members] == threshold) ++tied_members;
    while (fp + tied_nonmembers < n0 && nonmember[n0 - 1 - fp - tied_nonmembers] == threshold) ++tied_nonmembers;
    tp += tied_members;
    fp += tied_nonmembers;
    twice_wins += static_cast<uint64_t>(tied_members) * static_cast<uint64_t>(2 * (n0 - fp) + tied_nonmembers);
    const int64_t gain = tp * n0 - fp * n1;
    if (gain > best) {
      best = gain;
      best_tp = tp;
    }
    worst = std::min(worst, gain);
  }
  // Past the end of one side the other only moves the gain towards 0.
  const double pairs = static_cast<double>(n1) * static_cast<double>(n0);
  out[0] = static_cast<double>(twice_wins) / (2.0 * pairs);
  out[1] = (1.0 + static_cast<double>(best) / pairs) / 2.0;
  out[2] = static_cast<double>(std::max(best, -worst)) / pairs;
  out[3] = best_tp > 0 ? score_of(member[n1 - best_tp]) : kInfinity;

  for (int64_t i = 0; i < rates; ++i) {
    const int64_t k = false_positives_allowed(fprs[static_cast<size_t>(i)], n0);
    int64_t counted = 0;
    if (k >= n0) {
      counted = n1;
    } else if (k >= 0) {
      const auto limit = nonmember[n0 - 1 - k];
      counted = member.end() - std::upper_bound(member.begin(), member.end(), limit);
    }
    out[4 + i] = static_cast<double>(counted) / static_cast<double>(n1);
    out[4 + rates + i] = counted > 0 ? score_of(member[n1 - counted]) : kInfinity;
  }
}

template <class Score>
void run_roc_stats(const Tensor& member, const Tensor& nonmember, const std::vector<double>& fprs, double* out) {
  const int64_t n1 = member.numel(), n0 = nonmember.numel();
  Keys<Score> keys[2];
  const auto sort = [&](int64_t begin, int64_t end) {
    for (int64_t side = begin; side < end; ++side) keys[side] = sorted_side<Score>(side == 0 ? member : nonmember);
  };
  if (n1 + n0 < kGrainScores) {
    sort(0, 2);
  } else {
    torch::stable::parallel_for(0, 2, 1, sort);
  }
  statistics<Score>(keys[0], keys[1], fprs, out);
}

void roc_stats(Tensor member, Tensor nonmember, std::vector<double> fprs, Tensor out) {
  constexpr const char* kOp = "roc_stats";
  const bool is_double = is_float64(member, kOp, "member");
  const ScalarType type = is_double ? ScalarType::Double : ScalarType::Float;
  check_layout(member, type, member.numel(), kOp, "member");
  check_layout(nonmember, type, nonmember.numel(), kOp, "nonmember");
  check_layout(out, ScalarType::Double, 4 + 2 * static_cast<int64_t>(fprs.size()), kOp, "out");
  if (member.numel() == 0 || nonmember.numel() == 0) fail("fastforget.", kOp, ": each side needs at least one score");
  double* result = static_cast<double*>(out.data_ptr());
  if (is_double) {
    run_roc_stats<double>(member, nonmember, fprs, result);
  } else {
    run_roc_stats<float>(member, nonmember, fprs, result);
  }
}

// ---- roc_bootstrap --------------------------------------------------------------------------------------------------

constexpr int64_t kGrainDraws = 4096;  // worth a thread

// How many of `other` lie below each of `side`, or at or below it; both are sorted.
template <class Key, class Counts>
std::vector<int32_t> placements(const std::vector<Key>& side, const std::vector<Key>& other, Counts counts) {
  std::vector<int32_t> places(side.size());
  size_t at = 0;
  for (size_t i = 0; i < side.size(); ++i) {
    while (at < other.size() && counts(other[at], side[i])) ++at;
    places[i] = static_cast<int32_t>(at);
  }
  return places;
}

template <class Score>
void bootstrap(const Tensor& member, const Tensor& nonmember, const std::vector<int64_t>& budgets, uint64_t seed,
               int64_t resamples, double* out) {
  const auto members = sorted_side<Score>(member), nonmembers = sorted_side<Score>(nonmember);
  const auto less = [](auto a, auto b) { return a < b; };
  const auto at_most = [](auto a, auto b) { return a <= b; };
  const auto below = placements(members, nonmembers, less), upto = placements(members, nonmembers, at_most);
  const auto members_upto = placements(nonmembers, members, at_most);
  const auto n1 = static_cast<int64_t>(members.size()), n0 = static_cast<int64_t>(nonmembers.size());
  const auto rates = static_cast<int64_t>(budgets.size());
  const BootstrapJob job = {n1, n0, below.data(), upto.data(), members_upto.data(), budgets.data(), rates, seed};
  const MembershipRocTable& kernels = table().membership_roc;
  const int64_t bytes = kernels.scratch_bytes(n1, n0);
  const int64_t grain = 1 + kGrainDraws / (n1 + n0);
  torch::stable::parallel_for(0, resamples, grain, [&](int64_t begin, int64_t end) {
    ScratchMemory scratch(bytes);
    for (int64_t i = begin; i < end; ++i) {
      kernels.resample(job, static_cast<uint32_t>(i), scratch.get(), out + i * (1 + rates));
    }
  });
}

void roc_bootstrap(const Tensor& member, const Tensor& nonmember, const std::vector<double>& fprs, int64_t seed,
                   const Tensor& out) {
  constexpr const char* kOp = "roc_bootstrap";
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  const bool is_double = is_float64(member, kOp, "member");
  check_layout(member, member.scalar_type(), member.numel(), kOp, "member");
  check_layout(nonmember, member.scalar_type(), nonmember.numel(), kOp, "nonmember");
  const auto rates = static_cast<int64_t>(fprs.size());
  if (out.dim() != 2 || out.size(1) != 1 + rates) fail("fastforget.", kOp, ": out must be [resamples, 1 + FPRs]");
  check_layout(out, ScalarType::Double, out.numel(), kOp, "out");
  for (const Tensor* side : {&member, &nonmember}) {
    if (side->numel() < 1 || side->numel() >= kMost) {
      fail("fastforget.", kOp, ": a side has ", side->numel(), " scores; accepted: 1 to ", kMost - 1);
    }
  }
  std::vector<int64_t> budgets;
  for (const double fpr : fprs) {
    budgets.push_back(false_positives_allowed(fpr, nonmember.numel()));
    if (budgets.back() < 0) fail("fastforget.", kOp, ": an FPR is ", fpr, "; accepted: 0 to 1");
  }
  double* const to = static_cast<double*>(out.data_ptr());
  if (is_double) {
    bootstrap<double>(member, nonmember, budgets, static_cast<uint64_t>(seed), out.size(0), to);
  } else {
    bootstrap<float>(member, nonmember, budgets, static_cast<uint64_t>(seed), out.size(0), to);
  }
}

}  // namespace
}  // namespace ff

STABLE_TORCH_LIBRARY_IMPL(fastforget, CPU, m) {
  m.impl("roc_stats", TORCH_BOX(&ff::roc_stats));
  m.impl("roc_bootstrap", TORCH_BOX(&ff::roc_bootstrap));
}
