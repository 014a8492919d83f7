// The loss -CE of error-maximising noise with its gradient, in one pass over the logits. Compiled once per instruction
// set.
//
// Sums run over 16 lanes, whatever the vector length, so that every instruction set adds in one order.
//
// The vector code writes a * b + c for one fused operation. Without the fusion it is slower.
// flags (avx2, avx512): -ffp-contract=fast
#include "common/exp_log.h"
#include "common/table.h"
#include "common/vectors.h"

namespace ff::FF_ISA {
namespace {

constexpr int kLanes = 16;
constexpr int kVectors = kLanes / W;
// Rows are worked on in blocks: what is done once a row, in double, is done for a block of them as vectors.
constexpr int64_t kBlockRows = 32, kBlockTerms = 4096;

FF_INLINE int64_t rounded_up(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

// ---- vectors of one row ---------------------------------------------------------------------------------------------
// Each kind of compute type: the logits of a row as terms, then the largest, then e^(z - largest) and their sum.

// `count` logits from `row` as compute type, then -inf up to whole lanes.
template <class S>
FF_INLINE void load_logits(const S* row, int64_t count, float* to) {
  int64_t k = 0;
  for (; k + W <= count; k += W) store_vec(to + k, load_as_float(row + k));
  if (k < count) {
    store_vec(to + k, load_few(row + k, count - k));
    k += W;
  }
  for (; k < rounded_up(count); k += W) store_vec(to + k, splat(-kInf));
}
FF_INLINE void load_logits(const double* row, int64_t count, double* to) {
  for (int64_t k = 0; k < count; ++k) to[k] = row[k];
  for (int64_t k = count; k < rounded_up(count); ++k) to[k] = -__builtin_inf();
}

// The comparison may pass over a NaN; the sum won't.
FF_INLINE float largest_of(const float* z, int64_t padded) {
  Vec largest[kVectors];
  for (int v = 0; v < kVectors; ++v) largest[v] = load_vec(z + v * W);
  for (int64_t k = kLanes; k < padded; k += kLanes) {
    for (int v = 0; v < kVectors; ++v) largest[v] = max_of(load_vec(z + k + v * W), largest[v]);
  }
  Vec top = largest[0];
  for (int v = 1; v < kVectors; ++v) top = max_of(largest[v], top);
  if constexpr (W > 8) top = max_of(exchange<8>(top), top);
  if constexpr (W > 4) top = max_of(exchange<4>(top), top);
  top = max_of(exchange<2>(top), top);
  top = max_of(exchange<1>(top), top);
  return top[0];
}
FF_INLINE double largest_of(const double* z, int64_t padded) {
  double largest = z[0];
  for (int64_t k = 1; k < padded; ++k) largest = z[k] > largest ? z[k] : largest;
  return largest;
}

// e^x of x <= 0, through two factors of 2 so that results down to the subnormals come out; NaN stays NaN. What would be
// less than the least of them is not computed: products that underflow take a hundred times as long, and the lanes that
// fill up a row are such.
FF_INLINE Vec exp_terms(Vec x) {
  constexpr float kInteger = 12582912.0f;  // added, it rounds to an integer
  const Mask zero = x < splat(-103.98f);
  x = select(zero, Vec{}, x);
  const Vec n = (x * 1.44269504f + kInteger) - kInteger;
  const Vec r = n * -1.42860677e-6f + (n * -0.693145752f + x);
  Vec p = r * 0.00138436534f + 0.00837415533f;
  p = p * r + 0.041668002f;
  p = p * r + 0.166664313f;
  p = p * r + 0.499999942f;
  p = p * r + 1.00000003f;
  const Vec half = n * 0.5f + kRounder, rest = n - (half - kRounder) + kRounder;
  return select(zero, Vec{}, (r * p + 1.0f) * power_of_two(half) * power_of_two(rest));
}

struct Others {
  double sum;       // without the largest logits, whose terms are 1: a confident row keeps the digits of 1 - p
  int64_t largest;  // how many there are
};

// The sum of 16 lanes in one order, in double.
FF_INLINE double sum_of(const Vec (&lanes)[kVectors]) {
  alignas(64) float single[kLanes];
  alignas(64) double pairs[kLanes / 2];
  for (int v = 0; v < kVectors; ++v) store_vec(single + v * W, lanes[v]);
#pragma omp simd
  for (int j = 0; j < kLanes / 2; ++j) {
    pairs[j] = static_cast<double>(single[j]) + static_cast<double>(single[j + kLanes / 2]);
  }
  return ((pairs[0] + pairs[4]) + (pairs[2] + pairs[6])) + ((pairs[1] + pairs[5]) + (pairs[3] + pairs[7]));
}

FF_INLINE Others exponentials(float* z, int64_t padded, float largest) {
  Vec sums[kVectors] = {};
  Mask equal = {};
  for (int64_t k = 0; k < padded; k += kLanes) {
    for (int v = 0; v < kVectors; ++v) {
      const Vec x = load_vec(z + k + v * W);
      const Mask top = x == splat(largest);
      const Vec term = exp_terms(x - largest);
      store_vec(z + k + v * W, term);
      sums[v] += select(top, Vec{}, term);
      equal -= top;
    }
  }
  alignas(64) int32_t counts[W];
  __builtin_memcpy(counts, &equal, sizeof counts);
  int64_t count = 0;
  for (int j = 0; j < W; ++j) count += counts[j];
  return {sum_of(sums), count};
}
FF_INLINE Others exponentials(double* z, int64_t padded, double largest) {
  double lanes[kLanes] = {};
  int64_t count = 0;
  for (int64_t k = 0; k < padded; ++k) {
    const bool top = z[k] == largest;
    z[k] = __builtin_exp(z[k] - largest);
    lanes[k % kLanes] += top ? 0.0 : z[k];
    count += top;
  }
  double sum = 0.0;
  for (int j = 0; j < kLanes; ++j) sum += lanes[j];
  return {sum, count};
}

// out = -terms * inverse
template <class S>
FF_INLINE void store_gradient(const float* terms, int64_t count, double inverse, S* out) {
  // The factor in two parts, so that a class with p near 1 is rounded once, as in torch.
  const float scale = static_cast<float>(inverse), rest = static_cast<float>(inverse - static_cast<double>(scale));
  if constexpr (__is_same(S, float)) {
    int64_t k = 0;
    const auto at = [&](int64_t i) __attribute__((always_inline)) {
      const Vec term = load_vec(terms + i);
      return -(term * scale + term * rest);
    };
    for (; k + W <= count; k += W) store_vec(out + k, at(k));
    if (k == count) return;
    alignas(64) float last[W];
    store_vec(last, at(k));
    __builtin_memcpy(out + k, last, static_cast<uint64_t>(count - k) * sizeof(float));
  } else {
#pragma omp simd
    for (int64_t k = 0; k < count; ++k) out[k] = narrow<S>(-(terms[k] * scale + terms[k] * rest));
  }
}
FF_INLINE void store_gradient(const double* terms, int64_t count, double inverse, double* out) {
  for (int64_t k = 0; k < count; ++k) out[k] = -terms[k] * inverse;
}

// ---- what is done once a row ----------------------------------------------------------------------------------------

template <class C>
struct Rows {
  int64_t label[kBlockRows];               // -1: out of range, which can only be if it was written meanwhile
  C largest[kBlockRows];                   // logit
  alignas(64) double below[kBlockRows];    // the label's logit - largest
  alignas(64) double others[kBlockRows];   // sum of e^(z - largest) but for one of the largest
  alignas(64) double inverse[kBlockRows];  // 1 / (batch * the whole sum)
  alignas(64) double loss[kBlockRows], own[kBlockRows];  // own: the label's gradient
};

// In double: the label's own entries, where float32 would lose digits to cancellation.
template <class C>
FF_INLINE void finish_rows(Rows<C>& rows, int64_t count, int64_t batch) {
  const double all = static_cast<double>(batch);
  const auto finish = [&](int64_t r, double exponential, double logarithm) __attribute__((always_inline)) {
    const double others = rows.others[r], total = 1.0 + others;
    const bool leads = rows.below[r] == 0.0;
    const double p = (leads ? 1.0 : exponential) / total;
    const double rest = leads & (others < 1.0) ? others / total : 1.0 - p;  // 1 - p, whichever form keeps digits
    rows.loss[r] = rows.below[r] - logarithm;
    rows.own[r] = rest / all;
    rows.inverse[r] = 1.0 / (total * all);
  };
  if constexpr (sizeof(C) == sizeof(double)) {
    for (int64_t r = 0; r < count; ++r) finish(r, __builtin_exp(rows.below[r]), __builtin_log1p(rows.others[r]));
  } else {
#pragma omp simd
    for (int64_t r = 0; r < count; ++r) finish(r, exp_of_negative(rows.below[r]), log_of_one_and(rows.others[r]));
  }
}

template <class S>
void error_max_loss(const void* logits_, const int64_t* labels, int64_t n, int64_t classes, int64_t batch, void* loss_,
                    void* dlogits_) {
  using C = Compute<S>;
  const S* logits = static_cast<const S*>(logits_);
  S* dlogits = static_cast<S*>(dlogits_);
  C* loss = static_cast<C*>(loss_);
  // Rows of up to kBlockTerms logits are kept as exponentials; longer ones are computed twice, piece by piece.
  const int64_t kept = rounded_up(classes) <= kBlockTerms ? rounded_up(classes) : 0;
  const int64_t fitting = kept > 0 ? kBlockTerms / kept : 1, most = fitting < kBlockRows ? fitting : kBlockRows;
  alignas(64) C terms[kBlockTerms];
  Rows<C> rows;
  // use(its place, its length, padded) for each piece of a long row, whose logits are in `terms`
  const auto pieces = [&](const S* row, const auto& use) __attribute__((always_inline)) {
    for (int64_t at = 0; at < classes; at += kBlockTerms) {
      const int64_t count = classes - at < kBlockTerms ? classes - at : kBlockTerms;
      load_logits(row + at, count, terms);
      use(at, count, rounded_up(count));
    }
  };
  for (int64_t first = 0; first < n; first += most) {
    const int64_t count = n - first < most ? n - first : most;
    for (int64_t r = 0; r < count; ++r) {
      const S* row = logits + (first + r) * classes;
      C* const own = terms + r * kept;
      C largest = static_cast<C>(-__builtin_inf());
      Others others = {0.0, 0};
      if (kept > 0) {
        load_logits(row, classes, own);
        largest = largest_of(own, kept);
        others = exponentials(own, kept, largest);
      } else {
        pieces(row, [&](int64_t, int64_t, int64_t padded) {
          const C here = largest_of(terms, padded);
          largest = here > largest ? here : largest;
        });
        pieces(row, [&](int64_t, int64_t, int64_t padded) {
          const Others here = exponentials(terms, padded, largest);
          others = {others.sum + here.sum, others.largest + here.largest};
        });
      }
      // Read once: a label that somebody else writes since it was checked is no place in memory.
      const int64_t label = __atomic_load_n(&labels[first + r], __ATOMIC_RELAXED);
      const bool known = static_cast<uint64_t>(label) < static_cast<uint64_t>(classes);
      rows.label[r] = known ? label : -1;
      rows.largest[r] = largest;
      rows.below[r] = known ? static_cast<double>(widen(row[label])) - static_cast<double>(largest) : __builtin_nan("");
      // A row whose largest logit is infinite has no softmax: NaN throughout, as in torch.
      const bool finite = largest - largest == C(0);
      rows.others[r] = finite ? others.sum + static_cast<double>(others.largest - 1) : __builtin_nan("");
    }
    finish_rows(rows, count, batch);
    for (int64_t r = 0; r < count; ++r) {
      S* const out = dlogits + (first + r) * classes;
      if (kept > 0) {
        store_gradient(terms + r * kept, classes, rows.inverse[r], out);
      } else {
        pieces(logits + (first + r) * classes, [&](int64_t at, int64_t length, int64_t padded) {
          exponentials(terms, padded, rows.largest[r]);
          store_gradient(terms, length, rows.inverse[r], out + at);
        });
      }
      if (rows.label[r] >= 0) out[rows.label[r]] = narrow<S>(static_cast<C>(rows.own[r]));
      loss[first + r] = static_cast<C>(rows.loss[r]);
    }
  }
}

}  // namespace

constinit const UpdateLossTable update_loss_table = {
    {error_max_loss<float>, error_max_loss<BFloat16>, error_max_loss<Float16>, error_max_loss<double>},
};

}  // namespace ff::FF_ISA
