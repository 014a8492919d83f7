// Philox over whole vectors, for SSE4, AVX2 and AVX-512.
//
// One 32-bit word sits in each 64-bit lane, because the widening 32x32 multiplication works that way; what the upper
// half holds between rounds is garbage that nothing reads. Two such sets, a and b, are packed into full vectors at the
// end. The counters are dealt to the lanes in the order in which a 4x4 transposition inside each 128-bit group puts the
// words back into memory order: lane 4g + i holds block i * (kBlocks / 4) + g. Restoring the order with a general
// permutation would cost three times as many shuffles.
#pragma once
#include <cstdint>
#include <cstring>

#include "common/philox.h"

#if defined(__x86_64__)
#if defined(__GNUC__) && !defined(__clang__)
// gcc 12's AVX-512 headers start from a deliberately undefined register and then warn about it, hundreds of times.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>
#endif

#define FF_INLINE static inline __attribute__((always_inline))

namespace ff::FF_ISA {

#if defined(__AVX512F__)
struct Vec {
  using V = __m512i;
  static constexpr int kBlocks = 16;
  alignas(64) static constexpr uint64_t kOrder[8] = {0, 8, 1, 9, 2, 10, 3, 11};
  FF_INLINE V all(uint64_t x) { return _mm512_set1_epi64(static_cast<long long>(x)); }
  FF_INLINE V load(const void* p) { return _mm512_loadu_si512(p); }
  FF_INLINE void store(void* p, V a) { _mm512_storeu_si512(p, a); }
  FF_INLINE V add(V a, V b) { return _mm512_add_epi64(a, b); }
  FF_INLINE V mul(V a, V b) { return _mm512_mul_epu32(a, b); }
  FF_INLINE V high(V a) { return _mm512_srli_epi64(a, 32); }
  FF_INLINE V xor3(V a, V b, V c) { return _mm512_ternarylogic_epi64(a, b, c, 0x96); }
  FF_INLINE V pack(V a, V b) { return _mm512_mask_shuffle_epi32(a, 0xAAAA, b, static_cast<_MM_PERM_ENUM>(0xA0)); }
  FF_INLINE V low32(V a, V b) { return _mm512_unpacklo_epi32(a, b); }
  FF_INLINE V high32(V a, V b) { return _mm512_unpackhi_epi32(a, b); }
  FF_INLINE V low64(V a, V b) { return _mm512_unpacklo_epi64(a, b); }
  FF_INLINE V high64(V a, V b) { return _mm512_unpackhi_epi64(a, b); }
};
#elif defined(__AVX2__)
struct Vec {
  using V = __m256i;
  static constexpr int kBlocks = 8;
  alignas(32) static constexpr uint64_t kOrder[4] = {0, 4, 1, 5};
  FF_INLINE V all(uint64_t x) { return _mm256_set1_epi64x(static_cast<long long>(x)); }
  FF_INLINE V load(const void* p) { return _mm256_loadu_si256(static_cast<const V*>(p)); }
  FF_INLINE void store(void* p, V a) { _mm256_storeu_si256(static_cast<V*>(p), a); }
  FF_INLINE V add(V a, V b) { return _mm256_add_epi64(a, b); }
  FF_INLINE V mul(V a, V b) { return _mm256_mul_epu32(a, b); }
  FF_INLINE V high(V a) { return _mm256_srli_epi64(a, 32); }
  FF_INLINE V xor3(V a, V b, V c) { return _mm256_xor_si256(_mm256_xor_si256(b, c), a); }
  FF_INLINE V pack(V a, V b) { return _mm256_blend_epi32(a, _mm256_slli_epi64(b, 32), 0xAA); }
  FF_INLINE V low32(V a, V b) { return _mm256_unpacklo_epi32(a, b); }
  FF_INLINE V high32(V a, V b) { return _mm256_unpackhi_epi32(a, b); }
  FF_INLINE V low64(V a, V b) { return _mm256_unpacklo_epi64(a, b); }
  FF_INLINE V high64(V a, V b) { return _mm256_unpackhi_epi64(a, b); }
};
#elif defined(__SSE4_1__)
struct Vec {
  using V = __m128i;
  static constexpr int kBlocks = 4;
  alignas(16) static constexpr uint64_t kOrder[2] = {0, 2};
  FF_INLINE V all(uint64_t x) { return _mm_set1_epi64x(static_cast<long long>(x)); }
  FF_INLINE V load(const void* p) { return _mm_loadu_si128(static_cast<const V*>(p)); }
  FF_INLINE void store(void* p, V a) { _mm_storeu_si128(static_cast<V*>(p), a); }
  FF_INLINE V add(V a, V b) { return _mm_add_epi64(a, b); }
  FF_INLINE V mul(V a, V b) { return _mm_mul_epu32(a, b); }
  FF_INLINE V high(V a) { return _mm_srli_epi64(a, 32); }
  FF_INLINE V xor3(V a, V b, V c) { return _mm_xor_si128(_mm_xor_si128(b, c), a); }
  FF_INLINE V pack(V a, V b) { return _mm_blend_epi16(a, _mm_slli_epi64(b, 32), 0xCC); }
  FF_INLINE V low32(V a, V b) { return _mm_unpacklo_epi32(a, b); }
  FF_INLINE V high32(V a, V b) { return _mm_unpackhi_epi32(a, b); }
  FF_INLINE V low64(V a, V b) { return _mm_unpacklo_epi64(a, b); }
  FF_INLINE V high64(V a, V b) { return _mm_unpackhi_epi64(a, b); }
};
#endif

#if defined(__SSE4_1__)
constexpr int kLaneBlocks = Vec::kBlocks;

// The words of kLaneBlocks blocks from `block` on, in lane order: w0 to w3 hold words 0 to 3 of every block.
FF_INLINE void philox_lanes(uint64_t seed, uint32_t stream, uint32_t step, uint64_t block, uint32_t* w0, uint32_t* w1,
                            uint32_t* w2, uint32_t* w3) {
  using V = Vec::V;
  const V mul0 = Vec::all(kPhiloxMul0), mul1 = Vec::all(kPhiloxMul1);
  V a0 = Vec::add(Vec::all(block), Vec::load(Vec::kOrder)), b0 = Vec::add(a0, Vec::all(kLaneBlocks / 4));
  V a1 = Vec::high(a0), b1 = Vec::high(b0);
  V a2 = Vec::all(stream), b2 = a2;
  V a3 = Vec::all(step), b3 = a3;
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
#pragma GCC unroll 10
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const V key0 = Vec::all(k0), key1 = Vec::all(k1);
    const V ap = Vec::mul(a0, mul0), aq = Vec::mul(a2, mul1), bp = Vec::mul(b0, mul0), bq = Vec::mul(b2, mul1);
    a0 = Vec::xor3(Vec::high(aq), a1, key0);
    a2 = Vec::xor3(Vec::high(ap), a3, key1);
    b0 = Vec::xor3(Vec::high(bq), b1, key0);
    b2 = Vec::xor3(Vec::high(bp), b3, key1);
    a1 = aq;
    a3 = ap;
    b1 = bq;
    b3 = bp;
    k0 += kPhiloxKey0;
    k1 += kPhiloxKey1;
  }
  Vec::store(w0, Vec::pack(a0, b0));
  Vec::store(w1, Vec::pack(a1, b1));
  Vec::store(w2, Vec::pack(a2, b2));
  Vec::store(w3, Vec::pack(a3, b3));
}

// Four vectors in lane order to 4 * kLaneBlocks 32-bit values in memory order.
FF_INLINE void memory_order(const void* w0, const void* w1, const void* w2, const void* w3, void* out) {
  using V = Vec::V;
  const V x0 = Vec::load(w0), x1 = Vec::load(w1), x2 = Vec::load(w2), x3 = Vec::load(w3);
  const V low01 = Vec::low32(x0, x1), high01 = Vec::high32(x0, x1);
  const V low23 = Vec::low32(x2, x3), high23 = Vec::high32(x2, x3);
  char* q = static_cast<char*>(out);
  Vec::store(q, Vec::low64(low01, low23));
  Vec::store(q + sizeof(V), Vec::high64(low01, low23));
  Vec::store(q + 2 * sizeof(V), Vec::low64(high01, high23));
  Vec::store(q + 3 * sizeof(V), Vec::high64(high01, high23));
}
#else
constexpr int kLaneBlocks = 1;

FF_INLINE void philox_lanes(uint64_t seed, uint32_t stream, uint32_t step, uint64_t block, uint32_t* w0, uint32_t* w1,
                            uint32_t* w2, uint32_t* w3) {
  const Words w = philox(seed, stream, step, block);
  *w0 = w.w0, *w1 = w.w1, *w2 = w.w2, *w3 = w.w3;
}

FF_INLINE void memory_order(const void* w0, const void* w1, const void* w2, const void* w3, void* out) {
  char* q = static_cast<char*>(out);
  memcpy(q, w0, 4), memcpy(q + 4, w1, 4), memcpy(q + 8, w2, 4), memcpy(q + 12, w3, 4);
}
#endif

}  // namespace ff::FF_ISA
