// Selection of the largest magnitudes of a list (saliency_mask). Compiled once per instruction set.
//
// One read of the data: a word of comparisons at a time, it writes the mask and says where the keys near the threshold
// are. Free of branches on the data: where the few keys sit that fall into the bracket can't be predicted.
#include <string.h>

#include "common/storage.h"
#include "common/table.h"

#if defined(__x86_64__) && FF_ISA_LEVEL >= 3
#if defined(__GNUC__) && !defined(__clang__)
// gcc 12's AVX-512 headers start from a deliberately undefined register and then warn about it.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>
#endif

namespace ff::FF_ISA {
namespace {

constexpr int64_t kTile = 1024;
constexpr int kLine = 64;     // bytes of a cache line
constexpr int kAhead = 2048;  // elements: further than the page's end, where the hardware stops fetching ahead
constexpr int kWord = 64;     // elements whose comparisons make one word

template <class Key>
FF_INLINE Key key_of(Key bits) {
  const Key magnitude = bits & KeyOrder<Key>::kMagnitude;
  return magnitude > KeyOrder<Key>::kNan ? KeyOrder<Key>::kNan : magnitude;
}

// The bits of the value as float32 or float64, whatever it is stored as.
template <class Key, class S>
FF_INLINE Key bits_of(S x) {
  if constexpr (sizeof(Key) == 4) {
    return float_bits(widen(x));
  } else {
    return __builtin_bit_cast(uint64_t, static_cast<double>(widen(x)));
  }
}

// ---- one word of comparisons ----------------------------------------------------------------------------------------
// NaN need no care here: their magnitudes lie above every limit at or below kNan, and a range that reaches kEnd has
// none.

template <class Key>
FF_INLINE typename KeyOrder<Key>::Signed below(Key bound) {
  using Signed = typename KeyOrder<Key>::Signed;
  return bound == KeyOrder<Key>::kEnd ? static_cast<Signed>(KeyOrder<Key>::kMagnitude) : static_cast<Signed>(bound) - 1;
}

// Of 64 elements: which lie above the bracket, and which within.
struct Words {
  uint64_t above, within;
};

template <bool kPacked>
FF_INLINE void store_word(uint64_t word, uint8_t* to) {
  if constexpr (kPacked) {
    memcpy(to, &word, 8);
  } else {
#if defined(__AVX512BW__)
    _mm512_storeu_si512(to, _mm512_maskz_set1_epi8(word, 1));
#else
    for (int byte = 0; byte < 8; ++byte) {
      // Each of the eight bits in a byte of its own place, then any set bit carries into the byte's top.
      const uint64_t spread = ((word >> (8 * byte)) & 0xff) * 0x0101010101010101u & 0x8040201008040201u;
      const uint64_t ones = ((spread + 0x7f7f7f7f7f7f7f7fu) >> 7) & 0x0101010101010101u;
      memcpy(to + 8 * byte, &ones, 8);
    }
#endif
  }
}

// The limits as a key is compared with them: key > floor where it is at or above the limit.
template <class Key>
struct Floors {
  using Signed = typename KeyOrder<Key>::Signed;
  Signed low, guess, high;

  FF_INLINE Floors of(const SiftLimits<Key>& limits) {
    return {below(limits.low), below(limits.guess), below(limits.high)};
  }
};

// sift<kPacked>(bits, floors, to) compares 64 magnitudes with the limits and stores the mask. Bits are written by the
// upper limit, which they are counted by anyhow: a third comparison would cost them more than the corrections that it
// spares.
template <class Key>
struct Lanes {
  using Signed = typename KeyOrder<Key>::Signed;
  template <bool kPacked>
  FF_INLINE Words sift(const Key* bits, const Floors<Key>& floors, uint8_t* to) {
    uint64_t from_low = 0, on = 0, above = 0;
    for (int i = 0; i < kWord; ++i) {
      const Signed key = static_cast<Signed>(bits[i] & KeyOrder<Key>::kMagnitude);
      from_low |= static_cast<uint64_t>(key > floors.low) << i;
      if constexpr (!kPacked) on |= static_cast<uint64_t>(key > floors.guess) << i;
      above |= static_cast<uint64_t>(key > floors.high) << i;
    }
    store_word<kPacked>(kPacked ? above : on, to);
    return {above, from_low & ~above};
  }
};

#if defined(__AVX512BW__)
template <>
struct Lanes<uint32_t> {
  template <bool kPacked>
  FF_INLINE Words sift(const uint32_t* bits, const Floors<uint32_t>& floors, uint8_t* to) {
    const __m512i lows = _mm512_set1_epi32(floors.low), highs = _mm512_set1_epi32(floors.high);
    const __m512i guesses = _mm512_set1_epi32(floors.guess), magnitude = _mm512_set1_epi32(INT32_MAX);
    uint64_t from_low = 0, on = 0, above = 0;
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const __m512i key = _mm512_and_si512(_mm512_loadu_si512(bits + 16 * i), magnitude);
      from_low |= static_cast<uint64_t>(_mm512_cmpgt_epi32_mask(key, lows)) << (16 * i);
      if constexpr (!kPacked) on |= static_cast<uint64_t>(_mm512_cmpgt_epi32_mask(key, guesses)) << (16 * i);
      above |= static_cast<uint64_t>(_mm512_cmpgt_epi32_mask(key, highs)) << (16 * i);
    }
    store_word<kPacked>(kPacked ? above : on, to);
    return {above, from_low & ~above};
  }
};

template <>
struct Lanes<uint64_t> {
  template <bool kPacked>
  FF_INLINE Words sift(const uint64_t* bits, const Floors<uint64_t>& floors, uint8_t* to) {
    const __m512i lows = _mm512_set1_epi64(floors.low), highs = _mm512_set1_epi64(floors.high);
    const __m512i guesses = _mm512_set1_epi64(floors.guess), magnitude = _mm512_set1_epi64(INT64_MAX);
    uint64_t from_low = 0, on = 0, above = 0;
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      const __m512i key = _mm512_and_si512(_mm512_loadu_si512(bits + 8 * i), magnitude);
      from_low |= static_cast<uint64_t>(_mm512_cmpgt_epi64_mask(key, lows)) << (8 * i);
      if constexpr (!kPacked) on |= static_cast<uint64_t>(_mm512_cmpgt_epi64_mask(key, guesses)) << (8 * i);
      above |= static_cast<uint64_t>(_mm512_cmpgt_epi64_mask(key, highs)) << (8 * i);
    }
    store_word<kPacked>(kPacked ? above : on, to);
    return {above, from_low & ~above};
  }
};
#elif defined(__AVX2__)
template <>
struct Lanes<uint32_t> {
  // 32 results of comparisons, a byte each.
  FF_INLINE __m256i join(const __m256i* of) {
    const __m256i words = _mm256_packs_epi16(_mm256_packs_epi32(of[0], of[1]), _mm256_packs_epi32(of[2], of[3]));
    return _mm256_permutevar8x32_epi32(words, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
  }
  FF_INLINE uint64_t bits_of(__m256i bytes) { return static_cast<uint32_t>(_mm256_movemask_epi8(bytes)); }

  template <bool kPacked>
  FF_INLINE Words sift(const uint32_t* bits, const Floors<uint32_t>& floors, uint8_t* to) {
    const __m256i lows = _mm256_set1_epi32(floors.low), highs = _mm256_set1_epi32(floors.high);
    const __m256i guesses = _mm256_set1_epi32(floors.guess), magnitude = _mm256_set1_epi32(INT32_MAX);
    uint64_t above = 0, within = 0;
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      __m256i over[4], inside[4], reaching[4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        const __m256i* from = reinterpret_cast<const __m256i*>(bits + 32 * half + 8 * i);
        const __m256i key = _mm256_and_si256(_mm256_loadu_si256(from), magnitude);
        over[i] = _mm256_cmpgt_epi32(key, highs);
        inside[i] = _mm256_andnot_si256(over[i], _mm256_cmpgt_epi32(key, lows));
        if constexpr (!kPacked) reaching[i] = _mm256_cmpgt_epi32(key, guesses);
      }
      if constexpr (!kPacked) {
        const __m256i ones = _mm256_and_si256(join(reaching), _mm256_set1_epi8(1));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + 32 * half), ones);
      }
      above |= bits_of(join(over)) << (32 * half);
      within |= bits_of(join(inside)) << (32 * half);
    }
    if constexpr (kPacked) store_word<true>(above, to);
    return {above, within};
  }
};
#endif

// ---- kernels --------------------------------------------------------------------------------------------------------

// Calls block(bits, n, offset) on pieces of x as bits of the key's width; float32 and float64 are read where they are.
template <class Key, class S, class Block>
FF_INLINE void each_block(const void* x, int64_t n, const Block& block) {
  if constexpr (sizeof(S) == sizeof(Key)) {
    block(static_cast<const Key*>(x), n, int64_t(0));
  } else {
    const S* values = static_cast<const S*>(x);
    alignas(64) Key bits[kTile];
    for (int64_t at = 0; at < n; at += kTile) {
      const int64_t count = n - at < kTile ? n - at : kTile;
#pragma omp simd
      for (int64_t i = 0; i < count; ++i) bits[i] = bits_of<Key>(values[at + i]);
      block(static_cast<const Key*>(bits), count, at);
    }
  }
}

template <class Key, class S>
void histogram(const void* x, int64_t n, Key low, Key high, int shift, int64_t* counts) {
  // Four histograms in turn: equal neighbours would wait for each other's increment. The last place takes what lies
  // outside of the range.
  constexpr int kWays = 4;
  uint32_t ways[kWays][kSelectDigits + 1] = {};
  const Key span = high - low;
  each_block<Key, S>(x, n, [&](const Key* bits, int64_t count, int64_t) {
    const auto digit = [&](int64_t i) {
      const Key from_low = key_of(bits[i]) - low;
      return from_low < span ? static_cast<int64_t>(from_low >> shift) : kSelectDigits;
    };
    int64_t i = 0;
    for (; i + kWays <= count; i += kWays) {
      for (int way = 0; way < kWays; ++way) ++ways[way][digit(i + way)];
    }
    for (; i < count; ++i) ++ways[0][digit(i)];
  });
  for (int64_t d = 0; d < kSelectDigits; ++d) {
    counts[d] += static_cast<int64_t>(ways[0][d]) + ways[1][d] + ways[2][d] + ways[3][d];
  }
}

// Of no bits: whatever the machine has.
FF_INLINE int64_t trailing_zeros(uint64_t word) {
#if defined(__BMI__)
  return static_cast<int64_t>(_tzcnt_u64(word));
#else
  return __builtin_ctzll(word | uint64_t(1) << (kWord - 1));
#endif
}

// Writes at + i for each bit i. Which words have one, and which more, can't be predicted: the first few are written
// without asking whether there are so many.
FF_INLINE uint16_t* append(uint64_t word, int64_t at, uint16_t* to) {
  uint16_t* const end = to + __builtin_popcountll(word);
  for (int unasked = 0; unasked < kPlacesSlack; ++unasked) {
    *to++ = static_cast<uint16_t>(at + trailing_zeros(word));
    word &= word - 1;
  }
  for (; __builtin_expect(word != 0, 0); word &= word - 1) *to++ = static_cast<uint16_t>(at + trailing_zeros(word));
  return end;
}

template <class Key>
FF_INLINE void fetch(const Key* bits) {
  for (int i = 0; i < kWord; i += kLine / static_cast<int>(sizeof(Key))) __builtin_prefetch(bits + i);
}

template <class Key, class S, bool kPlaces, bool kPacked>
FF_INLINE Sifted sift_all(const void* x, int64_t n, const SiftLimits<Key>& limits, uint8_t* out, uint16_t* places) {
  using L = Lanes<Key>;
  const auto floors = Floors<Key>::of(limits);
  int64_t above = 0, within = 0;
  uint16_t* place = places;
  const auto take = [&](Words words, int64_t at) {
    above += __builtin_popcountll(words.above);
    if constexpr (kPlaces) {
      place = append(words.within, at, place);
    } else {
      within += __builtin_popcountll(words.within);
    }
  };
  each_block<Key, S>(x, n, [&](const Key* bits, int64_t count, int64_t offset) {
    uint8_t* to = out + (kPacked ? offset / 8 : offset);
    int64_t i = 0;
    for (; i + kWord <= count; i += kWord) {
      if constexpr (sizeof(S) == sizeof(Key)) fetch(bits + i + kAhead);
      take(L::template sift<kPacked>(bits + i, floors, to + (kPacked ? i / 8 : i)), offset + i);
    }
    const int64_t rest = count - i;
    if (rest == 0) return;
    Key padded[kWord] = {};
    memcpy(padded, bits + i, static_cast<size_t>(rest) * sizeof(Key));
    alignas(64) uint8_t bytes[kWord];
    Words words = L::template sift<kPacked>(padded, floors, bytes);
    const uint64_t real = (uint64_t(1) << rest) - 1;
    words = {words.above & real, words.within & real};
    if constexpr (kPacked) {
      memcpy(bytes, &words.above, 8);
      memcpy(to + i / 8, bytes, static_cast<size_t>((rest + 7) / 8));
    } else {
      memcpy(to + i, bytes, static_cast<size_t>(rest));
    }
    take(words, offset + i);
  });
  return {above, kPlaces ? place - places : within};
}

template <class Key, class S>
Sifted sift(const void* x, int64_t n, const SiftLimits<Key>& limits, bool packed, uint8_t* out, uint16_t* places) {
  if (packed)
    return places != nullptr ? sift_all<Key, S, true, true>(x, n, limits, out, places)
                             : sift_all<Key, S, false, true>(x, n, limits, out, places);
  return places != nullptr ? sift_all<Key, S, true, false>(x, n, limits, out, places)
                           : sift_all<Key, S, false, false>(x, n, limits, out, places);
}

template <class Key, class S>
void keys(const void* x, int64_t n, Key* out) {
  const S* values = static_cast<const S*>(x);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) out[i] = key_of(bits_of<Key>(values[i]));
}

template <class Key, class S>
void pick(const void* x, const uint16_t* places, int64_t count, Key* out) {
  const S* values = static_cast<const S*>(x);
  for (int64_t j = 0; j < count; ++j) out[j] = key_of(bits_of<Key>(values[places[j]]));
}

template <class Key, class S>
void first(const void* x, int64_t n, Key key, int64_t count, bool packed, uint8_t* out) {
  for (int64_t i = 0; i < n && count > 0; ++i) {
    if (key_of(bits_of<Key>(static_cast<const S*>(x)[i])) != key) continue;
    --count;
    if (packed) {
      out[i / 8] = static_cast<uint8_t>(out[i / 8] | 1u << (i % 8));
    } else {
      out[i] = 1;
    }
  }
}

}  // namespace

#define FF_NARROW(f) {f<uint32_t, float>, f<uint32_t, BFloat16>, f<uint32_t, Float16>, nullptr}
#define FF_WIDE(f)   {f<uint64_t, float>, f<uint64_t, BFloat16>, f<uint64_t, Float16>, f<uint64_t, double>}
constinit const MaskSelectTable mask_select_table = {
    {FF_NARROW(sift), FF_NARROW(keys), FF_NARROW(pick), FF_NARROW(histogram), FF_NARROW(first)},
    {FF_WIDE(sift), FF_WIDE(keys), FF_WIDE(pick), FF_WIDE(histogram), FF_WIDE(first)},
};
#undef FF_NARROW
#undef FF_WIDE

}  // namespace ff::FF_ISA
