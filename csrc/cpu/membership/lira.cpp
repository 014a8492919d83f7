// LiRA statistics and ratios over shadow models (lira_stats, lira_ratio, lira_loo, lira_update_). Compiled once per
// instruction set.
//
// Scores are read twice, in strips of columns that stay in the nearest cache. Leave-one-out and running moments are
// computed in double.
//
// The vector code writes a * b + c for one fused operation. Without the fusion it is less accurate.
// flags (avx2, avx512): -ffp-contract=fast
#include "cpu/membership/lira.h"

#include "common/table.h"
#include "cpu/membership/lira_loo.h"
#include "cpu/membership/lira_moments.h"
#include "cpu/membership/lira_tiles.h"

namespace ff::FF_ISA {
namespace {

// ---- lira_stats -----------------------------------------------------------------------------------------------------

// In place of the means of a strip's side; NaN (no model, or a NaN among the scores) stays.
template <class S>
FF_INLINE void find_medians(const Block<S>& block, int64_t strip, int side, const Moments<S>& m, S* sorted, S* center) {
  constexpr int W = Lanes<S>::W;
  const int64_t width = smaller(kLine, block.width - strip);
  for (int64_t c = 0; c < width; c += W) {
    sort_side(block, strip + c, side, sorted);
    for (int64_t i = 0; i < smaller(W, width - c); ++i) {
      const int64_t n = static_cast<int64_t>(m.n[side][c + i]);
      if (center[c + i] != center[c + i]) continue;
      center[c + i] = (sorted[(n - 1) / 2 * W + i] + sorted[n / 2 * W + i]) / 2;
    }
  }
}

template <class S>
void stats(const LiraScores& in, bool median, const LiraStats& out, int64_t begin, int64_t end, void* memory) {
  const Scratch scratch = Scratch::at(memory, in.models);
  const int64_t columns = in.samples * in.queries;
  S* sorted = static_cast<S*>(scratch.sorted);
  Moments<S> m;
  int32_t in_count[kBlockColumns];
  for_spans(begin, end, in.queries, block_columns(in.models), [&](const Span& span) {
    const Block<S> block = block_of<S>(in, span, scratch.bytes, in_count);
    for (int64_t strip = 0; strip < span.width; strip += kLine) {
      find_moments(block, strip, in_count + strip, m);
      const int64_t width = smaller(kLine, span.width - strip);
      for (int side = 0; side < 2; ++side) {
        const int64_t at = side * columns + span.sample * in.queries + span.query + strip;
        S* center = static_cast<S*>(out.center) + at;
        S* variance = static_cast<S*>(out.variance) + at;
#pragma omp simd
        for (int64_t c = 0; c < width; ++c) {
          center[c] = m.mean[side][c];
          variance[c] = m.m2[side][c] * m.share[side][c];
        }
        if (median) find_medians(block, strip, side, m, sorted, center);
      }
    }
    keep_samples(span, in.queries, in_count);
    int64_t *count_out = out.count + span.sample, *count_in = count_out + in.samples;
#pragma omp simd
    for (int64_t n = 0; n < span.samples; ++n) {
      count_out[n] = in.models - in_count[n];
      count_in[n] = in_count[n];
    }
  });
}

// ---- lira_ratio -----------------------------------------------------------------------------------------------------

// Of a tile's columns: score = square_out (t - out)^2 - square_in (t - in)^2 + constant, or square_out (t - out).
template <class C>
struct Terms {
  alignas(64) C out[kTile], in[kTile], square_out[kTile], square_in[kTile], constant[kTile];
};

// Whether variances from `low` to `high` can be worked with in type C. Float scores are computed in float but for those
// that would leave its range on the way, here or with a result that isn't finite; they are computed again in double.
template <class C>
FF_INLINE bool in_range(C low, C high) {
  if constexpr (sizeof(C) == 8) return true;
  const bool above = low >= static_cast<C>(0x1p-60), below = high <= static_cast<C>(0x1p60);
  return above & below;
}

template <bool kOne, class S>
FF_INLINE void find_terms(const LiraRatio& job, int64_t at, int64_t width, Terms<S>& terms) {
  const int64_t columns = job.samples * job.queries;
  const S* center = static_cast<const S*>(job.center) + at;
  const S* of_out = static_cast<const S*>(job.variance) + (kOne ? 0 : at);
  const S* of_in = of_out + (kOne ? 1 : columns);
  const S floor = static_cast<S>(job.rule.var_floor), nan = static_cast<S>(__builtin_nan(""));
  const auto floored = [&](S x) { return at_least(x, floor); };
  if (job.rule.mode == kOnline) {
#pragma omp simd
    for (int64_t c = 0; c < width; ++c) {
      const S out = floored(of_out[kOne ? 0 : c]), in = floored(of_in[kOne ? 0 : c]);
      const S low = out < in ? out : in, high = out < in ? in : out;
      terms.out[c] = center[c];
      terms.in[c] = center[columns + c];
      terms.square_out[c] = S(0.5) / out;
      terms.square_in[c] = S(0.5) / in;
      const S constant = S(0.5) * log_of(out / in);
      terms.constant[c] = in_range(low, high) ? constant : nan;
    }
  } else {
    const bool density = job.rule.mode == kDensity;
#pragma omp simd
    for (int64_t c = 0; c < width; ++c) {
      const S out = floored(of_out[kOne ? 0 : c]);
      terms.out[c] = center[c];
      terms.square_out[c] = density ? S(0.5) / out : S(1) / root_of(out);
      const S constant = density ? S(0.5) * log_of(static_cast<S>(kTwoPi) * out) : S(0);
      terms.constant[c] = in_range(out, out) ? constant : nan;
    }
  }
}

template <class S>
FF_INLINE void find_scores(const S* target, int64_t width, int mode, const Terms<S>& terms, S* score) {
  if (mode == kOnline) {
#pragma omp simd
    for (int64_t c = 0; c < width; ++c) {
      const S a = target[c] - terms.out[c], b = target[c] - terms.in[c];
      score[c] = a * (a * terms.square_out[c]) - b * (b * terms.square_in[c]) + terms.constant[c];
    }
  } else if (mode == kOneSided) {
#pragma omp simd
    for (int64_t c = 0; c < width; ++c) {
      score[c] = (target[c] - terms.out[c]) * terms.square_out[c] + terms.constant[c];
    }
  } else {
#pragma omp simd
    for (int64_t c = 0; c < width; ++c) {
      const S a = target[c] - terms.out[c];
      score[c] = a * (a * terms.square_out[c]) + terms.constant[c];
    }
  }
}

__attribute__((noinline, cold)) void score_in_double(const LiraRatio& job, int64_t at, int64_t column, float* score) {
  const int64_t columns = job.samples * job.queries;
  const auto of = [](const void* p, int64_t i) { return static_cast<double>(static_cast<const float*>(p)[i]); };
  const double t = of(job.target, at), floor = job.rule.var_floor, a = t - of(job.center, column);
  const double out = at_least(of(job.variance, job.one_variance ? 0 : column), floor);
  if (job.rule.mode == kOneSided) {
    *score = static_cast<float>(a / __builtin_sqrt(out));
  } else if (job.rule.mode == kDensity) {
    *score = static_cast<float>(0.5 * (a * a / out + log_of(kTwoPi * out)));
  } else {
    const double b = t - of(job.center, columns + column);
    const double in = at_least(of(job.variance, job.one_variance ? 1 : columns + column), floor);
    *score = static_cast<float>(0.5 * (a * a / out - b * b / in + log_of(out / in)));
  }
}

template <class S>
void ratio(const LiraRatio& job, int64_t begin, int64_t end) {
  const int64_t columns = job.samples * job.queries;
  const auto ok = [&](int64_t n) { return enough(job.count[n], job.count[job.samples + n], job.rule); };
  Terms<S> terms;
  alignas(64) S score[kTile];
  const auto targets = [&](const Span& span, int64_t from, int64_t to, double& sum) __attribute__((always_inline)) {
    const int64_t at = span.sample * job.queries + span.query;
    if (job.one_variance) {
      find_terms<true>(job, at, span.width, terms);
    } else {
      find_terms<false>(job, at, span.width, terms);
    }
    for (int64_t t = from; t < to; ++t) {
      find_scores(static_cast<const S*>(job.target) + t * columns + at, span.width, job.rule.mode, terms, score);
      if constexpr (sizeof(S) == 4) {
        int32_t beyond = 0;
#pragma omp simd reduction(| : beyond)
        for (int64_t c = 0; c < span.width; ++c) beyond |= score[c] - score[c] == 0.0f ? 0 : 1;
        for (int64_t c = 0; beyond != 0 && c < span.width; ++c) {
          if (score[c] - score[c] != 0.0f) score_in_double(job, t * columns + at + c, at + c, score + c);
        }
      }
      finish(span, job.queries, score, sum, static_cast<S*>(job.out) + t * job.samples + span.sample,
             [&](int64_t n) { return ok(span.sample + n); });
    }
  };
  double sum = 0.0;
  if (job.queries <= kTile) {
    for_spans(begin, end, job.queries, kTile, [&](const Span& span) { targets(span, 0, job.targets, sum); });
    return;
  }
  for (int64_t t = 0; t < job.targets; ++t) {
    for_spans(begin, end, job.queries, kTile, [&](const Span& span) { targets(span, t, t + 1, sum); });
  }
}

// ---- lira_update_ ---------------------------------------------------------------------------------------------------

template <class S>
void update(const LiraUpdate& job, int64_t begin, int64_t end) {
  const int64_t columns = job.samples * job.queries;
  alignas(64) double n[2][kTile], mean[2][kTile], m2[2][kTile], group[kTile];
  for_spans(begin, end, job.queries, kTile, [&](const Span& span) {
    const int64_t at = span.sample * job.queries + span.query;
    for (int side = 0; side < 2; ++side) {
      repeat(job.count + side * job.samples + span.sample, span, job.queries, n[side]);
      for (int64_t c = 0; c < span.width; ++c) {
        mean[side][c] = job.mean[side * columns + at + c];
        m2[side][c] = job.m2[side * columns + at + c];
      }
    }
    for (int64_t b = 0; b < job.models; ++b) {
      const S* x = static_cast<const S*>(job.scores) + b * columns + at;
      repeat(job.member + b * job.samples + span.sample, span, job.queries, group);
#pragma omp simd
      for (int64_t c = 0; c < span.width; ++c) {
        const bool in = group[c] == 1.0, out = group[c] == 0.0;
        const double more = (in ? n[1][c] : n[0][c]) + 1.0, before = in ? mean[1][c] : mean[0][c];
        const double value = static_cast<double>(x[c]), d = value - before, moved = before + d / more;
        const double square = (in ? m2[1][c] : m2[0][c]) + d * (value - moved);
        n[0][c] = out ? more : n[0][c];
        n[1][c] = in ? more : n[1][c];
        mean[0][c] = out ? moved : mean[0][c];
        mean[1][c] = in ? moved : mean[1][c];
        m2[0][c] = out ? square : m2[0][c];
        m2[1][c] = in ? square : m2[1][c];
      }
    }
    for (int side = 0; side < 2; ++side) {
      for (int64_t c = 0; c < span.width; ++c) {
        job.mean[side * columns + at + c] = mean[side][c];
        job.m2[side * columns + at + c] = m2[side][c];
      }
    }
    // a long sample's counts are still needed by its later spans
    if (span.query + span.width < span.samples * job.queries) return;
    for (int64_t b = 0; b < job.models; ++b) {
      const int8_t* member = job.member + b * job.samples + span.sample;
      for (int64_t i = 0; i < span.samples; ++i) {
        job.count[span.sample + i] += member[i] == 0;
        job.count[job.samples + span.sample + i] += member[i] == 1;
      }
    }
  });
}

}  // namespace

constinit const MembershipLiraTable membership_lira_table = {scratch_bytes,
                                                             {stats<float>, stats<double>},
                                                             {ratio<float>, ratio<double>},
                                                             {loo<float>, loo<double>},
                                                             {update<float>, update<double>}};

}  // namespace ff::FF_ISA
