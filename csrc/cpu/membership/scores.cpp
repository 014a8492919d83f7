// Per-sample membership scores, compiled once per instruction set.
//
// For a row of logits x with temperature T let a be its arg-max, r its second largest value, g = (x_a - r) / T the gap,
// e_k = exp((x_k - r) / T), and
//     mass = sum_{k != a} e_k  (at least 1),   moment = sum_{k != a} e_k (x_k - r) / T,
//     tail = mass exp(-g) = (1 - p_a) / p_a,   S = 1 + tail = 1 / p_a.
// Everything follows from g, mass, moment and the label's own gap, and nothing is lost to rounding or underflow: the
// tail of a certain row is a normal number times a power of two, log(1 - p_a) = log(mass) - g - log(S) needs no
// exponential.
//
// The arg-max needs no index: with (x - r) cut at 0 its term is exactly exp(0) = 1, and sums that start at -1 drop it.
//
// Few classes: one row per lane (a block of rows is transposed in registers), so no horizontal step and no tail in the
// classes. Many classes: lanes along the row, a group of rows at a time so that their exponentials stay in the L1
// cache.
//
// The vector code writes a * b + c for one fused operation. Without the fusion it is half as fast, and less accurate.
// flags (avx2, avx512): -ffp-contract=fast
#include "cpu/membership/scores.h"

#include "cpu/membership/scores_double.h"
#include "cpu/membership/scores_vector.h"

namespace ff::FF_ISA {
namespace {

// Above this many classes the transposed block leaves the L1 cache, and whole rows are the better vectors.
constexpr int64_t kTransposedClasses = 256;
constexpr int kBlocks = 2;              // of W rows each at a time, where rows are transposed
constexpr int64_t kGroupFloats = 8192;  // exponentials of one group of long rows
constexpr int kIntoL2 = 2;              // of a prefetch
// Classes summed before the partial sum joins the total; that keeps the rounding of long sums down.
constexpr int64_t kColumnSumBlock = 16, kSumBlock = 64 * W;

constexpr int64_t rounded_up(int64_t n) { return (n + W - 1) / W * W; }
// Temperatures beyond these could leave float32's range in an intermediate product; such calls run in float64.
constexpr double kLowTemperature = 1e-6, kHighTemperature = 1e6;

struct Top {  // of each row, or so far in each lane: the largest and the second largest logit
  Vec first, second;
  __attribute__((always_inline)) void add(Vec x) {
    second = max_of(second, min_of(x, first));
    first = max_of(x, first);
  }
  __attribute__((always_inline)) void merge(const Top& other) {
    second = max_of(max_of(second, other.second), min_of(first, other.first));
    first = max_of(first, other.first);
  }
};

struct Rows {  // one row per lane; logits before the temperature
  Vec first, second, at_label;
  // r of the formulas. Where every class but one is impossible there is none, and the arg-max itself serves: its
  // distance 0 makes mass 0.
  __attribute__((always_inline)) Vec reference() const { return select(second == splat(-kInf), first, second); }
};

// What is known once mass and moment are: the factor that turns e_k into p_k, and the parts of the scores.
struct Middle {
  Pair gap;
  Vec tail, inverse_total, log_total, log_mass, entropy, to_probability;
  Vec skipped;  // the surprise of the arg-max's stand-in exp(0), which the sum over all classes takes along
};

FF_INLINE Middle middle(const Rows& rows, Vec mass, Vec moment, double inverse_temperature) {
  Middle m;
  const Wide gap = wide_difference(rows.first, rows.reference(), inverse_temperature);
  const Scaled decay = exp_of_minus(gap);
  m.gap = to_pair(gap);
  m.tail = decay.times(mass);
  const Vec total = 1.0f + m.tail;
  m.inverse_total = 1.0f / total;
  m.log_total = log1p_of(m.tail);
  m.log_mass = log_of(mass);
  // the gap's cut keeps inf * 0 away; exp(-gap) has long made its product 0
  const Vec spread = min_of(m.gap.high, splat(1e30f)) * mass - moment * static_cast<float>(inverse_temperature);
  m.entropy = m.log_total + decay.times(spread) * m.inverse_total;
  m.to_probability = decay.times(m.inverse_total);
  m.skipped = add_surprise(m.to_probability, Vec{});
  return m;
}

template <class Out>
FF_INLINE void store_rows(Out* out, Vec v, int64_t count) {
  if (count == W) {
    store_vec(out, v);
  } else {
    for (int64_t i = 0; i < count; ++i) out[i] = v[i];
  }
}

// Of equal largest logits the first index is the prediction.
template <class S>
__attribute__((noinline, cold)) bool is_first(const S* row, int64_t label) {
  for (int64_t k = 0; k < label; ++k) {
    if (widen(row[k]) == widen(row[label])) return false;
  }
  return true;
}

// surprise: sum over all classes, the arg-max's stand-in included, of -p log(1 - p)
template <class S>
FF_INLINE void finish(const ScoreJob& job, int64_t row, int64_t count, const Rows& rows, Vec mass, const Middle& m,
                      Vec surprise, double inverse_temperature) {
  const Vec zero = {}, infinity = splat(kInf);
  const Mask top = rows.at_label == rows.first;
  const Mask lone = rows.second == splat(-kInf);
  const Mask undefined = ~(mass == mass) | ~(rows.first < infinity) | ~(rows.first > -infinity);

  const Wide label_gap = wide_difference(rows.first, rows.at_label, inverse_temperature);
  const Pair below = to_pair(label_gap);
  const Vec at_label = exp_of_minus(label_gap).times(splat(1.0f));  // p_y / p_a
  const Vec confidence = select(top, m.inverse_total, at_label * m.inverse_total);
  const Vec loss = below.high + (below.low + m.log_total);
  // (sum_{k != y} p_k) / p_a - 1 of a label that is not the arg-max
  const Vec beside = max_of(m.tail - at_label, zero);
  Vec margin = select(top, m.gap.high, -below.high);
  Vec logit_confidence =
      select(top, m.gap.high + (m.gap.low - m.log_mass), -below.high - (below.low + log1p_of(beside)));
  margin = select(top & lone, infinity, margin);
  logit_confidence = select(top & lone, infinity, logit_confidence);

  const Vec others = select(top, m.tail, 1.0f + beside) * m.inverse_total;  // 1 - p_y
  // a label that is not the arg-max leaves the sum, the arg-max with its own log(1 - p_a) joins it
  const Vec of_top = (m.gap.high + m.log_total - m.log_mass) * m.inverse_total;
  const Vec joined = select(top | lone, zero, of_top - add_surprise(confidence, zero));
  const Vec rest = select(lone, zero, surprise - m.skipped);
  const Vec modified_entropy = others * loss + rest + joined;

  const Vec nan = splat(__builtin_nanf(""));
  const Vec scores[kScores] = {loss, confidence, m.entropy, modified_entropy, margin, logit_confidence};
  for (int i = 0; i < kScores; ++i) {
    store_rows(static_cast<float*>(job.scores[i]) + row, select(undefined, nan, scores[i]), count);
  }

  const Mask correct = top & ~undefined;
  const Bytes flags = __builtin_convertvector(correct & 1, Bytes);
  __builtin_memcpy(job.correct + row, &flags, count);
  const Mask tied = correct & (rows.first == rows.second);
  if (__builtin_expect(any(tied), 0)) {
    const S* logits = static_cast<const S*>(job.logits);
    for (int64_t i = 0; i < count; ++i) {
      if (tied[i]) job.correct[row + i] = is_first(logits + (row + i) * job.classes, job.labels[row + i]);
    }
  }
}

// The label's logit of `count` rows; further lanes repeat the last row.
template <class S>
FF_INLINE Vec gather_labels(const ScoreJob& job, int64_t row, int64_t count) {
  const S* logits = static_cast<const S*>(job.logits);
  return vec_of([&](int lane) __attribute__((always_inline)) {
    const int64_t at = row + (lane < count ? lane : count - 1);
    return widen(logits[at * job.classes + job.labels[at]]);
  });
}

// ---- few classes: one row per lane ----------------------------------------------------------------------------------

// A block of rows between the steps of score_transposed.
struct Block {
  int64_t row, count;
  float* column;  // its exponentials, [classes, W]
  Rows rows;
  Vec mass, moment, surprise;
  Middle middle;
};

template <class S>
FF_INLINE void sum_columns(const ScoreJob& job, Block& b, const Exp& exp) {
  const int64_t classes = job.classes, row = b.row, count = b.count;
  float* column = b.column;
  const S* logits = static_cast<const S*>(job.logits);
  // A block of W columns may run past the end of its row into the next ones, but not past the last.
  const bool inside = count == W && (row + W - 1) * classes + rounded_up(classes) <= job.rows * classes;
  for (int64_t c = 0; c < classes; c += W) {
    Vec block[W];
    if (__builtin_expect(inside, 1)) {
      for (int i = 0; i < W; ++i) block[i] = load_as_float(logits + (row + i) * classes + c);
    } else {
      const int64_t width = classes - c < W ? classes - c : W;
      for (int64_t i = 0; i < W; ++i) {
        const S* p = logits + (row + (i < count ? i : count - 1)) * classes + c;
        block[i] = width == W ? load_as_float(p) : load_few(p, width);
      }
    }
    transpose(block);
    for (int i = 0; i < W; ++i) store_vec(column + (c + i) * W, block[i]);
  }

  Top top = {splat(-kInf), splat(-kInf)};
  for (int64_t c = 0; c < classes; ++c) top.add(load_vec(column + c * W));
  b.rows = {top.first, top.second, gather_labels<S>(job, row, count)};

  // The memory would be idle until the next rows' turn comes: they are fetched meanwhile.
  const S* next = logits + (row + kBlocks * W) * classes;
  const Vec reference = b.rows.reference(), low = splat(exp.low), zero = {};
  Vec mass = {}, moment = {};
  for (int64_t block = 0; block < classes; block += kColumnSumBlock) {
    const int64_t end = block + kColumnSumBlock < classes ? block + kColumnSumBlock : classes;
    Vec block_mass = splat(block == 0 ? -1.0f : 0.0f), block_moment = {};
    for (int64_t c = block; c < end; ++c) {
      __builtin_prefetch(next + c * W);
      const Vec x = clamp_keep_nan(load_vec(column + c * W) - reference, low, zero);
      const Vec e = exp(x);
      block_mass += e;
      block_moment += e * x;
      store_vec(column + c * W, e);
    }
    mass += block_mass;
    moment += block_moment;
  }
  b.mass = mass;
  b.moment = moment;
}

FF_INLINE void sum_surprise(int64_t classes, Block& b) {
  b.surprise = Vec{};
  for (int64_t block = 0; block < classes; block += kColumnSumBlock) {
    const int64_t end = block + kColumnSumBlock < classes ? block + kColumnSumBlock : classes;
    Vec sum = {};
    for (int64_t c = block; c < end; ++c) {
      sum = add_surprise(load_vec(b.column + c * W) * b.middle.to_probability, sum);
    }
    b.surprise += sum;
  }
}

// Rows [row, end), at most kBlocks * W. Step by step for all blocks: what lies between the sums is one long chain of
// operations that wait for each other, and the chains of several blocks overlap.
template <class S>
FF_INLINE void score_transposed(const ScoreJob& job, int64_t row, int64_t end, const Exp& exp, double inverse_t,
                                float* columns) {
  Block blocks[kBlocks];
  int used = 0;
  for (; row < end; row += W, ++used) {
    Block& b = blocks[used];
    b.row = row;
    b.count = end - row < W ? end - row : W;
    b.column = columns + used * W * rounded_up(job.classes);
    sum_columns<S>(job, b, exp);
  }
  for (int i = 0; i < used; ++i) blocks[i].middle = middle(blocks[i].rows, blocks[i].mass, blocks[i].moment, inverse_t);
  for (int i = 0; i < used; ++i) sum_surprise(job.classes, blocks[i]);
  for (int i = 0; i < used; ++i) {
    const Block& b = blocks[i];
    finish<S>(job, b.row, b.count, b.rows, b.mass, b.middle, b.surprise, inverse_t);
  }
}

// ---- many classes: lanes along the row ------------------------------------------------------------------------------

// The two largest of a row. Leaves in `values` the float32 logits of 16-bit rows, and of every row its last, padded
// block.
template <class S>
FF_INLINE Top top_of_row(const S* row, int64_t classes, float* values) {
  Top top[2] = {{splat(-kInf), splat(-kInf)}, {splat(-kInf), splat(-kInf)}};
  const auto take = [&](int64_t c, Top& into) __attribute__((always_inline)) {
    const Vec x = load_as_float(row + c);
    if constexpr (!__is_same(S, float)) store_vec(values + c, x);
    into.add(x);
  };
  int64_t c = 0;
  for (; c + 2 * W <= classes; c += 2 * W) {
    take(c, top[0]);
    take(c + W, top[1]);
  }
  if (c + W <= classes) {
    take(c, top[0]);
    c += W;
  }
  if (c < classes) {
    const Vec x = load_few(row + c, classes - c);
    store_vec(values + c, x);
    top[0].add(x);
  }
  top[0].merge(top[1]);
  if constexpr (W > 8) top[0].merge({exchange<8>(top[0].first), exchange<8>(top[0].second)});
  if constexpr (W > 4) top[0].merge({exchange<4>(top[0].first), exchange<4>(top[0].second)});
  top[0].merge({exchange<2>(top[0].first), exchange<2>(top[0].second)});
  top[0].merge({exchange<1>(top[0].first), exchange<1>(top[0].second)});
  return top[0];
}

FF_INLINE int64_t group_rows(int64_t classes) {
  const int64_t rows = kGroupFloats / classes;
  return rows < 1 ? 1 : rows > W ? W : rows;
}

template <class S>
FF_INLINE void score_group(const ScoreJob& job, int64_t row, int64_t count, const Exp& exp, double inverse_t,
                           float* values) {
  const int64_t classes = job.classes, stride = rounded_up(classes);
  const S* logits = static_cast<const S*>(job.logits) + row * classes;
  // Lanes without a row keep harmless numbers.
  Rows rows = {splat(1.0f), Vec{}, gather_labels<S>(job, row, count)};
  for (int64_t i = 0; i < count; ++i) {
    const Top top = top_of_row<S>(logits + i * classes, classes, values + i * stride);
    rows.first[i] = top.first[0];
    rows.second[i] = top.second[0];
  }

  const Vec references = rows.reference(), low = splat(exp.low), zero = {};
  Vec mass = splat(1.0f), moment = {};
  for (int64_t i = 0; i < count; ++i) {
    float* e_row = values + i * stride;
    const Vec reference = splat(references[i]);
    float row_mass = -1.0f, row_moment = 0.0f;
    for (int64_t block = 0; block < stride; block += kSumBlock) {
      const int64_t end = block + kSumBlock < stride ? block + kSumBlock : stride;
      Vec block_mass = {}, block_moment = {};
      const auto take = [&](const float* from, int64_t c) __attribute__((always_inline)) {
        const Vec x = clamp_keep_nan(load_vec(from + c) - reference, low, zero);
        const Vec e = exp(x);
        block_mass += e;
        block_moment += e * x;
        store_vec(e_row + c, e);
      };
      int64_t c = block;
      if constexpr (__is_same(S, float)) {
        for (; c + W <= (end < classes ? end : classes); c += W) take(logits + i * classes, c);
      }
      for (; c < end; c += W) take(e_row, c);
      row_mass += lane_sum(block_mass);
      row_moment += lane_sum(block_moment);
    }
    mass[i] = row_mass;
    moment[i] = row_moment;
  }

  const Middle m = middle(rows, mass, moment, inverse_t);
  Vec surprise = {};
  for (int64_t i = 0; i < count; ++i) {
    const float* e_row = values + i * stride;
    const S* next = logits + (count + i) * classes;  // of the rows whose turn comes after these
    const Vec to_probability = splat(m.to_probability[i]);
    float row_surprise = 0.0f;
    for (int64_t block = 0; block < stride; block += kSumBlock) {
      const int64_t end = block + kSumBlock < stride ? block + kSumBlock : stride;
      Vec sum[2] = {};
      int64_t c = block;
      for (; c + 2 * W <= end; c += 2 * W) {
        __builtin_prefetch(next + c, 0, kIntoL2);
        __builtin_prefetch(next + c + W, 0, kIntoL2);
        sum[0] = add_surprise(load_vec(e_row + c) * to_probability, sum[0]);
        sum[1] = add_surprise(load_vec(e_row + c + W) * to_probability, sum[1]);
      }
      if (c < end) sum[0] = add_surprise(load_vec(e_row + c) * to_probability, sum[0]);
      row_surprise += lane_sum(sum[0] + sum[1]);
    }
    surprise[i] = row_surprise;
  }
  finish<S>(job, row, count, rows, mass, m, surprise, inverse_t);
}

// ---- all of it ------------------------------------------------------------------------------------------------------

template <class S>
void score_rows(const ScoreJob& job, int64_t begin, int64_t end, void* scratch) {
  const bool extreme = !(job.temperature >= kLowTemperature && job.temperature <= kHighTemperature);
  if (sizeof(S) == sizeof(double) || extreme) {
    for (int64_t row = begin; row < end; ++row) score_row_in_double<S>(job, row, static_cast<double*>(scratch));
    return;
  }
  if constexpr (sizeof(S) != sizeof(double)) {
    const Exp exp(job.temperature);
    const double inverse_t = 1.0 / job.temperature;
    float* values = static_cast<float*>(scratch);
    if (job.classes <= kTransposedClasses) {
      for (int64_t row = begin; row < end; row += kBlocks * W) {
        score_transposed<S>(job, row, end - row < kBlocks * W ? end : row + kBlocks * W, exp, inverse_t, values);
      }
    } else {
      const int64_t step = group_rows(job.classes);
      for (int64_t row = begin; row < end; row += step) {
        score_group<S>(job, row, end - row < step ? end - row : step, exp, inverse_t, values);
      }
    }
  }
}

int64_t scratch_bytes(int64_t classes) {
  const int64_t rows = classes <= kTransposedClasses ? kBlocks * W : group_rows(classes);
  const int64_t vectors = rows * rounded_up(classes) * static_cast<int64_t>(sizeof(float));
  const int64_t doubles = classes * static_cast<int64_t>(sizeof(double));
  return vectors > doubles ? vectors : doubles;
}

}  // namespace

extern const MembershipScoresTable membership_scores_table;
const MembershipScoresTable membership_scores_table = {
    {score_rows<float>, score_rows<BFloat16>, score_rows<Float16>, score_rows<double>}, scratch_bytes};

}  // namespace ff::FF_ISA
