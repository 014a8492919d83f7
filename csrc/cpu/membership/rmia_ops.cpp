// rmia_counts and rmia_vote on CPU tensors: checks, sorting, the cut of the work.
#include <algorithm>
#include <limits>

#include "common/radix.h"
#include "common/table.h"
#include "common/torch_glue.h"

namespace ff {
namespace {

constexpr int64_t kSlice = int64_t(1) << 30;  // keys an index numbers with 32 bits
constexpr int64_t kChunk = 2048;              // x at a time
constexpr int64_t kGrainChunks = 2;           // worth a thread

void check_matrix(const Tensor& t, ScalarType type, int64_t rows, const char* op, const char* name) {
  if (t.dim() != 2 || t.size(0) != rows) {
    fail("fastforget.", op, ": ", name, " must be a matrix of ", rows, " rows, like ratio_x");
  }
  check_layout(t, type, t.numel(), op, name);
}

void check_gamma(double gamma, int is_double, const char* op) {
  const double rounded = is_double ? gamma : static_cast<double>(static_cast<float>(gamma));
  if (!(rounded > 0)) fail("fastforget.", op, ": gamma is ", gamma, "; accepted: above 0 in the ratios' dtype");
}

template <class Key>
struct ScoreOf;
template <>
struct ScoreOf<int32_t> {
  using type = float;
};
template <>
struct ScoreOf<int64_t> {
  using type = double;
};

// Keys in order of their intervals, and where each of those starts: a search begins beside its goal. Only numbers >= 0
// are kept; NaN is never dominated, nor is a negative z by an x >= 0.
template <class Key>
class IndexedKeys {
 public:
  // `searches`: about how many bounds will be looked up, so that the table is not much dearer than they are.
  void build(const Key* bits, int64_t n, int64_t searches) {
    constexpr Key kInfinity = sizeof(Key) == 4 ? Key(0x7f800000) : static_cast<Key>(0x7ff0000000000000);
    std::vector<Unsigned> keys(static_cast<size_t>(n));
    size_t kept = 0;
    Unsigned low = std::numeric_limits<Unsigned>::max(), high = 0;
    for (int64_t i = 0; i < n; ++i) {
      const bool counts = bits[i] >= 0 && bits[i] <= kInfinity;
      const auto key = static_cast<Unsigned>(bits[i]);
      keys[kept] = key;
      kept += counts;
      low = counts && key < low ? key : low;
      high = counts && key > high ? key : high;
    }
    keys.resize(kept);
    if (kept == 0) low = 0;

    int log_intervals = 0;
    const int64_t wanted = std::min({static_cast<int64_t>(kept), 4 * searches, int64_t(1) << 18});
    while ((int64_t(2) << log_intervals) <= wanted) ++log_intervals;
    int shift = 0;
    while (((high - low) >> shift) >> log_intervals != 0) ++shift;
    const auto last = static_cast<size_t>((high - low) >> shift);
    // counted two places on and added up one place on, the starts move on to the ends as keys are put in their places
    starts_.assign(last + 3, 0);
    for (const Unsigned key : keys) ++starts_[static_cast<size_t>((key - low) >> shift) + 2];
    int32_t widest = 0;
    for (size_t i = 2; i < starts_.size(); ++i) {
      widest = std::max(widest, starts_[i]);
      starts_[i] += starts_[i - 1];
    }
    const bool ascending = widest > kMostCompared;
    int32_t span = kRankVector;
    if (ascending) {
      sort_keys(keys);
      std::move(starts_.begin() + 2, starts_.end(), starts_.begin() + 1);
      while (span <= widest) span *= 2;
    } else {
      while (span < widest) span += kRankVector;
      placed_.resize(kept);
      for (const Unsigned key : keys) placed_[static_cast<size_t>(starts_[((key - low) >> shift) + 1]++)] = key;
      keys.swap(placed_);
    }
    keys.resize(kept + static_cast<size_t>(span), static_cast<Unsigned>(std::numeric_limits<Key>::max()));
    keys_.swap(keys);
    index_ = {keys_.data(), starts_.data(), static_cast<int64_t>(low), static_cast<int64_t>(last), shift, ascending,
              span};
  }

  const RankIndex& index() const { return index_; }

 private:
  using Unsigned = std::make_unsigned_t<Key>;
  static constexpr int32_t kMostCompared = 2 * kRankVector;  // keys of an interval; more are better sorted
  std::vector<Unsigned> keys_, placed_;
  std::vector<int32_t> starts_;
  RankIndex index_ = {};
};

// ---- rmia_counts ----------------------------------------------------------------------------------------------------

struct CountJob {
  int64_t rows, n, z;
  const std::vector<double>& gammas;
  bool strict;
  int64_t* counts;  // [gammas, rows, n]
};

template <class Key>
void count_row(const CountJob& job, int64_t row, const Key* x, const Key* z) {
  const MembershipRmiaTable& kernels = table().membership_rmia;
  constexpr int kWide = sizeof(Key) == 8;
  const auto gammas = static_cast<int64_t>(job.gammas.size());
  for (int64_t g = 0; g < gammas; ++g) std::fill_n(job.counts + (g * job.rows + row) * job.n, job.n, 0);
  IndexedKeys<Key> sorted;
  for (int64_t from = 0; from < job.z; from += kSlice) {
    sorted.build(z + from, std::min(kSlice, job.z - from), gammas * job.n);
    const int64_t chunks = (job.n + kChunk - 1) / kChunk;
    const auto work = [&](int64_t begin, int64_t end) {
      alignas(64) Key bounds[kChunk];
      alignas(64) int32_t ranks[kChunk];
      for (int64_t i = begin; i < end; ++i) {
        const int64_t g = i / chunks, first = i % chunks * kChunk, count = std::min(kChunk, job.n - first);
        kernels.bounds[kWide](x + first, count, job.gammas[static_cast<size_t>(g)], job.strict, bounds);
        kernels.ranks[kWide](sorted.index(), bounds, count, ranks);
        int64_t* const counts = job.counts + (g * job.rows + row) * job.n + first;
        for (int64_t j = 0; j < count; ++j) counts[j] += ranks[j];
      }
    };
    if (gammas * chunks <= kGrainChunks) {
      work(0, gammas * chunks);
    } else {
      torch::stable::parallel_for(0, gammas * chunks, kGrainChunks, work);
    }
  }
}

template <class Key>
void count_rows(const CountJob& job, const void* x, const void* z) {
  const auto rows = [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      count_row(job, row, static_cast<const Key*>(x) + row * job.n, static_cast<const Key*>(z) + row * job.z);
    }
  };
  if (job.rows == 1) {
    rows(0, 1);
  } else {
    torch::stable::parallel_for(0, job.rows, 1, rows);
  }
}

void rmia_counts(const Tensor& ratio_x, const Tensor& ratio_z, const std::vector<double>& gammas, bool strict,
                 const Tensor& counts) {
  constexpr const char* kOp = "rmia_counts";
  const int is_double = is_float64(ratio_x, kOp, "ratio_x");
  const ScalarType type = ratio_x.scalar_type();
  const int64_t rows = ratio_x.dim() == 2 ? ratio_x.size(0) : 0;
  check_matrix(ratio_x, type, rows, kOp, "ratio_x");
  check_matrix(ratio_z, type, rows, kOp, "ratio_z");
  for (const double gamma : gammas) check_gamma(gamma, is_double, kOp);
  check_layout(counts, ScalarType::Long, static_cast<int64_t>(gammas.size()) * ratio_x.numel(), kOp, "counts");
  const CountJob job = {rows,   ratio_x.size(1), ratio_z.size(1),
                        gammas, strict,          static_cast<int64_t*>(counts.data_ptr())};
  if (counts.numel() == 0) return;
  if (is_double) {
    count_rows<int64_t>(job, ratio_x.data_ptr(), ratio_z.data_ptr());
  } else {
    count_rows<int32_t>(job, ratio_x.data_ptr(), ratio_z.data_ptr());
  }
}

// ---- rmia_vote ------------------------------------------------------------------------------------------------------

// The z in blocks; within a block and a query only the order of the z matters, so ranks of 16 bits replace them.
template <class Key>
void vote(const Tensor& ratio_x, const Tensor& ratio_z, double gamma, bool strict, int64_t* counts) {
  const MembershipRmiaTable& kernels = table().membership_rmia;
  constexpr int kWide = sizeof(Key) == 8;
  const int64_t queries = ratio_x.size(0), n = ratio_x.size(1), z_count = ratio_z.size(1);
  const Key* const x = static_cast<const Key*>(ratio_x.data_ptr());
  const Key* const z = static_cast<const Key*>(ratio_z.data_ptr());
  const int64_t blocks = (z_count + kVoteBlock - 1) / kVoteBlock;
  const auto block_stride = [&](int64_t block) {
    const int64_t count = std::min(kVoteBlock, z_count - block * kVoteBlock);
    return (count + kVoteLanes - 1) / kVoteLanes * kVoteLanes;
  };
  std::vector<IndexedKeys<Key>> sorted(static_cast<size_t>(blocks * queries));
  std::vector<int16_t> ranks(static_cast<size_t>(blocks * queries * kVoteBlock));
  torch::stable::parallel_for(0, blocks * queries, 1, [&](int64_t begin, int64_t end) {
    std::vector<int32_t> wide_ranks(kVoteBlock);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t block = i / queries, query = i % queries, stride = block_stride(block);
      const int64_t count = std::min(kVoteBlock, z_count - block * kVoteBlock);
      const Key* const from = z + query * z_count + block * kVoteBlock;
      IndexedKeys<Key>& keys = sorted[static_cast<size_t>(i)];
      keys.build(from, count, count + n);
      kernels.ranks[kWide](keys.index(), from, count, wide_ranks.data());
      int16_t* const to = ranks.data() + block * queries * kVoteBlock + query * stride;
      constexpr Key kInfinity = sizeof(Key) == 4 ? Key(0x7f800000) : static_cast<Key>(0x7ff0000000000000);
      constexpr int16_t kNever = std::numeric_limits<int16_t>::max();
      for (int64_t j = 0; j < stride; ++j) {
        const bool counts_ever = j < count && from[j] >= 0 && from[j] <= kInfinity;
        to[j] = counts_ever ? static_cast<int16_t>(wide_ranks[static_cast<size_t>(j)]) : kNever;
      }
    }
  });
  std::fill_n(counts, n, 0);
  torch::stable::parallel_for(0, (n + kVotePairs - 1) / kVotePairs, 1, [&](int64_t begin, int64_t end) {
    std::vector<Key> bounds(static_cast<size_t>(queries * kVotePairs));
    std::vector<int16_t> limits(static_cast<size_t>(queries * kVotePairs));
    alignas(64) int32_t found[kVotePairs];
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i * kVotePairs, pairs = std::min(kVotePairs, n - first);
      for (int64_t q = 0; q < queries; ++q) {
        kernels.bounds[kWide](x + q * n + first, pairs, gamma, strict, bounds.data() + q * kVotePairs);
      }
      for (int64_t block = 0; block < blocks; ++block) {
        for (int64_t q = 0; q < queries; ++q) {
          kernels.ranks[kWide](sorted[static_cast<size_t>(block * queries + q)].index(), bounds.data() + q * kVotePairs,
                               pairs, found);
          for (int64_t j = 0; j < pairs; ++j) limits[q * kVotePairs + j] = static_cast<int16_t>(found[j]);
        }
        const VoteBlock job = {ranks.data() + block * queries * kVoteBlock, queries, block_stride(block), limits.data(),
                               pairs};
        kernels.vote(job, counts + first);
      }
    }
  });
}

void rmia_vote(const Tensor& ratio_x, const Tensor& ratio_z, double gamma, bool strict, const Tensor& counts) {
  constexpr const char* kOp = "rmia_vote";
  const int is_double = is_float64(ratio_x, kOp, "ratio_x");
  const ScalarType type = ratio_x.scalar_type();
  const int64_t queries = ratio_x.dim() == 2 ? ratio_x.size(0) : 0;
  check_matrix(ratio_x, type, queries, kOp, "ratio_x");
  check_matrix(ratio_z, type, queries, kOp, "ratio_z");
  check_gamma(gamma, is_double, kOp);
  check_layout(counts, ScalarType::Long, ratio_x.size(1), kOp, "counts");
  if (queries > std::numeric_limits<int16_t>::max()) {
    fail("fastforget.", kOp, ": ", queries, " queries; accepted: up to ", std::numeric_limits<int16_t>::max());
  }
  int64_t* const to = static_cast<int64_t*>(counts.data_ptr());
  if (is_double) {
    vote<int64_t>(ratio_x, ratio_z, gamma, strict, to);
  } else {
    vote<int32_t>(ratio_x, ratio_z, gamma, strict, to);
  }
}

}  // namespace
}  // namespace ff

STABLE_TORCH_LIBRARY_IMPL(fastforget, CPU, m) {
  m.impl("rmia_counts", TORCH_BOX(&ff::rmia_counts));
  m.impl("rmia_vote", TORCH_BOX(&ff::rmia_vote));
}
