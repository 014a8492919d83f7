// A vector of float32 with the operations the streaming kernels need, for AVX2 and AVX-512. Where the compiler's own
// vectors are as good, kernels use those; it does not find the minimum and maximum that treat a NaN as the comparisons
// do, and it makes too much of a masked count. Every operation rounds once, so the instruction sets agree to the bit.
#pragma once
#include "common/storage.h"

#if defined(__AVX2__)
#if defined(__GNUC__) && !defined(__clang__)
// gcc 12's AVX-512 headers start from a deliberately undefined register and then warn about it.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>

#define FF_HAS_FLOATS 1

namespace ff::FF_ISA {

// lower(a, b) is a < b ? a : b, upper(a, b) is a > b ? a : b: b where either is NaN. The arithmetic without a
// name here is the compiler's: a + b, a - b, a * b, a / b on V.
#if defined(__AVX512F__)
struct Floats {
  using V = __m512;
  using Mask = __mmask16;
  static constexpr int kWidth = 16;
  FF_INLINE V all(float x) { return _mm512_set1_ps(x); }
  FF_INLINE V load(const float* p) { return _mm512_loadu_ps(p); }
  FF_INLINE void store(float* p, V a) { _mm512_storeu_ps(p, a); }
  FF_INLINE V multiply_add(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
  FF_INLINE V lower(V a, V b) { return _mm512_min_ps(a, b); }
  FF_INLINE V upper(V a, V b) { return _mm512_max_ps(a, b); }
  FF_INLINE V root(V a) { return _mm512_sqrt_ps(a); }
  FF_INLINE Mask greater(V a, V b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
  FF_INLINE V choose(Mask m, V yes, V no) { return _mm512_mask_mov_ps(no, m, yes); }
  FF_INLINE int64_t count(Mask m) { return __builtin_popcount(m); }
  FF_INLINE Mask all(bool on) { return on ? Mask(0xffff) : Mask(0); }
  FF_INLINE Mask nonzero(const uint8_t* bytes) {
    const __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes));
    return static_cast<Mask>(_mm_test_epi8_mask(v, v));
  }
  FF_INLINE Mask from_bits(const uint8_t* bytes) {  // the lowest bit of a byte first
    Mask m;
    __builtin_memcpy(&m, bytes, sizeof m);
    return m;
  }
};
#else
struct Floats {
  using V = __m256;
  using Mask = __m256;
  static constexpr int kWidth = 8;
  FF_INLINE V all(float x) { return _mm256_set1_ps(x); }
  FF_INLINE V load(const float* p) { return _mm256_loadu_ps(p); }
  FF_INLINE void store(float* p, V a) { _mm256_storeu_ps(p, a); }
  FF_INLINE V multiply_add(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
  FF_INLINE V lower(V a, V b) { return _mm256_min_ps(a, b); }
  FF_INLINE V upper(V a, V b) { return _mm256_max_ps(a, b); }
  FF_INLINE V root(V a) { return _mm256_sqrt_ps(a); }
  FF_INLINE Mask greater(V a, V b) { return _mm256_cmp_ps(a, b, _CMP_GT_OQ); }
  FF_INLINE V choose(Mask m, V yes, V no) { return _mm256_blendv_ps(no, yes, m); }
  FF_INLINE int64_t count(Mask m) { return __builtin_popcount(static_cast<unsigned>(_mm256_movemask_ps(m))); }
  FF_INLINE Mask all(bool on) { return _mm256_castsi256_ps(_mm256_set1_epi32(on ? -1 : 0)); }
  FF_INLINE Mask nonzero(const uint8_t* bytes) {
    const __m256i v = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes)));
    return _mm256_castsi256_ps(_mm256_cmpgt_epi32(v, _mm256_setzero_si256()));
  }
  FF_INLINE Mask from_bits(const uint8_t* bytes) {  // the lowest bit of a byte first
    const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    return _mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(*bytes), bit), bit));
  }
};
#endif

}  // namespace ff::FF_ISA
#endif
