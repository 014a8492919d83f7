// RMIA (rmia_counts, rmia_vote): kernel table. Torch-free; rmia_ops.cpp checks the arguments, sorts and cuts the work.
//
// RMIA counts the z with fl(x / z) >= gamma. For x >= 0 the quotient falls as z grows, so for each x these z are the
// ones whose bit pattern, read as an integer, lies below a bound. The bound comes from a handful of divisions around
// x / gamma with the predicate itself, and the rest is integers: the counts are those of all pairs to the last one.
#pragma once
#include <cstdint>

namespace ff {

// Keys in order of their intervals, and where each interval starts. Keys are bit patterns of numbers >= 0, as signed
// integers of the number's size.
struct RankIndex {
  const void* keys;       // padded with the largest integer for `span` places past the end
  const int32_t* starts;  // [last + 1]: how many keys lie below low + (i << shift)
  int64_t low, last;
  int shift;
  // Ascending within the intervals too: a power of two above the number of keys in any. Else whole vectors that hold as
  // many keys as any interval has; to compare them all costs less than to sort them.
  bool ascending;
  int32_t span;
};

constexpr int32_t kRankVector = 16;  // keys that a search compares at a time

// Ranks of z within a block, for the vote of A queries.
constexpr int64_t kVoteBlock = 4096;  // ranks stay below the largest int16, which marks a z that never counts
constexpr int64_t kVoteLanes = 32;
constexpr int64_t kVotePairs = 256;  // x at a time

struct VoteBlock {
  const int16_t* ranks;  // [queries, stride]: how many z of the block lie below this one
  int64_t queries, stride;
  const int16_t* limits;  // [queries, kVotePairs]: the z with a smaller rank dominate
  int64_t pairs;
};

struct MembershipRmiaTable {
  // For each x the first key (0: none) at which the predicate fails. gamma > 0; float32, float64.
  void (*bounds[2])(const void* x, int64_t n, double gamma, bool strict, void* bounds);
  // ranks[i]: how many keys lie below bounds[i]. 32-bit keys, 64-bit keys.
  void (*ranks[2])(const RankIndex& index, const void* bounds, int64_t n, int32_t* ranks);
  // counts[i] += number of z of the block that more than half of the queries let x[i] dominate.
  void (*vote)(const VoteBlock& block, int64_t* counts);
};

}  // namespace ff
