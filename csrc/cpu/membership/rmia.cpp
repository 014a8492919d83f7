// RMIA's counts (rmia_counts, rmia_vote). Compiled once per instruction set.
#include "cpu/membership/rmia.h"

#include <string.h>

#include "common/lanes.h"
#include "common/table.h"

namespace ff::FF_ISA {
namespace {

// ---- bounds ---------------------------------------------------------------------------------------------------------

template <class T>
struct Bits;
template <>
struct Bits<float> {
  using Key = int32_t;
  static constexpr Key kInfinity = 0x7f800000;
  static constexpr float kLeast = 0x1p-126f, kMost = 0x1.fffffep127f;
};
template <>
struct Bits<double> {
  using Key = int64_t;
  static constexpr Key kInfinity = 0x7ff0000000000000;
  static constexpr double kLeast = 0x1p-1022, kMost = 0x1.fffffffffffffp1023;
};

template <class T>
FF_INLINE typename Bits<T>::Key key_of(T x) {
  typename Bits<T>::Key key;
  memcpy(&key, &x, sizeof key);
  return key;
}

template <class T>
FF_INLINE T value_of(typename Bits<T>::Key key) {
  T x;
  memcpy(&x, &key, sizeof x);
  return x;
}

template <class T, bool strict>
FF_INLINE bool dominates(T x, T z, T gamma) {
  return strict ? x / z > gamma : x / z >= gamma;
}

// The largest z that x dominates is x / gamma but for two roundings, that of the quotient here and that of the
// predicate's quotient near gamma: it lies within two neighbours, of which the predicate then says the right one.
// That needs the full precision of a normal gamma; for others the bound is found by bisection.
template <class T, bool strict>
FF_INLINE void bounds_near(const T* __restrict x, int64_t n, T gamma, typename Bits<T>::Key* __restrict bounds) {
  using Key = typename Bits<T>::Key;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const Key near = key_of(x[i] / gamma);
    Key bound = near > 2 ? near - 2 : 0;
    const Key first = bound;
    for (int step = 0; step < 5; ++step) {
      bound += dominates<T, strict>(x[i], value_of<T>(first + step), gamma) ? 1 : 0;
    }
    bounds[i] = x[i] == x[i] ? bound : 0;
  }
}

template <class T, bool strict>
FF_INLINE void bounds_by_bisection(const T* x, int64_t n, T gamma, typename Bits<T>::Key* bounds) {
  using Key = typename Bits<T>::Key;
  for (int64_t i = 0; i < n; ++i) {
    Key low = 0, high = Bits<T>::kInfinity + 1;  // the predicate holds below low and fails from high on
    if (!(x[i] > 0)) high = 0;
    while (low < high) {
      const Key middle = low + (high - low) / 2;
      if (dominates<T, strict>(x[i], value_of<T>(middle), gamma)) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    bounds[i] = low;
  }
}

template <class T>
void bounds(const void* x_, int64_t n, double gamma_, bool strict, void* bounds_) {
  const T* x = static_cast<const T*>(x_);
  const T gamma = static_cast<T>(gamma_);
  auto* to = static_cast<typename Bits<T>::Key*>(bounds_);
  if (!(gamma >= Bits<T>::kLeast && gamma <= Bits<T>::kMost)) {
    strict ? bounds_by_bisection<T, true>(x, n, gamma, to) : bounds_by_bisection<T, false>(x, n, gamma, to);
  } else {
    strict ? bounds_near<T, true>(x, n, gamma, to) : bounds_near<T, false>(x, n, gamma, to);
  }
}

// ---- ranks ----------------------------------------------------------------------------------------------------------

// How many of kRankVector keys lie below the bound.
FF_INLINE int32_t count_below(const int32_t* keys, int32_t bound) {
#if defined(__AVX512F__)
  return __builtin_popcount(_mm512_cmplt_epi32_mask(_mm512_loadu_si512(keys), _mm512_set1_epi32(bound)));
#elif defined(__AVX2__)
  const __m256i limit = _mm256_set1_epi32(bound);
  const auto below = [&](const int32_t* p) {
    const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(limit, x))));
  };
  return __builtin_popcount(below(keys) | below(keys + 8) << 8);
#else
  int32_t count = 0;
  for (int i = 0; i < kRankVector; ++i) count += keys[i] < bound ? 1 : 0;
  return count;
#endif
}

FF_INLINE int32_t count_below(const int64_t* keys, int64_t bound) {
#if defined(__AVX512F__)
  const __m512i limit = _mm512_set1_epi64(bound);
  return __builtin_popcount(_mm512_cmplt_epi64_mask(_mm512_loadu_si512(keys), limit)) +
         __builtin_popcount(_mm512_cmplt_epi64_mask(_mm512_loadu_si512(keys + 8), limit));
#else
  int32_t count = 0;
  for (int i = 0; i < kRankVector; ++i) count += keys[i] < bound ? 1 : 0;
  return count;
#endif
}

// Searches of a group of bounds go side by side: each step's loads are independent of each other.
constexpr int kSearches = 64;

template <class Key>
void ranks(const RankIndex& index, const void* bounds_, int64_t n, int32_t* out) {
  const Key* __restrict keys = static_cast<const Key*>(index.keys);
  const int32_t* __restrict starts = index.starts;
  const Key* bounds = static_cast<const Key*>(bounds_);
  const Key low = static_cast<Key>(index.low), last = static_cast<Key>(index.last);
  const int shift = index.shift;
  const int32_t span = index.span;
  for (int64_t begin = 0; begin < n; begin += kSearches) {
    const int count = n - begin < kSearches ? static_cast<int>(n - begin) : kSearches;
    alignas(64) Key bound[kSearches];
    alignas(64) int32_t at[kSearches];
    for (int i = 0; i < kSearches; ++i) bound[i] = low;
    memcpy(bound, bounds + begin, static_cast<size_t>(count) * sizeof(Key));
#pragma omp simd
    for (int i = 0; i < kSearches; ++i) {
      const Key above = bound[i] > low ? (bound[i] - low) >> shift : 0;
      at[i] = starts[above < last ? above : last];
    }
    if (index.ascending) {
      for (int32_t half = span / 2; half > 0; half /= 2) {
#pragma omp simd
        for (int i = 0; i < kSearches; ++i) at[i] += keys[at[i] + half - 1] < bound[i] ? half : 0;
      }
    } else {  // what lies in later intervals isn't below the bound either
      for (int i = 0; i < count; ++i) {
        const Key* from = keys + at[i];
        for (int32_t j = 0; j < span; j += kRankVector) at[i] += count_below(from + j, bound[i]);
      }
    }
    memcpy(out + begin, at, static_cast<size_t>(count) * sizeof(int32_t));
  }
}

// ---- vote -----------------------------------------------------------------------------------------------------------

#if defined(__AVX512BW__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif
constexpr int kLanes = kVectorBytes / 2;
typedef int16_t Ranks __attribute__((vector_size(kVectorBytes)));
typedef int16_t UnalignedRanks __attribute__((vector_size(kVectorBytes), aligned(2)));

FF_INLINE Ranks all(int16_t x) { return x - Ranks{}; }

// sum + 1 in the lanes where a < b
FF_INLINE Ranks count_less(Ranks sum, Ranks a, Ranks b) {
#if defined(__AVX512BW__)
  const __m512i value = reinterpret_cast<__m512i>(sum);
  const __mmask32 less = _mm512_cmplt_epi16_mask(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b));
  return reinterpret_cast<Ranks>(_mm512_mask_sub_epi16(value, less, value, _mm512_set1_epi16(-1)));
#else
  return sum - (a < b);
#endif
}

// A tile of kRows x by kColumns vectors of z keeps its votes in registers while the queries pass.
constexpr int kRows = 4, kColumns = kVectorBytes == 64 ? 4 : 2;

template <int rows, int columns>
FF_INLINE void vote_tile(const VoteBlock& block, int64_t row, int64_t column, Ranks (&won)[rows]) {
  Ranks votes[rows][columns] = {};
  for (int64_t q = 0; q < block.queries; ++q) {
    const int16_t* ranks = block.ranks + q * block.stride + column;
    const int16_t* limits = block.limits + q * kVotePairs + row;
    Ranks z[columns];
    for (int c = 0; c < columns; ++c) z[c] = *reinterpret_cast<const UnalignedRanks*>(ranks + c * kLanes);
    for (int r = 0; r < rows; ++r) {
      const Ranks limit = all(limits[r]);
      for (int c = 0; c < columns; ++c) votes[r][c] = count_less(votes[r][c], z[c], limit);
    }
  }
  const Ranks half = all(static_cast<int16_t>(block.queries / 2));
  for (int r = 0; r < rows; ++r) {
    for (int c = 0; c < columns; ++c) won[r] = count_less(won[r], half, votes[r][c]);
  }
}

void vote(const VoteBlock& block, int64_t* counts) {
  for (int64_t row = 0; row < block.pairs; row += kRows) {  // limits past the end are 0: nothing is dominated
    Ranks won[kRows] = {};
    int64_t column = 0;
    for (; column + kColumns * kLanes <= block.stride; column += kColumns * kLanes) {
      vote_tile<kRows, kColumns>(block, row, column, won);
    }
    for (; column < block.stride; column += kLanes) vote_tile<kRows, 1>(block, row, column, won);
    for (int r = 0; r < kRows && row + r < block.pairs; ++r) {
      int64_t sum = 0;
      for (int lane = 0; lane < kLanes; ++lane) sum += won[r][lane];
      counts[row + r] += sum;
    }
  }
}

}  // namespace

constinit const MembershipRmiaTable membership_rmia_table = {
    {bounds<float>, bounds<double>}, {ranks<int32_t>, ranks<int64_t>}, vote};

}  // namespace ff::FF_ISA
