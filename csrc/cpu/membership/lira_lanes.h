// Vectors of shadow-model scores, one column (one query of one sample) a lane, and of whether the models had the
// samples. For membership_lira.cpp, which is compiled once per instruction set.
#pragma once
#include <cstdint>
#include <type_traits>

#include "common/storage.h"

#if defined(__SSE4_1__)
#if defined(__GNUC__) && !defined(__clang__)
// gcc 12's AVX-512 headers start from a deliberately undefined register and then warn about it.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>
#endif

namespace ff::FF_ISA {

constexpr int kVectorBytes = FF_ISA_LEVEL >= 4 ? 64 : FF_ISA_LEVEL == 3 ? 32 : 16;

// Vectors with the lanes of compute type C.
template <class C>
struct Lanes;
template <>
struct Lanes<float> {
  static constexpr int W = kVectorBytes / 4;
  using Vec = float __attribute__((vector_size(kVectorBytes)));
  using Mask = int32_t __attribute__((vector_size(kVectorBytes)));
  using Bytes = int8_t __attribute__((vector_size(kVectorBytes / 4)));
};
template <>
struct Lanes<double> {
  static constexpr int W = kVectorBytes / 8;
  using Vec = double __attribute__((vector_size(kVectorBytes)));
  using Mask = int64_t __attribute__((vector_size(kVectorBytes)));
  using Bytes = int8_t __attribute__((vector_size(kVectorBytes / 8)));
  using Floats = float __attribute__((vector_size(kVectorBytes / 2)));
};
template <class C>
using VecOf = typename Lanes<C>::Vec;
template <class C>
using MaskOf = typename Lanes<C>::Mask;

template <class C>
FF_INLINE VecOf<C> splat(C x) {
  return x - VecOf<C>{};
}

template <class C>
FF_INLINE VecOf<C> load_own(const C* p) {
  VecOf<C> v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
template <class C>
FF_INLINE void store_own(C* p, VecOf<C> v) {
  __builtin_memcpy(p, &v, sizeof v);
}

struct Whole {};  // in place of a count: as many as there are lanes

// `count` scores from p as compute type, further lanes 0; no byte beyond them is read.
template <class S, class C, class Count>
FF_INLINE VecOf<C> load_scores(const S* p, Count count) {
  S few[Lanes<C>::W] = {};
  if constexpr (!__is_same(Count, Whole)) {
    __builtin_memcpy(few, p, sizeof(S) * static_cast<uint64_t>(count));
    p = few;
  }
  if constexpr (sizeof(S) == sizeof(C)) {
    return load_own(p);
  } else {
    typename Lanes<C>::Floats v;
    __builtin_memcpy(&v, p, sizeof v);
    return __builtin_convertvector(v, VecOf<C>);
  }
}

// Which lanes' models had the sample, from bytes of 0xff and 0: a mask register where there are such, else lanes of -1
// and 0.
#if FF_ISA_LEVEL >= 4
template <class C>
using Where = std::conditional_t<sizeof(C) == 4, __mmask16, __mmask8>;

template <class C>
FF_INLINE Where<C> members(const uint8_t* p) {
  __m128i bytes = {};
  __builtin_memcpy(&bytes, p, static_cast<uint64_t>(Lanes<C>::W));
  return static_cast<Where<C>>(_mm_test_epi8_mask(bytes, bytes));
}
FF_INLINE VecOf<float> pick(__mmask16 where, VecOf<float> a, VecOf<float> b) {
  return (VecOf<float>)_mm512_mask_blend_ps(where, (__m512)b, (__m512)a);
}
FF_INLINE VecOf<double> pick(__mmask8 where, VecOf<double> a, VecOf<double> b) {
  return (VecOf<double>)_mm512_mask_blend_pd(where, (__m512d)b, (__m512d)a);
}
FF_INLINE void add_where(__mmask16 where, VecOf<float> x, VecOf<float>& sum) {
  sum = (VecOf<float>)_mm512_mask_add_ps((__m512)sum, where, (__m512)sum, (__m512)x);
}
FF_INLINE void add_where(__mmask8 where, VecOf<double> x, VecOf<double>& sum) {
  sum = (VecOf<double>)_mm512_mask_add_pd((__m512d)sum, where, (__m512d)sum, (__m512d)x);
}
FF_INLINE void add_square_where(__mmask16 where, VecOf<float> x, VecOf<float>& sum) {
  sum = (VecOf<float>)_mm512_mask3_fmadd_ps((__m512)x, (__m512)x, (__m512)sum, where);
}
FF_INLINE void add_square_where(__mmask8 where, VecOf<double> x, VecOf<double>& sum) {
  sum = (VecOf<double>)_mm512_mask3_fmadd_pd((__m512d)x, (__m512d)x, (__m512d)sum, where);
}
#else
template <class C>
using Where = MaskOf<C>;

// gcc takes __builtin_convertvector apart lane by lane where there are instructions for it.
template <class C>
FF_INLINE Where<C> members(const uint8_t* p) {
#if defined(__SSE4_1__)
  __m128i bytes = {};
  __builtin_memcpy(&bytes, p, static_cast<uint64_t>(Lanes<C>::W));
#if FF_ISA_LEVEL == 3
  if constexpr (sizeof(C) == 4) return (MaskOf<C>)_mm256_cvtepi8_epi32(bytes);
  return (MaskOf<C>)_mm256_cvtepi8_epi64(bytes);
#else
  if constexpr (sizeof(C) == 4) return (MaskOf<C>)_mm_cvtepi8_epi32(bytes);
  return (MaskOf<C>)_mm_cvtepi8_epi64(bytes);
#endif
#else
  typename Lanes<C>::Bytes bytes;
  __builtin_memcpy(&bytes, p, sizeof bytes);
  return __builtin_convertvector(bytes, MaskOf<C>);
#endif
}
#if FF_ISA_LEVEL == 3
FF_INLINE VecOf<float> pick(MaskOf<float> where, VecOf<float> a, VecOf<float> b) {
  return (VecOf<float>)_mm256_blendv_ps((__m256)b, (__m256)a, (__m256)where);
}
FF_INLINE VecOf<double> pick(MaskOf<double> where, VecOf<double> a, VecOf<double> b) {
  return (VecOf<double>)_mm256_blendv_pd((__m256d)b, (__m256d)a, (__m256d)where);
}
#else
template <class V, class M>
FF_INLINE V pick(M where, V a, V b) {
  return (V)(((M)a & where) | ((M)b & ~where));
}
#endif
template <class V, class M>
FF_INLINE void add_where(M where, V x, V& sum) {
  sum += (V)((M)x & where);  // a NaN that isn't wanted must not get in, so no product with 0
}
template <class V, class M>
FF_INLINE void add_square_where(M where, V x, V& sum) {
  const V kept = (V)((M)x & where);
  sum += kept * kept;
}
#endif

}  // namespace ff::FF_ISA
