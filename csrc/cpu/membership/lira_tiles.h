// Blocks of whole samples, and what is computed for each sample: counts, logarithms, means over queries. For
// membership_lira.cpp, which is compiled once per instruction set.
#pragma once
#include <cstdint>

#include "cpu/membership/lira.h"
#include "cpu/membership/lira_moments.h"

namespace ff::FF_ISA {

constexpr int64_t kMemberBytes = 128 << 10;  // of a block, beside the scores in the L2 cache
constexpr int64_t kTile = 128;               // columns whose double constants share the L1 cache

// Columns a block; whole lines of members.
FF_INLINE int64_t block_columns(int64_t models) {
  const int64_t fit = kMemberBytes / (models > 0 ? models : 1) / kLine * kLine;
  return fit < kLine ? kLine : smaller(fit, kBlockColumns);
}

// A block of whole samples, or part of one that has more queries than a block has columns.
struct Span {
  int64_t sample, samples;  // those it touches
  int64_t query;            // of the first sample: where the block begins
  int64_t width;
};

template <class Visit>
FF_INLINE void for_spans(int64_t begin, int64_t end, int64_t queries, int64_t columns, const Visit& visit) {
  const int64_t at_once = queries < columns ? columns / (queries > 0 ? queries : 1) : 1;
  for (int64_t n = begin; n < end; n += at_once) {
    const int64_t samples = smaller(at_once, end - n), width = samples * queries;
    for (int64_t from = 0; from < width; from += columns) visit(Span{n, samples, from, smaller(columns, width - from)});
  }
}

template <class T, class To>
FF_INLINE void repeat(const T* from, const Span& span, int64_t queries, To* to) {  // each sample's value, a column
  if (queries == 1) {
    for (int64_t c = 0; c < span.width; ++c) to[c] = static_cast<To>(from[c]);
    return;
  }
  int64_t c = 0;
  for (int64_t n = 0; c < span.width; ++n) {
    const int64_t end = smaller(queries * (n + 1) - span.query, span.width);
    for (const To value = static_cast<To>(from[n]); c < end; ++c) to[c] = value;
  }
}

// Makes a line of members, 1 or 0, a block's, and adds them to sums.
FF_INLINE void add_line(const uint8_t* from, uint8_t* to, uint8_t* sums) {
  using Bytes = uint8_t __attribute__((vector_size(kVectorBytes)));
  for (int64_t i = 0; i < kLine; i += kVectorBytes) {
    Bytes x, sum;
    __builtin_memcpy(&x, from + i, sizeof x);
    __builtin_memcpy(&sum, sums + i, sizeof sum);
    sum += x;
    x = -x;
    __builtin_memcpy(to + i, &x, sizeof x);
    __builtin_memcpy(sums + i, &sum, sizeof sum);
  }
}

// The block of scores that a span names, and how many models had each column's sample. The members are copied to
// `bytes`: in place, the rows of each strip would take a page a model.
template <class S>
FF_INLINE Block<S> block_of(const LiraScores& in, const Span& span, uint8_t* bytes, int32_t* in_count) {
  constexpr int64_t kMost = 255;  // what a byte can count
  const int64_t width = span.width;
  const Block<S> block = {static_cast<const S*>(in.scores) + span.sample * in.queries + span.query,
                          in.samples * in.queries,
                          bytes,
                          in.models,
                          width,
                          in.member + span.sample + span.samples,
                          in.samples};
  alignas(64) uint8_t few[kBlockColumns], row[kBlockColumns];
  for (int64_t c = 0; c < width; ++c) in_count[c] = 0;
  for (int64_t first = 0; first < in.models; first += kMost) {
    __builtin_memset(few, 0, sizeof few);
    for (int64_t m = first; m < smaller(first + kMost, in.models); ++m) {
      const uint8_t* on = in.member + m * in.samples + span.sample;
      if (in.queries > 1) {
        repeat(on, span, in.queries, row);
        on = row;
      }
      int64_t c = 0;
      for (; c + kLine <= width; c += kLine) add_line(on + c, bytes + (c * in.models + m * kLine), few + c);
      if (c == width) continue;
      alignas(64) uint8_t last[kLine] = {};
      for (int64_t i = 0; c + i < width; ++i) last[i] = on[c + i];
      add_line(last, bytes + (c * in.models + m * kLine), few + c);
    }
#pragma omp simd
    for (int64_t c = 0; c < width; ++c) in_count[c] += few[c];
  }
  return block;
}

// Of counts that stand at columns, those of the samples.
FF_INLINE void keep_samples(const Span& span, int64_t queries, int32_t* count) {
  for (int64_t n = 1; queries > 1 && n < span.samples; ++n) count[n] = count[n * queries];
}

constexpr int64_t rounded(int64_t bytes) { return (bytes + 63) / 64 * 64; }

// Scratch: leave-one-out's sums over a long sample, then member bytes, then the sorted side.
FF_INLINE int64_t member_bytes(int64_t models) { return models * block_columns(models); }
int64_t scratch_bytes(int64_t models, bool median) {
  return rounded(8 * models) + member_bytes(models) + (median ? models * kVectorBytes : 0);
}
struct Scratch {
  double* sums;
  uint8_t* bytes;
  void* sorted;
  FF_INLINE Scratch at(void* p, int64_t models) {
    char* base = static_cast<char*>(p);
    char* bytes = base + rounded(8 * models);
    return {reinterpret_cast<double*>(base), reinterpret_cast<uint8_t*>(bytes), bytes + member_bytes(models)};
  }
};

// ---- per sample -----------------------------------------------------------------------------------------------------

constexpr double kInfinity = __builtin_inf();
constexpr double kTwoPi = 6.283185307179586;

FF_INLINE uint64_t bits_of(double x) { return __builtin_bit_cast(uint64_t, x); }
FF_INLINE double from_bits(uint64_t x) { return __builtin_bit_cast(double, x); }

// Natural logarithm in a form that loops of it vectorise; below 1 ulp. (FreeBSD's e_log.c has the same polynomial.)
FF_INLINE double log_of(double x) {
  constexpr uint64_t kRootHalf = 0x3fe6a09e667f3bcd;
  const bool small = x < 0x1p-1022;
  const uint64_t i = bits_of(small ? x * 0x1p54 : x) - kRootHalf;
  // the exponent as a double: 1024 added while it is an integer keeps it positive, 2^52 in front makes it a double
  const double k = from_bits(((i + (1024ull << 52)) >> 52) | 0x4330000000000000) - (0x1p52 + 1024.0) - (small ? 54 : 0);
  const double f = from_bits((i & 0xfffffffffffff) + kRootHalf) - 1.0;
  const double s = f / (2.0 + f), z = s * s, half = 0.5 * f * f;
  double r = z * 1.479819860511658591e-01 + 1.531383769920937332e-01;
  r = z * r + 1.818357216161805012e-01;
  r = z * r + 2.222219843214978396e-01;
  r = z * r + 2.857142874366239149e-01;
  r = z * r + 3.999999999940941908e-01;
  r = z * r + 6.666666666666735130e-01;
  r = z * r;
  const double y = k * 6.93147180369123816490e-01 - ((half - (s * (half + r) + k * 1.90821492927058770002e-10)) - f);
  return x > 0.0 && x < kInfinity ? y : x == 0.0 ? -kInfinity : x < 0.0 ? __builtin_nan("") : x;
}

// The same of a normal x > 0 in float: 1 + t in [2/3, 4/3) keeps the relative accuracy near 1.
FF_INLINE float log_of(float x) {
  constexpr uint32_t kTwoThirds = 0x3f2aaaab;
  const uint32_t i = __builtin_bit_cast(uint32_t, x) - kTwoThirds;
  const float t = __builtin_bit_cast(float, (i & 0x7fffff) + kTwoThirds) - 1.0f;
  float q = t * 0.140560985f - 0.154031977f;
  q = t * q + 0.139876544f;
  q = t * q - 0.164127916f;
  q = t * q + 0.200119436f;
  q = t * q - 0.250080287f;
  q = t * q + 0.333331674f;
  q = t * q - 0.499999315f;
  q = t * q + 1.0f;
  return t * q + static_cast<float>(static_cast<int32_t>(i) >> 23) * 0.693147181f;
}

FF_INLINE float root_of(float x) { return __builtin_sqrtf(x); }
FF_INLINE double root_of(double x) { return __builtin_sqrt(x); }

template <class C>
FF_INLINE C at_least(C x, C floor) {  // NaN stays
  return x < floor ? floor : x;
}

FF_INLINE bool enough(int64_t out, int64_t in, const LiraRule& rule) {
  return (out >= rule.min_count) & ((rule.mode != kOnline) | (in >= rule.min_count));  // no branch in a loop of it
}

// The mean over each sample's queries; `sum` carries a long sample from span to span.
template <class S, class C, class Enough>
FF_INLINE void finish(const Span& span, int64_t queries, const C* score, double& sum, S* out, const Enough& ok) {
  if (queries == 1) {
    for (int64_t n = 0; n < span.samples; ++n)
      out[n] = ok(n) ? static_cast<S>(score[n]) : static_cast<S>(__builtin_nan(""));
    return;
  }
  int64_t c = 0;
  for (int64_t n = 0; c < span.width; ++n) {
    const int64_t end = smaller(queries * (n + 1) - span.query, span.width);
    double total = span.query > 0 ? sum : 0.0;
    for (; c < end; ++c) total += static_cast<double>(score[c]);
    sum = total;
    out[n] = static_cast<S>(ok(n) ? total / static_cast<double>(queries) : __builtin_nan(""));
  }
}

}  // namespace ff::FF_ISA
