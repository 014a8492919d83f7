// Selection of the largest magnitudes of a list (saliency_mask). Compiled once per instruction set.
//
// Two reads of the data: one that collects the keys near the threshold, one that writes the mask. Both are branch-free:
// where the few keys sit that fall into the bracket can't be predicted.
#include <string.h>

#include "cpu/storage.h"
#include "cpu/table.h"

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
constexpr int kWord = 64;  // elements whose comparisons make one word

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

// ---- one word of comparisons, one step of collection ----------------------------------------------------------------

template <class Key>
struct Lanes {
  using Signed = typename KeyOrder<Key>::Signed;
  static constexpr int kWidth = 1;
  FF_INLINE uint64_t above(const Key* bits, Signed floor) {
    uint64_t word = 0;
    for (int i = 0; i < kWord; ++i) word |= static_cast<uint64_t>(static_cast<Signed>(key_of(bits[i])) > floor) << i;
    return word;
  }
  struct Counter {
    int64_t total = 0;
    FF_INLINE int64_t sum(const Counter& c) { return c.total; }
  };
  FF_INLINE int64_t collect(const Key* bits, Key low, Key high, Key* out, Counter& above) {
    const Key key = key_of(bits[0]);
    above.total += key >= high;
    *out = key;
    return static_cast<Key>(key - low) < static_cast<Key>(high - low);
  }
};

#if defined(__AVX512BW__)
template <>
struct Lanes<uint32_t> {
  static constexpr int kWidth = 16;
  FF_INLINE __m512i load(const uint32_t* bits) {
    const __m512i magnitude = _mm512_and_si512(_mm512_loadu_si512(bits), _mm512_set1_epi32(0x7fffffff));
    return _mm512_min_epu32(magnitude, _mm512_set1_epi32(KeyOrder<uint32_t>::kNan));
  }
  FF_INLINE uint64_t above(const uint32_t* bits, int32_t floor) {
    const __m512i limit = _mm512_set1_epi32(floor);
    const uint64_t a = _mm512_cmpgt_epi32_mask(load(bits), limit), b = _mm512_cmpgt_epi32_mask(load(bits + 16), limit);
    const uint64_t c = _mm512_cmpgt_epi32_mask(load(bits + 32), limit),
                   d = _mm512_cmpgt_epi32_mask(load(bits + 48), limit);
    return (a | b << 16) | (c | d << 16) << 32;
  }
  struct Counter {
    __m512i total = _mm512_setzero_si512();
    FF_INLINE int64_t sum(const Counter& c) { return _mm512_reduce_add_epi32(c.total); }
  };
  FF_INLINE int64_t collect(const uint32_t* bits, uint32_t low, uint32_t high, uint32_t* out, Counter& above) {
    const __m512i key = load(bits);
    const __mmask16 over = _mm512_cmpge_epu32_mask(key, _mm512_set1_epi32(static_cast<int>(high)));
    above.total = _mm512_mask_add_epi32(above.total, over, above.total, _mm512_set1_epi32(1));
    const __mmask16 within = _mm512_cmplt_epu32_mask(_mm512_sub_epi32(key, _mm512_set1_epi32(static_cast<int>(low))),
                                                     _mm512_set1_epi32(static_cast<int>(high - low)));
    _mm512_storeu_si512(out, _mm512_maskz_compress_epi32(within, key));  // compressing into memory is slow on Zen 4
    return __builtin_popcount(within);
  }
};

template <>
struct Lanes<uint64_t> {
  static constexpr int kWidth = 8;
  FF_INLINE __m512i load(const uint64_t* bits) {
    const __m512i magnitude = _mm512_and_si512(_mm512_loadu_si512(bits), _mm512_set1_epi64(INT64_MAX));
    return _mm512_min_epu64(magnitude, _mm512_set1_epi64(KeyOrder<uint64_t>::kNan));
  }
  FF_INLINE uint64_t above(const uint64_t* bits, int64_t floor) {
    const __m512i limit = _mm512_set1_epi64(floor);
    uint64_t word = 0;
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      word |= static_cast<uint64_t>(_mm512_cmpgt_epi64_mask(load(bits + 8 * i), limit)) << (8 * i);
    }
    return word;
  }
  struct Counter {
    __m512i total = _mm512_setzero_si512();
    FF_INLINE int64_t sum(const Counter& c) { return _mm512_reduce_add_epi64(c.total); }
  };
  FF_INLINE int64_t collect(const uint64_t* bits, uint64_t low, uint64_t high, uint64_t* out, Counter& above) {
    const __m512i key = load(bits);
    const __mmask8 over = _mm512_cmpge_epu64_mask(key, _mm512_set1_epi64(static_cast<int64_t>(high)));
    above.total = _mm512_mask_add_epi64(above.total, over, above.total, _mm512_set1_epi64(1));
    const __mmask8 within = _mm512_cmplt_epu64_mask(_mm512_sub_epi64(key, _mm512_set1_epi64(static_cast<int64_t>(low))),
                                                    _mm512_set1_epi64(static_cast<int64_t>(high - low)));
    _mm512_storeu_si512(out, _mm512_maskz_compress_epi64(within, key));
    return __builtin_popcount(within);
  }
};
#elif defined(__AVX2__)
// Byte j of entry m: where the j-th set bit of m is.
struct CompressTable {
  uint64_t order[256];
};
constexpr CompressTable make_compress_table() {
  CompressTable table{};
  for (int m = 0; m < 256; ++m) {
    int at = 0;
    for (int bit = 0; bit < 8; ++bit) {
      if (m >> bit & 1) table.order[m] |= static_cast<uint64_t>(bit) << (8 * at++);
    }
  }
  return table;
}
constexpr CompressTable kCompress = make_compress_table();

template <>
struct Lanes<uint32_t> {
  static constexpr int kWidth = 8;
  FF_INLINE __m256i load(const uint32_t* bits) {
    const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bits));
    const __m256i magnitude = _mm256_and_si256(raw, _mm256_set1_epi32(0x7fffffff));
    return _mm256_min_epu32(magnitude, _mm256_set1_epi32(KeyOrder<uint32_t>::kNan));
  }
  FF_INLINE uint32_t bits_of(__m256i mask) {
    return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(mask)));
  }
  FF_INLINE uint64_t above(const uint32_t* bits, int32_t floor) {
    const __m256i limit = _mm256_set1_epi32(floor);
    uint64_t word = 0;
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      word |= static_cast<uint64_t>(bits_of(_mm256_cmpgt_epi32(load(bits + 8 * i), limit))) << (8 * i);
    }
    return word;
  }
  struct Counter {
    __m256i total = _mm256_setzero_si256();
    FF_INLINE int64_t sum(const Counter& c) {
      alignas(32) int32_t lanes[8];
      _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), c.total);
      int64_t sum = 0;
      for (int32_t lane : lanes) sum += lane;
      return sum;
    }
  };
  FF_INLINE int64_t collect(const uint32_t* bits, uint32_t low, uint32_t high, uint32_t* out, Counter& above) {
    // keys lie below 2^31, so signed comparisons do
    const __m256i key = load(bits);
    const __m256i over = _mm256_cmpgt_epi32(key, _mm256_set1_epi32(static_cast<int>(high) - 1));
    above.total = _mm256_sub_epi32(above.total, over);
    const __m256i from_low = _mm256_cmpgt_epi32(key, _mm256_set1_epi32(static_cast<int>(low) - 1));
    const uint32_t within = bits_of(_mm256_andnot_si256(over, from_low));
    const __m256i order = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<int64_t>(kCompress.order[within])));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm256_permutevar8x32_epi32(key, order));
    return __builtin_popcount(within);
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
int64_t collect(const void* x, int64_t n, Key low, Key high, Key* out, int64_t* above) {
  using L = Lanes<Key>;
  int64_t kept = 0, over = 0;
  each_block<Key, S>(x, n, [&](const Key* bits, int64_t count, int64_t) {
    typename L::Counter counter;
    int64_t i = 0;
    for (; i + L::kWidth <= count; i += L::kWidth) kept += L::collect(bits + i, low, high, out + kept, counter);
    over += L::Counter::sum(counter);
    for (; i < count; ++i) {
      const Key key = key_of(bits[i]);
      over += key >= high;
      out[kept] = key;
      kept += static_cast<Key>(key - low) < static_cast<Key>(high - low);
    }
  });
  *above = over;
  return kept;
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

FF_INLINE void expand(uint64_t word, uint8_t* out) {
#if defined(__AVX512BW__)
  _mm512_storeu_si512(out, _mm512_maskz_set1_epi8(word, 1));
#else
  for (int byte = 0; byte < 8; ++byte) {
    // Each of the eight bits in a byte of its own place, then any set bit carries into the byte's top.
    const uint64_t spread = ((word >> (8 * byte)) & 0xff) * 0x0101010101010101u & 0x8040201008040201u;
    const uint64_t ones = ((spread + 0x7f7f7f7f7f7f7f7fu) >> 7) & 0x0101010101010101u;
    memcpy(out + 8 * byte, &ones, 8);
  }
#endif
}

template <class Key, class S, bool kTies, bool kPacked>
FF_INLINE int64_t write_mask(const void* x, int64_t n, typename KeyOrder<Key>::Signed floor, uint8_t* out) {
  using L = Lanes<Key>;
  int64_t tied = 0;
  each_block<Key, S>(x, n, [&](const Key* bits, int64_t count, int64_t offset) {
    uint8_t* to = out + (kPacked ? offset / 8 : offset);
    const auto on = [&](const Key* from) {
      const uint64_t word = L::above(from, floor);
      if constexpr (kTies) tied += __builtin_popcountll(word & ~L::above(from, floor + 1));
      return word;
    };
    int64_t i = 0;
    for (; i + kWord <= count; i += kWord) {
      const uint64_t word = on(bits + i);
      if constexpr (kPacked) {
        memcpy(to + i / 8, &word, 8);
      } else {
        expand(word, to + i);
      }
    }
    const int64_t rest = count - i;
    if (rest == 0) return;
    // Zeros behind the end would count among the ties of zero, so what they give is taken away again.
    Key padded[kWord] = {};
    memcpy(padded, bits + i, static_cast<size_t>(rest) * sizeof(Key));
    const uint64_t word = on(padded) & ((uint64_t(1) << rest) - 1);
    if constexpr (kTies) {
      if (floor == -1) tied -= kWord - rest;
    }
    alignas(64) uint8_t bytes[kWord];
    if constexpr (kPacked) {
      memcpy(bytes, &word, 8);
      memcpy(to + i / 8, bytes, static_cast<size_t>((rest + 7) / 8));
    } else {
      expand(word, bytes);
      memcpy(to + i, bytes, static_cast<size_t>(rest));
    }
  });
  return tied;
}

template <class Key, class S>
int64_t mask(const void* x, int64_t n, typename KeyOrder<Key>::Signed floor, bool ties, bool packed, uint8_t* out) {
  if (packed)
    return ties ? write_mask<Key, S, true, true>(x, n, floor, out) : write_mask<Key, S, false, true>(x, n, floor, out);
  return ties ? write_mask<Key, S, true, false>(x, n, floor, out) : write_mask<Key, S, false, false>(x, n, floor, out);
}

template <class Key, class S>
Key key_at(const void* x, int64_t index) {
  return key_of(bits_of<Key>(static_cast<const S*>(x)[index]));
}

template <class Key, class S>
void first(const void* x, int64_t n, Key key, int64_t count, bool packed, uint8_t* out) {
  for (int64_t i = 0; i < n && count > 0; ++i) {
    if (key_at<Key, S>(x, i) != key) continue;
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
    {FF_NARROW(collect), FF_NARROW(histogram), FF_NARROW(mask), FF_NARROW(first), FF_NARROW(key_at)},
    {FF_WIDE(collect), FF_WIDE(histogram), FF_WIDE(mask), FF_WIDE(first), FF_WIDE(key_at)},
};
#undef FF_NARROW
#undef FF_WIDE

}  // namespace ff::FF_ISA
