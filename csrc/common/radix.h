// Sorting of scores by their bits. Only for sources that are compiled once: with std::vector in it, a copy built for
// AVX-512 could be the one the linker keeps for every level.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

namespace ff {

template <class Score>
struct KeyOf;
template <>
struct KeyOf<float> {
  using type = uint32_t;
};
template <>
struct KeyOf<double> {
  using type = uint64_t;
};

// Unsigned keys in the order of the scores; -0.0 and 0.0 share a key.
template <class Score>
typename KeyOf<Score>::type to_key(Score score) {
  using Key = typename KeyOf<Score>::type;
  constexpr int kSignBit = 8 * sizeof(Key) - 1;
  score += Score(0);  // -0.0 becomes 0.0
  Key bits;
  memcpy(&bits, &score, sizeof bits);
  const Key negative = Key(0) - (bits >> kSignBit);
  return bits ^ (negative | (Key(1) << kSignBit));
}

template <class Score>
Score from_key(typename KeyOf<Score>::type key) {
  using Key = typename KeyOf<Score>::type;
  constexpr int kSignBit = 8 * sizeof(Key) - 1;
  const Key positive = Key(0) - (key >> kSignBit);
  const Key bits = key ^ (~positive | (Key(1) << kSignBit));
  Score score;
  memcpy(&score, &bits, sizeof score);
  return score;
}

// Least significant digit first; all histograms come from one read. Count must hold the number of keys.
template <class Count, class Key>
void radix_sort(std::vector<Key>& keys, int bits) {
  constexpr int kDigitBits = 11;
  const int passes = (bits + kDigitBits - 1) / kDigitBits, width = (bits + passes - 1) / passes;
  const size_t digits = size_t(1) << width;
  const Key mask = static_cast<Key>(digits - 1);
  std::vector<Count> counts(static_cast<size_t>(passes) * digits, 0);
  for (const Key key : keys) {
    for (int pass = 0; pass < passes; ++pass) ++counts[pass * digits + ((key >> (pass * width)) & mask)];
  }
  std::vector<Key> other(keys.size());
  for (int pass = 0; pass < passes; ++pass) {
    Count* next = counts.data() + pass * digits;
    const int shift = pass * width;
    if (next[(keys[0] >> shift) & mask] == keys.size()) continue;
    Count sum = 0;
    for (size_t digit = 0; digit < digits; ++digit) {
      const Count count = next[digit];
      next[digit] = sum;
      sum += count;
    }
    Key* to = other.data();
    for (const Key key : keys) to[next[(key >> shift) & mask]++] = key;
    keys.swap(other);
  }
}

// Ascending. The leading bits that all keys share are not sorted by.
template <class Key>
void sort_keys(std::vector<Key>& keys) {
  constexpr size_t kSmall = 256;
  if (keys.size() < kSmall) {
    std::sort(keys.begin(), keys.end());
    return;
  }
  Key differing = 0;
  for (const Key key : keys) differing |= key ^ keys[0];
  int bits = 0;
  while (bits < static_cast<int>(8 * sizeof(Key)) && (differing >> bits) != 0) ++bits;
  if (bits == 0) return;
  if (keys.size() >> 32 == 0) {
    radix_sort<uint32_t>(keys, bits);
  } else {
    radix_sort<uint64_t>(keys, bits);
  }
}

}  // namespace ff
