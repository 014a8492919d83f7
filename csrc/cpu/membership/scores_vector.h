// Vector arithmetic of the membership kernels: float32 vectors of 4, 8 or 16 lanes as compiler extensions, one source
// for every instruction set. For membership.cpp, which is compiled once for each.
//
// A product and a sum in one expression become one fma where the instruction set has it.
#pragma once
#include <cstdint>
#include <utility>

#include "common/storage.h"

#if defined(__F16C__)
#if defined(__GNUC__) && !defined(__clang__)
// gcc 12's AVX-512 headers start from a deliberately undefined register and then warn about it, hundreds of times.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>
#endif

namespace ff::FF_ISA {

constexpr int W = FF_ISA_LEVEL >= 4 ? 16 : FF_ISA_LEVEL == 3 ? 8 : 4;

using Vec = float __attribute__((vector_size(4 * W)));
using Mask = int32_t __attribute__((vector_size(4 * W)));  // lanes 0 or -1; also plain int32 lanes
using Bytes = int8_t __attribute__((vector_size(W)));
using Halves = uint16_t __attribute__((vector_size(2 * W)));
using HalfVec = float __attribute__((vector_size(2 * W)));
using HalfWide = double __attribute__((vector_size(4 * W)));
struct Wide {  // W doubles
  HalfWide part[2];
};

constexpr float kInf = __builtin_inff();
constexpr double kLog2E = 1.4426950408889634;

FF_INLINE Vec splat(float x) { return x - Vec{}; }
FF_INLINE Mask splat_int(int32_t x) { return x - Mask{}; }
FF_INLINE Vec as_float(Mask x) { return (Vec)x; }
FF_INLINE Mask as_int(Vec x) { return (Mask)x; }
FF_INLINE Vec select(Mask m, Vec a, Vec b) { return m ? a : b; }
// The second operand where they compare unordered, as the x86 instructions do: put what may be NaN second to keep it.
FF_INLINE Vec max_of(Vec a, Vec b) { return a > b ? a : b; }
FF_INLINE Vec min_of(Vec a, Vec b) { return a < b ? a : b; }
FF_INLINE Vec clamp_keep_nan(Vec x, Vec low, Vec high) { return max_of(low, min_of(high, x)); }

FF_INLINE Vec load_vec(const float* p) {
  Vec v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
FF_INLINE void store_vec(float* p, Vec v) { __builtin_memcpy(p, &v, sizeof v); }

// A vector from parts stays in registers: through memory, the load would have to wait for several stores to retire.
template <int... I>
FF_INLINE HalfVec half_of(Vec v, std::integer_sequence<int, I...>, bool high) {
  return high ? __builtin_shufflevector(v, v, (I + W / 2)...) : __builtin_shufflevector(v, v, I...);
}
template <int... I>
FF_INLINE Vec join(HalfVec low, HalfVec high, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(low, high, I...);
}
FF_INLINE HalfVec low_half(Vec v) { return half_of(v, std::make_integer_sequence<int, W / 2>(), false); }
FF_INLINE HalfVec high_half(Vec v) { return half_of(v, std::make_integer_sequence<int, W / 2>(), true); }
FF_INLINE Vec join(HalfVec low, HalfVec high) { return join(low, high, std::make_integer_sequence<int, W>()); }
template <class F, int... I>
FF_INLINE Vec vec_of(const F& lane, std::integer_sequence<int, I...>) {
  return Vec{lane(I)...};
}
template <class F>
FF_INLINE Vec vec_of(const F& lane) {
  return vec_of(lane, std::make_integer_sequence<int, W>());
}

FF_INLINE bool any(Mask m) {
  const Bytes b = __builtin_convertvector(m, Bytes);
  if constexpr (W == 4) {
    uint32_t bits;
    __builtin_memcpy(&bits, &b, sizeof bits);
    return bits != 0;
  } else {
    uint64_t bits[W / 8];
    __builtin_memcpy(bits, &b, sizeof bits);
    return (bits[0] | bits[W / 8 - 1]) != 0;
  }
}

// ---- storage types --------------------------------------------------------------------------------------------------

FF_INLINE Vec widen_bfloat16(Halves h) { return as_float(__builtin_convertvector(h, Mask) << 16); }

FF_INLINE Vec widen_float16(Halves h) {
#if defined(__AVX512F__)
  return (Vec)_mm512_cvtph_ps((__m256i)h);
#elif defined(__F16C__)
  return (Vec)_mm256_cvtph_ps((__m128i)h);
#else
  // Exponent and mantissa land 112 binades too low, denormals included; one exact product mends both. Infinities and
  // NaN come out as finite values of 2^16 and more, which float16 has no other use for: give them exponent 255.
  const Mask bits = __builtin_convertvector(h, Mask);
  const Vec magnitude = as_float((bits & 0x7fff) << 13) * 0x1p112f;
  const Mask special = magnitude >= splat(65536.0f);
  return as_float(as_int(magnitude) | (special & 0x7f800000) | ((bits & 0x8000) << 16));
#endif
}

template <class S>
FF_INLINE Vec load_as_float(const S* p) {
  if constexpr (__is_same(S, float)) {
    return load_vec(p);
  } else {
    Halves h;
    __builtin_memcpy(&h, p, sizeof h);
    if constexpr (__is_same(S, BFloat16)) return widen_bfloat16(h);
    return widen_float16(h);
  }
}

// `count` < W elements at p, the other lanes -inf; touches no byte beyond them.
template <class S>
FF_INLINE Vec load_few(const S* p, int64_t count) {
  S block[W] = {};
  __builtin_memcpy(block, p, sizeof(S) * static_cast<uint64_t>(count));
  Mask lane;
  for (int i = 0; i < W; ++i) lane[i] = i;
  return select(lane < splat_int(static_cast<int32_t>(count)), load_as_float(block), splat(-kInf));
}

// ---- elementary functions -------------------------------------------------------------------------------------------

// 2^f for f in [-1/2, 1/2], relative error 0.03 ulp before rounding
FF_INLINE Vec exp2_fraction(Vec f) {
  Vec q = f * 0.00015353362f + 0.0013398875f;
  q = f * q + 0.00961843692f;
  q = f * q + 0.0555033237f;
  q = f * q + 0.240226477f;
  q = f * q + 0.693147182f;
  return f * q + 1.0f;
}

// Adding it to n in [-126, 127] rounds n to an integer and leaves n + 127 in the low bits: an exponent field.
constexpr float kRounder = 12582912.0f + 127.0f;
FF_INLINE Vec power_of_two(Vec rounded) { return as_float(as_int(rounded) << 23); }

// exp(x / temperature) of x <= 0, exactly 0 from `low` down; NaN stays NaN.
struct Exp {
  float inverse_t, scale;  // 1 / temperature, log2(e) / temperature
  float low;
  Vec flush;

  __attribute__((always_inline)) explicit Exp(double temperature)
      : inverse_t(static_cast<float>(1.0 / temperature)),
        scale(static_cast<float>(kLog2E / temperature)),
        low(static_cast<float>(-87.0 * temperature)),
        flush(Vec{}) {
    flush = (*this)(splat(low));
  }
  // x already clamped to [low, 0]. The fma that scales by 2^n also takes away the value at `low`, so that a class of
  // probability 0 adds exactly 0; to any other result that is less than 2^-100 of the largest term.
  __attribute__((always_inline)) Vec operator()(Vec x) const {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
    const Vec t = x * scale + kRounder;
    const Vec f = x * scale - (t - kRounder);
#else
    // Without an fma the product would lose the digits that the difference is about: take off n ln 2 in two steps, the
    // first of which is exact.
    const Vec z = x * inverse_t;
    const Vec t = z * static_cast<float>(kLog2E) + kRounder;
    const Vec n = t - kRounder;
    const Vec f = ((z - n * 0.693145752f) - n * 1.42860677e-6f) * static_cast<float>(kLog2E);
#endif
    return exp2_fraction(f) * power_of_two(t) - flush;
  }
};

// A product of a value with two powers of two, so that 2^-252 fits and one rounding makes a subnormal.
struct Scaled {
  Vec fraction, scale1, scale2;
  __attribute__((always_inline)) Vec times(Vec x) const { return fraction * x * scale1 * scale2; }
};

// exp(-x), x >= 0 in float64: no digit of a large x is lost, so a loss of 1e-30 keeps all of its own.
FF_INLINE Scaled exp_of_minus(const Wide& x) {
  constexpr double kRounder64 = 6755399441055744.0;
  HalfVec f[2], n[2];
  for (int h = 0; h < 2; ++h) {
    HalfWide b = x.part[h] * -kLog2E;
    b = b > -252.0 ? b : -252.0 - HalfWide{};
    const HalfWide rounded = (b + kRounder64) - kRounder64;
    n[h] = __builtin_convertvector(rounded, HalfVec);
    f[h] = __builtin_convertvector(b - rounded, HalfVec);
  }
  const Vec fraction = join(f[0], f[1]), exponent = join(n[0], n[1]);
  const Vec half = exponent * 0.5f + kRounder;
  const Vec rest = exponent - (half - kRounder) + kRounder;
  return {exp2_fraction(fraction), power_of_two(half), power_of_two(rest)};
}

// (a - b) * factor in float64
FF_INLINE Wide wide_difference(Vec a, Vec b, double factor) {
  const HalfVec a_half[2] = {low_half(a), high_half(a)}, b_half[2] = {low_half(b), high_half(b)};
  Wide out;
  for (int h = 0; h < 2; ++h) {
    out.part[h] =
        (__builtin_convertvector(a_half[h], HalfWide) - __builtin_convertvector(b_half[h], HalfWide)) * factor;
  }
  return out;
}
// x >= 0 as the sum of two float32 numbers
struct Pair {
  Vec high, low;
};
FF_INLINE Pair to_pair(const Wide& x) {
  HalfVec high[2], low[2];
  for (int h = 0; h < 2; ++h) {
    high[h] = __builtin_convertvector(x.part[h], HalfVec);
    low[h] = __builtin_convertvector(x.part[h] - __builtin_convertvector(high[h], HalfWide), HalfVec);
  }
  Pair pair = {join(high[0], high[1]), join(low[0], low[1])};
  pair.low = select(pair.high < splat(kInf), pair.low, Vec{});  // what overflows has no rest
  return pair;
}

// log(1 + t) / t for t in [-1/3, 1/3]
FF_INLINE Vec log1p_over(Vec t) {
  Vec q = t * 0.140560985f - 0.154031977f;
  q = t * q + 0.139876544f;
  q = t * q - 0.164127916f;
  q = t * q + 0.200119436f;
  q = t * q - 0.250080287f;
  q = t * q + 0.333331674f;
  q = t * q - 0.499999315f;
  return t * q + 1.0f;
}

// log(1 + s), s >= 0, to the last digits of the smallest s
FF_INLINE Vec log1p_of(Vec s) {
  const Vec x = s + 1.0f;
  const Mask i = as_int(x) - 0x3f2aaaab;  // 2/3: the mantissa goes to [2/3, 4/3)
  const Mask e = i >> 23;
  const Vec t = select(e == 0, s, as_float((i & 0x7fffff) + 0x3f2aaaab) - 1.0f);
  return t * log1p_over(t) + __builtin_convertvector(e, Vec) * 0.693147181f;
}

FF_INLINE Vec log_of(Vec x) {  // x normal and > 0
  const Mask i = as_int(x) - 0x3f2aaaab;
  const Vec t = as_float((i & 0x7fffff) + 0x3f2aaaab) - 1.0f;
  return t * log1p_over(t) + __builtin_convertvector(i >> 23, Vec) * 0.693147181f;
}

// -p log(1 - p) = p^2 q(p) for p in [0, 1/2]: no logarithm and no range reduction in the inner loop
FF_INLINE Vec add_surprise(Vec p, Vec sum) {
  Vec q = p * 1.4411062f - 1.69580853f;
  q = p * q + 1.25766706f;
  q = p * q - 0.203537777f;
  q = p * q + 0.269612491f;
  q = p * q + 0.242805108f;
  q = p * q + 0.333700627f;
  q = p * q + 0.499992847f;
  q = p * q + 1.0f;
  return p * p * q + sum;
}

// ---- moving lanes ---------------------------------------------------------------------------------------------------

using Lanes = std::make_integer_sequence<int, W>;

template <int Block, int... I>
FF_INLINE void swap_blocks(Vec* v, std::integer_sequence<int, I...>) {
  for (int i = 0; i < W; ++i) {
    if (i & Block) continue;
    const Vec a = v[i], b = v[i + Block];
    v[i] = __builtin_shufflevector(a, b, (I & Block ? W + I - Block : I)...);
    v[i + Block] = __builtin_shufflevector(a, b, (I & Block ? W + I : I + Block)...);
  }
}
FF_INLINE void transpose(Vec* v) {  // W x W
  if constexpr (W > 8) swap_blocks<8>(v, Lanes());
  if constexpr (W > 4) swap_blocks<4>(v, Lanes());
  swap_blocks<2>(v, Lanes());
  swap_blocks<1>(v, Lanes());
}

template <int Distance, int... I>
FF_INLINE Vec exchange(Vec v, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(v, v, (I ^ Distance)...);
}
template <int Distance>
FF_INLINE Vec exchange(Vec v) {
  return exchange<Distance>(v, Lanes());
}
FF_INLINE float lane_sum(Vec v) {
  if constexpr (W > 8) v += exchange<8>(v);
  if constexpr (W > 4) v += exchange<4>(v);
  v += exchange<2>(v);
  v += exchange<1>(v);
  return v[0];
}

}  // namespace ff::FF_ISA
