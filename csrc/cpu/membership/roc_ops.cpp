// ROC statistics of two samples of scores: sort the values of each side, then one walk over both. Counts are integers
// throughout, so ties cost no accuracy and the order of equal scores does not matter.
#include <algorithm>
#include <limits>
#include <memory>
#include <vector>

#include "cpu/membership/scores.h"
#include "common/radix.h"

namespace ff {

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
struct RocStats<Score>::Sides {
  using Key = typename KeyOf<Score>::type;
  const Score* scores[2];
  std::vector<Key> keys[2];
};

template <class Score>
RocStats<Score>::RocStats(const Score* member, int64_t members, const Score* nonmember, int64_t nonmembers)
    : sides_(new Sides{{member, nonmember}, {}}) {
  std::unique_ptr<Sides> guard(sides_);
  sides_->keys[0].resize(static_cast<size_t>(members));
  sides_->keys[1].resize(static_cast<size_t>(nonmembers));
  guard.release();
}

template <class Score>
RocStats<Score>::~RocStats() {
  delete sides_;
}

template <class Score>
void RocStats<Score>::sort_side(int side) {
  auto& keys = sides_->keys[side];
  const Score* scores = sides_->scores[side];
  for (size_t i = 0; i < keys.size(); ++i) keys[i] = to_key(scores[i]);
  sort_keys(keys);
}

template <class Score>
void RocStats<Score>::finish(const double* fprs, int64_t fpr_count, double* out) const {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  const auto& member = sides_->keys[0];
  const auto& nonmember = sides_->keys[1];
  const auto n1 = static_cast<int64_t>(member.size()), n0 = static_cast<int64_t>(nonmember.size());
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

  for (int64_t i = 0; i < fpr_count; ++i) {
    const int64_t k = false_positives_allowed(fprs[i], n0);
    int64_t counted = 0;
    if (k >= n0) {
      counted = n1;
    } else if (k >= 0) {
      const auto limit = nonmember[n0 - 1 - k];
      counted = member.end() - std::upper_bound(member.begin(), member.end(), limit);
    }
    out[4 + i] = static_cast<double>(counted) / static_cast<double>(n1);
    out[4 + fpr_count + i] = counted > 0 ? score_of(member[n1 - counted]) : kInfinity;
  }
}

template class RocStats<float>;
template class RocStats<double>;

}  // namespace ff
