// The Kullback-Leibler divergence of a student's softmax from a teacher's, at a temperature, with its gradient, in one
// pass over both. Compiled once per instruction set.
//
// The vector code writes a * b + c for one fused operation. Without the fusion it is slower.
// flags (avx2, avx512): -ffp-contract=fast
#include "common/exp_log.h"
#include "common/table.h"
#include "cpu/update/terms.h"

namespace ff::FF_ISA {
namespace {

// Rows are worked on in blocks: what is done once a row, in double, is done for a block of them as vectors. Two sets of
// so many terms fit a level 1 cache.
constexpr int64_t kBlockRows = 32, kBlockTerms = 2048;

// x / temperature of float32: by the reciprocal in two parts, which adds no rounding that a division would not. An
// infinite x stays infinite: times a second part of the other sign it would be NaN.
struct Scale {
  float high, low;

  explicit Scale(double temperature)
      : high(static_cast<float>(1.0 / temperature)),
        low(static_cast<float>(1.0 / temperature - static_cast<double>(high))) {}
  __attribute__((always_inline)) Vec operator()(Vec x) const {
    const Vec product = x * high;
    return select(product < splat(-3.4e38f), product, x * high + x * low);
  }
};

// One distribution's e^((x - largest) / T), but for the terms of the largest, which are 1: their number. Without them a
// confident row keeps the digits of 1 - p.
struct Sums {
  double student = 0.0, teacher = 0.0;
  double weighted = 0.0;  // of teacher's terms times the difference of the exponents
  int64_t student_largest = 0, teacher_largest = 0;
};

FF_INLINE int64_t lanes_of(const Mask& counted) {
  alignas(64) int32_t counts[W];
  __builtin_memcpy(counts, &counted, sizeof counts);
  int64_t count = 0;
  for (int j = 0; j < W; ++j) count += counts[j];
  return count;
}

// Logits become terms. A class that the teacher rules out adds nothing, whatever the student makes of it.
FF_INLINE void add_terms(float* z, float* t, int64_t padded, float largest_z, float largest_t, double temperature,
                         Sums& sums) {
  const Scale scale(temperature);
  Vec student[kVectors] = {}, teacher[kVectors] = {}, weighted[kVectors] = {};
  Mask equal_z = {}, equal_t = {};
  for (int64_t k = 0; k < padded; k += kLanes) {
    for (int v = 0; v < kVectors; ++v) {
      const Vec at_z = load_vec(z + k + v * W), at_t = load_vec(t + k + v * W);
      const Mask top_z = at_z == splat(largest_z), top_t = at_t == splat(largest_t);
      const Vec x = scale(at_z - largest_z), y = scale(at_t - largest_t);
      const Vec p = exp_terms(x), q = exp_terms(y);
      store_vec(z + k + v * W, p);
      store_vec(t + k + v * W, q);
      student[v] += select(top_z, Vec{}, p);
      teacher[v] += select(top_t, Vec{}, q);
      weighted[v] += select(q == Vec{}, Vec{}, q * (y - x));
      equal_z -= top_z;
      equal_t -= top_t;
    }
  }
  sums.student += sum_of(student);
  sums.teacher += sum_of(teacher);
  sums.weighted += sum_of(weighted);
  sums.student_largest += lanes_of(equal_z);
  sums.teacher_largest += lanes_of(equal_t);
}
FF_INLINE void add_terms(double* z, double* t, int64_t padded, double largest_z, double largest_t, double temperature,
                         Sums& sums) {
  double student[kLanes] = {}, teacher[kLanes] = {}, weighted[kLanes] = {};
  for (int64_t k = 0; k < padded; ++k) {
    const bool top_z = z[k] == largest_z, top_t = t[k] == largest_t;
    const double x = (z[k] - largest_z) / temperature, y = (t[k] - largest_t) / temperature;
    const double p = __builtin_exp(x), q = __builtin_exp(y);
    z[k] = p;
    t[k] = q;
    student[k % kLanes] += top_z ? 0.0 : p;
    teacher[k % kLanes] += top_t ? 0.0 : q;
    weighted[k % kLanes] += q == 0.0 ? 0.0 : q * (y - x);
    sums.student_largest += top_z;
    sums.teacher_largest += top_t;
  }
  for (int j = 0; j < kLanes; ++j) {
    sums.student += student[j];
    sums.teacher += teacher[j];
    sums.weighted += weighted[j];
  }
}

// The factor of a row's terms, in two parts, so that a class with p near 1 is rounded once, as in torch.
struct Factor {
  float high, low;
  explicit Factor(double value)
      : high(static_cast<float>(value)), low(static_cast<float>(value - static_cast<double>(high))) {}
};

// out = p * student - q * teacher; each product is rounded before the difference, so that equal rows give 0
template <class S>
FF_INLINE void store_gradient(const float* p, const float* q, int64_t count, double student, double teacher, S* out) {
  const Factor a(student), b(teacher);
  if constexpr (__is_same(S, float)) {
    int64_t k = 0;
    const auto at = [&](int64_t i) __attribute__((always_inline)) {
      const Vec x = load_vec(p + i), y = load_vec(q + i);
      const Vec own = x * a.high + x * a.low, due = y * b.high + y * b.low;
      return own - due;
    };
    for (; k + W <= count; k += W) store_vec(out + k, at(k));
    if (k == count) return;
    alignas(64) float last[W];
    store_vec(last, at(k));
    __builtin_memcpy(out + k, last, static_cast<uint64_t>(count - k) * sizeof(float));
  } else {
#pragma omp simd
    for (int64_t k = 0; k < count; ++k) {
      const float own = p[k] * a.high + p[k] * a.low, due = q[k] * b.high + q[k] * b.low;
      out[k] = narrow<S>(own - due);
    }
  }
}
FF_INLINE void store_gradient(double* p, double* q, int64_t count, double student, double teacher, double* out) {
  // in a loop of their own, or the compiler would fuse a product with the difference
  for (int64_t k = 0; k < count; ++k) {
    p[k] *= student;
    q[k] *= teacher;
  }
  for (int64_t k = 0; k < count; ++k) out[k] = p[k] - q[k];
}

template <class C>
struct Rows {
  C largest_z[kBlockRows], largest_t[kBlockRows];
  alignas(64) double student[kBlockRows], teacher[kBlockRows];  // sums but for one of the largest; then the factors
  alignas(64) double weighted[kBlockRows];                      // then the loss
};

// KL = weighted / total_t + log total_z - log total_t, whose largest terms are 1 each; in double.
template <class C>
FF_INLINE void finish_rows(Rows<C>& rows, int64_t count, double divisor) {
  const auto finish = [&](int64_t r, double log_z, double log_t) __attribute__((always_inline)) {
    const double total_z = 1.0 + rows.student[r], total_t = 1.0 + rows.teacher[r];
    rows.weighted[r] = rows.weighted[r] / total_t + (log_z - log_t);
    rows.student[r] = 1.0 / (total_z * divisor);
    rows.teacher[r] = 1.0 / (total_t * divisor);
  };
  if constexpr (sizeof(C) == sizeof(double)) {
    for (int64_t r = 0; r < count; ++r) {
      finish(r, __builtin_log1p(rows.student[r]), __builtin_log1p(rows.teacher[r]));
    }
  } else {
#pragma omp simd
    for (int64_t r = 0; r < count; ++r) finish(r, log_of_one_and(rows.student[r]), log_of_one_and(rows.teacher[r]));
  }
}

// Sets the teacher's logits of the classes that are left out: `t` holds those from class `at` on.
template <class C>
FF_INLINE void leave_out(C* t, int64_t at, int64_t count, int64_t label, const uint8_t* classes) {
  if (label >= at && label < at + count) t[label - at] = static_cast<C>(-__builtin_inf());
  if (classes == nullptr) return;
#pragma omp simd
  for (int64_t k = 0; k < count; ++k) t[k] = classes[at + k] != 0 ? static_cast<C>(-__builtin_inf()) : t[k];
}

template <class S>
void distill_loss(const void* logits_, const void* teacher_, const Dropped& dropped, int64_t n, int64_t classes,
                  int64_t batch, double temperature, void* loss_, void* dlogits_) {
  using C = Compute<S>;
  const S* logits = static_cast<const S*>(logits_);
  const S* teacher = static_cast<const S*>(teacher_);
  S* dlogits = static_cast<S*>(dlogits_);
  C* loss = static_cast<C*>(loss_);
  // Rows of up to kBlockTerms logits are kept as terms; longer ones are computed twice, piece by piece.
  const int64_t kept = rounded_up(classes) <= kBlockTerms ? rounded_up(classes) : 0;
  const int64_t fitting = kept > 0 ? kBlockTerms / kept : 1, most = fitting < kBlockRows ? fitting : kBlockRows;
  alignas(64) C p[kBlockTerms], q[kBlockTerms];
  Rows<C> rows;
  // Read once: a label that somebody else writes since it was checked is no place in memory.
  const auto label_of = [&](int64_t row) {
    return dropped.labels == nullptr ? int64_t{-1} : __atomic_load_n(&dropped.labels[row], __ATOMIC_RELAXED);
  };
  const auto load = [&](int64_t row, int64_t at, int64_t count, C* z, C* t) __attribute__((always_inline)) {
    load_logits(logits + row * classes + at, count, z);
    load_logits(teacher + row * classes + at, count, t);
    leave_out(t, at, count, label_of(row), dropped.classes);
  };
  // use(its place, its length, padded) for each piece of a long row, whose logits are in p and q
  const auto pieces = [&](int64_t row, const auto& use) __attribute__((always_inline)) {
    for (int64_t at = 0; at < classes; at += kBlockTerms) {
      const int64_t count = classes - at < kBlockTerms ? classes - at : kBlockTerms;
      load(row, at, count, p, q);
      use(at, count, rounded_up(count));
    }
  };
  for (int64_t first = 0; first < n; first += most) {
    const int64_t count = n - first < most ? n - first : most;
    for (int64_t r = 0; r < count; ++r) {
      C largest_z = static_cast<C>(-__builtin_inf()), largest_t = largest_z;
      Sums sums;
      if (kept > 0) {
        load(first + r, 0, classes, p + r * kept, q + r * kept);
        largest_z = largest_of(p + r * kept, kept);
        largest_t = largest_of(q + r * kept, kept);
        add_terms(p + r * kept, q + r * kept, kept, largest_z, largest_t, temperature, sums);
      } else {
        pieces(first + r, [&](int64_t, int64_t, int64_t padded) {
          const C z = largest_of(p, padded), t = largest_of(q, padded);
          largest_z = z > largest_z ? z : largest_z;
          largest_t = t > largest_t ? t : largest_t;
        });
        pieces(first + r, [&](int64_t, int64_t, int64_t padded) {
          add_terms(p, q, padded, largest_z, largest_t, temperature, sums);
        });
      }
      rows.largest_z[r] = largest_z;
      rows.largest_t[r] = largest_t;
      // A row whose largest logit is infinite has no softmax: NaN throughout, as in torch.
      const bool finite = largest_z - largest_z == C(0) && largest_t - largest_t == C(0);
      rows.student[r] = finite ? sums.student + static_cast<double>(sums.student_largest - 1) : __builtin_nan("");
      rows.teacher[r] = sums.teacher + static_cast<double>(sums.teacher_largest - 1);
      rows.weighted[r] = sums.weighted;
    }
    finish_rows(rows, count, temperature * static_cast<double>(batch));
    for (int64_t r = 0; r < count; ++r) {
      S* const out = dlogits + (first + r) * classes;
      if (kept > 0) {
        store_gradient(p + r * kept, q + r * kept, classes, rows.student[r], rows.teacher[r], out);
      } else {
        pieces(first + r, [&](int64_t at, int64_t length, int64_t padded) {
          Sums again;
          add_terms(p, q, padded, rows.largest_z[r], rows.largest_t[r], temperature, again);
          store_gradient(p, q, length, rows.student[r], rows.teacher[r], out + at);
        });
      }
      loss[first + r] = static_cast<C>(rows.weighted[r]);
    }
  }
}

}  // namespace

constinit const UpdateDistillTable update_distill_table = {
    {distill_loss<float>, distill_loss<BFloat16>, distill_loss<Float16>, distill_loss<double>},
};

}  // namespace ff::FF_ISA
