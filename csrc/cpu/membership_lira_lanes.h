// The passes over a block of shadow-model scores, one column (one query of one sample) per vector lane: moments in two
// passes, and a sorting network. For membership_lira.cpp, which is compiled once per instruction set.
#pragma once
#include <cstdint>

#include "cpu/storage.h"

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
  using Bytes = uint8_t __attribute__((vector_size(kVectorBytes / 4)));
};
template <>
struct Lanes<double> {
  static constexpr int W = kVectorBytes / 8;
  using Vec = double __attribute__((vector_size(kVectorBytes)));
  using Mask = int64_t __attribute__((vector_size(kVectorBytes)));
  using Bytes = uint8_t __attribute__((vector_size(kVectorBytes / 8)));
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
FF_INLINE VecOf<C> kept(VecOf<C> v, MaskOf<C> where) {  // 0 elsewhere, whatever v holds there
  return (VecOf<C>)((MaskOf<C>)v & where);
}
template <class C>
FF_INLINE VecOf<C> either(MaskOf<C> where, VecOf<C> a, VecOf<C> b) {
  return (VecOf<C>)(((MaskOf<C>)a & where) | ((MaskOf<C>)b & ~where));
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

// W bytes as integer lanes. gcc takes __builtin_convertvector apart lane by lane here.
template <class C>
FF_INLINE MaskOf<C> widen_bytes(const void* p) {
#if defined(__SSE4_1__)
  __m128i bytes = {};
  __builtin_memcpy(&bytes, p, static_cast<uint64_t>(Lanes<C>::W));
#if FF_ISA_LEVEL >= 4
  if constexpr (sizeof(C) == 4) return (MaskOf<C>)_mm512_cvtepu8_epi32(bytes);
  return (MaskOf<C>)_mm512_cvtepu8_epi64(bytes);
#elif FF_ISA_LEVEL == 3
  if constexpr (sizeof(C) == 4) return (MaskOf<C>)_mm256_cvtepu8_epi32(bytes);
  return (MaskOf<C>)_mm256_cvtepu8_epi64(bytes);
#else
  if constexpr (sizeof(C) == 4) return (MaskOf<C>)_mm_cvtepu8_epi32(bytes);
  return (MaskOf<C>)_mm_cvtepu8_epi64(bytes);
#endif
#else
  typename Lanes<C>::Bytes bytes;
  __builtin_memcpy(&bytes, p, sizeof bytes);
  return __builtin_convertvector(bytes, MaskOf<C>);
#endif
}

// Lanes of -1 where the bytes are 1; further lanes 0.
template <class C, class Count>
FF_INLINE MaskOf<C> load_members(const uint8_t* p, Count count) {
  if constexpr (__is_same(Count, Whole)) return -widen_bytes<C>(p);
  uint8_t few[Lanes<C>::W] = {};
  if constexpr (!__is_same(Count, Whole)) __builtin_memcpy(few, p, static_cast<uint64_t>(count));
  return -widen_bytes<C>(few);
}

// A block of columns of the scores, in place. on: whether the model had the column's sample.
template <class S>
struct Block {
  const S* scores;
  int64_t score_stride;
  const uint8_t* on;
  int64_t on_stride;
  int64_t models, width;
};

constexpr int64_t kBlockColumns = 512;

// Of each column and side: number of models and its inverse, mean, and sum of squared distances from the mean.
template <class C>
struct Moments {
  alignas(64) C n[2][kBlockColumns], share[2][kBlockColumns], mean[2][kBlockColumns], m2[2][kBlockColumns];
};

// Models whose terms are added in registers before the partial sum joins the total: less traffic, and less rounding.
constexpr int64_t kModelsAtOnce = 8;
constexpr int64_t kLine = 64;  // bytes of a cache line

// Calls visit(first model, how many, column, columns from there) for every group of models and vector of columns, with
// constants wherever a group or a vector is whole.
template <class C, class Visit>
FF_INLINE void for_groups(int64_t models, int64_t width, const Visit& visit) {
  constexpr int W = Lanes<C>::W;
  int64_t m = 0, whole = width / W * W;
  for (; m + kModelsAtOnce <= models; m += kModelsAtOnce) {
    for (int64_t c = 0; c < whole; c += W) visit(m, kModelsAtOnce, c, Whole());
    if (whole < width) visit(m, kModelsAtOnce, whole, width - whole);
  }
  if (m == models) return;
  for (int64_t c = 0; c < whole; c += W) visit(m, models - m, c, Whole());
  if (whole < width) visit(m, models - m, whole, width - whole);
}

// The second pass takes distances from the first pass's means; their sums mend the means and the squares, so that all
// digits of the compute type are right however far the scores lie from 0. `n` must be there.
template <class S, class C>
FF_INLINE void find_moments(const Block<S>& b, Moments<C>& out) {
  constexpr int W = Lanes<C>::W;
  using Vec = VecOf<C>;
  const int64_t padded = (b.width + W - 1) / W * W;
  alignas(64) C off[2][kBlockColumns];
  for (int64_t c = 0; c < padded; c += W) {
    for (int side = 0; side < 2; ++side) {
      store_own(out.share[side] + c, 1 / load_own(out.n[side] + c));
      store_own(out.mean[side] + c, Vec{});
      store_own(out.m2[side] + c, Vec{});
      store_own(off[side] + c, Vec{});
    }
  }
  for_groups<C>(b.models, b.width, [&](int64_t m, int64_t count, int64_t c, auto few) __attribute__((always_inline)) {
    Vec sum_out = {}, sum_in = {};
    for (int64_t i = m; i < m + count; ++i) {
      const Vec x = load_scores<S, C>(b.scores + i * b.score_stride + c, few);
      const MaskOf<C> in = load_members<C>(b.on + i * b.on_stride + c, few);
      sum_out += kept<C>(x, ~in);
      sum_in += kept<C>(x, in);
    }
    store_own(out.mean[0] + c, load_own(out.mean[0] + c) + sum_out);
    store_own(out.mean[1] + c, load_own(out.mean[1] + c) + sum_in);
  });
  for (int64_t c = 0; c < padded; c += W) {
    for (int side = 0; side < 2; ++side) {
      store_own(out.mean[side] + c, load_own(out.mean[side] + c) * load_own(out.share[side] + c));
    }
  }
  for_groups<C>(b.models, b.width, [&](int64_t m, int64_t count, int64_t c, auto few) __attribute__((always_inline)) {
    const Vec mean_out = load_own(out.mean[0] + c), mean_in = load_own(out.mean[1] + c);
    Vec off_out = {}, off_in = {}, m2_out = {}, m2_in = {};
    // The next block comes in while this one is computed: its rows are too short for the hardware to guess them.
    if (c * static_cast<int64_t>(sizeof(S)) % kLine == 0) {
      for (int64_t i = m; i < m + count; ++i) __builtin_prefetch(b.scores + i * b.score_stride + b.width + c);
    }
    if (c % kLine == 0) {
      for (int64_t i = m; i < m + count; ++i) __builtin_prefetch(b.on + i * b.on_stride + b.width + c);
    }
    for (int64_t i = m; i < m + count; ++i) {
      const Vec x = load_scores<S, C>(b.scores + i * b.score_stride + c, few);
      const MaskOf<C> in = load_members<C>(b.on + i * b.on_stride + c, few);
      const Vec d = x - either<C>(in, mean_in, mean_out);
      const Vec d_out = kept<C>(d, ~in), d_in = kept<C>(d, in);
      off_out += d_out;
      off_in += d_in;
      m2_out += d_out * d_out;
      m2_in += d_in * d_in;
    }
    store_own(off[0] + c, load_own(off[0] + c) + off_out);
    store_own(off[1] + c, load_own(off[1] + c) + off_in);
    store_own(out.m2[0] + c, load_own(out.m2[0] + c) + m2_out);
    store_own(out.m2[1] + c, load_own(out.m2[1] + c) + m2_in);
  });
  for (int64_t c = 0; c < padded; c += W) {
    for (int side = 0; side < 2; ++side) {
      const Vec mean = load_own(out.mean[side] + c), sum = load_own(off[side] + c);
      const Vec shift = sum * load_own(out.share[side] + c);
      const Vec mended = mean + shift, m2 = load_own(out.m2[side] + c) - shift * sum;
      // an infinite mean has no distances from it
      store_own(out.mean[side] + c, mended == mended ? mended : mean);
      store_own(out.m2[side] + c, m2 < Vec{} ? Vec{} : m2);
    }
  }
}

// Batcher's merge exchange (Knuth, TAOCP 3, 5.2.2, algorithm M) of n vectors, each lane for itself.
template <class C>
FF_INLINE void sort_lanes(C* a, int64_t n) {
  constexpr int W = Lanes<C>::W;
  for (int64_t p = 1; p < n; p *= 2) {
    for (int64_t k = p; k >= 1; k /= 2) {
      for (int64_t j = k % p; j + k < n; j += 2 * k) {
        if (k < p && (j + k) % (2 * p) == 0) continue;  // not across the lists that are merged
        const int64_t end = j + k < n - k ? j + k : n - k;
        for (int64_t i = j; i < end; ++i) {
          const VecOf<C> x = load_own(a + i * W), y = load_own(a + (i + k) * W);
          store_own(a + i * W, x < y ? x : y);
          store_own(a + (i + k) * W, x < y ? y : x);
        }
      }
    }
  }
}

// The scores of one side in W columns from c, sorted: rank r of lane l at sorted[r * W + l], +inf behind the last.
template <class S, class Count>
FF_INLINE void gather_side(const Block<S>& b, int64_t c, Count few, int side, S* sorted) {
  const VecOf<S> absent = splat(static_cast<S>(__builtin_inf()));
  const MaskOf<S> other = MaskOf<S>{} - (side == 0);
  for (int64_t m = 0; m < b.models; ++m) {
    const VecOf<S> x = load_scores<S, S>(b.scores + m * b.score_stride + c, few);
    const MaskOf<S> in = load_members<S>(b.on + m * b.on_stride + c, few);
    store_own(sorted + m * Lanes<S>::W, either<S>(in ^ other, x, absent));
  }
}
template <class S>
FF_INLINE void sort_side(const Block<S>& b, int64_t c, int side, S* sorted) {
  if (c + Lanes<S>::W <= b.width) {
    gather_side(b, c, Whole(), side, sorted);
  } else {
    gather_side(b, c, b.width - c, side, sorted);
  }
  sort_lanes(sorted, b.models);
}

}  // namespace ff::FF_ISA
