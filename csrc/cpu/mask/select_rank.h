// Keys by rank, for mask_select_ops.cpp: selection by digits among keys that are at hand, or by counts of those that
// aren't.
#pragma once
#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

#include "cpu/mask/select.h"

namespace ff {

inline constexpr int64_t kFew = 64;   // keys that are sorted
inline constexpr int64_t kRanks = 4;  // by which a sample of few may be off beyond any number of deviations

// The k-th largest key, and how many keys are larger and equal.
template <class Key>
struct Threshold {
  Key key;
  int64_t greater, equal;
};

// Keys in [low, high): `within` of them, and `above` are at or above high.
template <class Key>
struct Bracket {
  Key low, high;
  int64_t above, within;
};

// How far to shift keys of this span so that `digit_bits` bits are left.
inline int digit_shift(uint64_t span, int digit_bits) {
  const int bits = 64 - __builtin_clzll((span - 1) | 1);
  return bits > digit_bits ? bits - digit_bits : 0;
}

// The part of the bracket that holds the k-th largest key, by the counts of its parts.
template <class Key>
Bracket<Key> narrowed(const Bracket<Key>& bracket, const std::vector<int64_t>& counts, int shift, int64_t k) {
  int64_t above = bracket.above;
  size_t digit = counts.size() - 1;
  while (above + counts[digit] < k) above += counts[digit--];
  const Key low = bracket.low + (static_cast<Key>(digit) << shift);
  const Key width = std::min(static_cast<Key>(Key(1) << shift), static_cast<Key>(bracket.high - low));
  return {low, low + width, above, counts[digit]};
}

// Among all keys of the bracket, in any order.
template <class Key>
Threshold<Key> select(const Key* keys, Bracket<Key> bracket, int64_t k) {
  constexpr int kBits = 9;  // few, so that counting is cheap where the keys are few
  constexpr size_t kDigits = size_t(1) << kBits;
  std::vector<int64_t> counts(kDigits);
  std::vector<Key> left;
  while (bracket.high - bracket.low > 1 && bracket.within > kFew) {
    const int shift = digit_shift(bracket.high - bracket.low, kBits);
    const int64_t n = bracket.within;
    // In turn, as equal neighbours would wait for each other's increment.
    constexpr int kWays = 4;
    uint32_t ways[kWays][kDigits] = {};
    for (int64_t i = 0; i < n; ++i) ++ways[i % kWays][(keys[i] - bracket.low) >> shift];
    for (size_t d = 0; d < kDigits; ++d) {
      counts[d] = static_cast<int64_t>(ways[0][d]) + ways[1][d] + ways[2][d] + ways[3][d];
    }
    bracket = narrowed(bracket, counts, shift, k);
    if (left.empty()) left.resize(static_cast<size_t>(bracket.within) + 1);  // a place for what isn't kept
    int64_t kept = 0;
    for (int64_t i = 0; i < n; ++i) {
      const Key key = keys[i];
      left[static_cast<size_t>(kept)] = key;
      kept += static_cast<Key>(key - bracket.low) < static_cast<Key>(bracket.high - bracket.low);
    }
    keys = left.data();
  }
  if (left.empty()) left.assign(keys, keys + bracket.within);
  left.resize(static_cast<size_t>(bracket.within));
  std::sort(left.begin(), left.end(), std::greater<Key>());
  const Key key = left[static_cast<size_t>(k - bracket.above - 1)];
  const auto same = std::equal_range(left.begin(), left.end(), key, std::greater<Key>());
  return {key, bracket.above + (same.first - left.begin()), same.second - same.first};
}

// The bracket's part from `margin` ranks above this one (1: the largest) to as many below, as far as the bracket goes.
template <class Key>
Bracket<Key> around(const Key* keys, const Bracket<Key>& bracket, double rank, double margin) {
  const auto first = static_cast<int64_t>(std::floor(rank - margin)) - kRanks;
  const auto last = static_cast<int64_t>(std::ceil(rank + margin)) + kRanks;
  const int64_t end = bracket.above + bracket.within;
  Bracket<Key> part = bracket;
  if (bracket.high - bracket.low == 1) return part;
  if (first > bracket.above && first <= end) part.high = select(keys, bracket, first).key + 1;
  if (last > bracket.above && last <= end) part.low = select(keys, bracket, last).key;
  return part;
}

}  // namespace ff
