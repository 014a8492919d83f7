// Leave one out (lira_loo): every model's scores against the statistics of the others. For lira.cpp, which is compiled
// once per instruction set.
#pragma once
#include <cstdint>

#include "cpu/membership/lira.h"
#include "cpu/membership/lira_moments.h"
#include "cpu/membership/lira_tiles.h"

namespace ff::FF_ISA {
namespace {

// Where removing a score leaves less than this share of the squares, the difference has lost digits (or, of equal
// scores, consists of nothing else): those statistics are computed anew.
template <class S>
constexpr double kSafeShare = sizeof(S) == 4 ? 0x1p-10 : 0.25;

template <class S>
__attribute__((noinline, cold)) void without_model(const Block<S>& b, int64_t c, int64_t model, double& mean,
                                                   double& variance) {
  const uint8_t side = *b.member(model, c);
  double n = 0.0, sum = 0.0, m2 = 0.0;
  const auto each_other = [&](const auto& use) {
    for (int64_t i = 0; i < b.models; ++i) {
      if (i != model && *b.member(i, c) == side) use(static_cast<double>(*b.score(i, c)));
    }
  };
  each_other([&](double x) { n += 1.0, sum += x; });
  mean = sum / n;
  each_other([&](double x) { m2 += (x - mean) * (x - mean); });
  variance = m2 / n;
}

// The order statistics on either side of the middle of a side, as they stand when one score is taken out.
struct Middles {
  alignas(64) double whole[2][kLine], low[2][2][kLine], high[2][2][kLine];
};

template <class S>
FF_INLINE void find_middles(const Block<S>& block, const Moments<double>& m, S* sorted, Middles& out) {
  constexpr int W = Lanes<S>::W;
  for (int side = 0; side < 2; ++side) {
    for (int64_t c = 0; c < block.width; c += W) {
      sort_side(block, c, side, sorted);
      for (int64_t i = 0; i < smaller(W, block.width - c); ++i) {
        const int64_t n = static_cast<int64_t>(m.n[side][c + i]), last = n > 0 ? n - 1 : 0;
        const auto rank = [&](int64_t r) { return static_cast<double>(sorted[smaller(r, last) * W + i]); };
        out.whole[side][c + i] =
            m.mean[side][c + i] != m.mean[side][c + i] ? __builtin_nan("") : (rank(last / 2) + rank(n / 2)) / 2.0;
        const int64_t low = n >= 2 ? (n - 2) / 2 : 0, high = last / 2;
        out.low[side][0][c + i] = rank(low), out.low[side][1][c + i] = rank(low + 1);
        out.high[side][0][c + i] = rank(high), out.high[side][1][c + i] = rank(high + 1);
      }
    }
  }
}

// Location and variance of both sides of each column as one target sees them.
struct Seen {
  alignas(64) double center[2][kLine], variance[2][kLine];
};

template <class S>
FF_INLINE void remove_target(const Block<S>& b, int64_t model, const Moments<double>& m, const double (&rest)[2][kLine],
                             const Middles* middles, Seen& seen) {
  alignas(64) double x[kLine], in[kLine];
  const S* score = b.score(model, 0);
  const uint8_t* on = b.member(model, 0);
  int64_t weak = 0;
#pragma omp simd
  for (int64_t c = 0; c < b.width; ++c) x[c] = static_cast<double>(score[c]), in[c] = static_cast<double>(on[c] & 1);
  alignas(64) double share[kLine];
#pragma omp simd reduction(| : weak)
  for (int64_t c = 0; c < b.width; ++c) {
    const bool side = in[c] != 0.0;
    const double n = side ? m.n[1][c] : m.n[0][c], mean = side ? m.mean[1][c] : m.mean[0][c];
    const double m2 = side ? m.m2[1][c] : m.m2[0][c], part = side ? rest[1][c] : rest[0][c];
    const double d = x[c] - mean, left = m2 - d * d * (n * part), moved = mean - d * part;
    seen.center[0][c] = side ? m.mean[0][c] : moved;
    seen.center[1][c] = side ? moved : m.mean[1][c];
    seen.variance[0][c] = side ? m.m2[0][c] / m.n[0][c] : left * part;
    seen.variance[1][c] = side ? left * part : m.m2[1][c] / m.n[1][c];
    share[c] = left - kSafeShare<S> * m2;
    weak |= share[c] > 0.0 ? 0 : 1;
  }
  if (__builtin_expect(weak != 0, 0)) {
    for (int64_t c = 0; c < b.width; ++c) {
      const int side = on[c] & 1;
      if (!(share[c] > 0.0)) without_model(b, c, model, seen.center[side][c], seen.variance[side][c]);
    }
  }
  if (middles == nullptr) return;
#pragma omp simd
  for (int64_t c = 0; c < b.width; ++c) {
    const bool side = in[c] != 0.0;
    const double low = side ? middles->low[1][0][c] : middles->low[0][0][c];
    const double high = side ? middles->high[1][0][c] : middles->high[0][0][c];
    const double next = side ? middles->low[1][1][c] : middles->low[0][1][c];
    const double after = side ? middles->high[1][1][c] : middles->high[0][1][c];
    const double own = ((x[c] > low ? low : next) + (x[c] > high ? high : after)) / 2.0;
    const double mean = side ? seen.center[1][c] : seen.center[0][c];
    const double moved = mean == mean ? own : mean;
    seen.center[0][c] = side ? middles->whole[0][c] : moved;
    seen.center[1][c] = side ? moved : middles->whole[1][c];
  }
}

template <class S>
FF_INLINE void score_seen(const S* target, int64_t width, const LiraRule& rule, const Seen& seen, double* score) {
  const double floor = rule.var_floor;
  if (rule.mode == kOnline) {
#pragma omp simd
    for (int64_t c = 0; c < width; ++c) {
      const double x = static_cast<double>(target[c]), a = x - seen.center[0][c], b = x - seen.center[1][c];
      const double out = at_least(seen.variance[0][c], floor), in = at_least(seen.variance[1][c], floor);
      score[c] = 0.5 * (a * a / out - b * b / in + log_of(out / in));
    }
  } else {
    const bool density = rule.mode == kDensity;
#pragma omp simd
    for (int64_t c = 0; c < width; ++c) {
      const double a = static_cast<double>(target[c]) - seen.center[0][c];
      const double out = at_least(seen.variance[0][c], floor);
      score[c] = density ? 0.5 * (a * a / out + log_of(kTwoPi * out)) : a / __builtin_sqrt(out);
    }
  }
}

template <class S>
void loo(const LiraLoo& job, int64_t begin, int64_t end, void* memory) {
  const LiraScores& in = job.in;
  if (in.models == 0) return;  // no target, and no row of sorted scores to look at
  const Scratch scratch = Scratch::at(memory, in.models);
  const S* given = static_cast<const S*>(job.variance);
  Moments<double> m;
  Middles middles;
  Seen seen;
  int32_t in_count[kBlockColumns];
  alignas(64) double rest[2][kLine], score[kLine];
  for_spans(begin, end, in.queries, kLine, [&](const Span& span) {
    const Block<S> block = block_of<S>(in, span, scratch.bytes, in_count);
    find_moments(block, 0, in_count, m);
    keep_samples(span, in.queries, in_count);
    for (int side = 0; side < 2; ++side) {
      for (int64_t c = 0; c < span.width; ++c) rest[side][c] = 1.0 / (m.n[side][c] - 1.0);
    }
    if (job.median) find_middles(block, m, static_cast<S*>(scratch.sorted), middles);
    for (int64_t t = 0; t < in.models; ++t) {
      remove_target(block, t, m, rest, job.median ? &middles : nullptr, seen);
      for (int side = 0; given != nullptr && side < 2; ++side) {
        for (int64_t c = 0; c < span.width; ++c) seen.variance[side][c] = static_cast<double>(given[side]);
      }
      score_seen(block.score(t, 0), span.width, job.rule, seen, score);
      const uint8_t* member = in.member + t * in.samples + span.sample;
      finish(span, in.queries, score, scratch.sums[t], static_cast<S*>(job.out) + t * in.samples + span.sample,
             [&](int64_t n) {
               const int64_t others = in_count[n] - member[n];
               return enough(in.models - 1 - others, others, job.rule);
             });
    }
  });
}

}  // namespace
}  // namespace ff::FF_ISA
