// LiRA statistics and ratios over shadow models (lira_stats, lira_ratio, lira_loo, lira_update_). Compiled once per
// instruction set.
//
// Scores are read twice, in strips of columns that stay in the nearest cache. Leave-one-out and running moments are
// computed in double.
//
// The vector code writes a * b + c for one fused operation. Without the fusion it is less accurate.
// flags (avx2, avx512): -ffp-contract=fast
#include "cpu/membership/lira.h"

#include "cpu/membership/lira_moments.h"
#include "cpu/membership/lira_tiles.h"
#include "common/table.h"

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

// ---- lira_loo -------------------------------------------------------------------------------------------------------

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
