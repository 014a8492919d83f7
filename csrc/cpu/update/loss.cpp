// The loss -CE of error-maximising noise with its gradient, in one pass over the logits. Compiled once per instruction
// set.
//
// The vector code writes a * b + c for one fused operation. Without the fusion it is slower.
// flags (avx2, avx512): -ffp-contract=fast
#include "common/exp_log.h"
#include "common/table.h"
#include "cpu/update/terms.h"

namespace ff::FF_ISA {
namespace {

// Rows are worked on in blocks: what is done once a row, in double, is done for a block of them as vectors.
constexpr int64_t kBlockRows = 32, kBlockTerms = 4096;

// ---- vectors of one row ---------------------------------------------------------------------------------------------

struct Others {
  double sum;       // without the largest logits, whose terms are 1: a confident row keeps the digits of 1 - p
  int64_t largest;  // how many there are
};

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
