// The membership scores of one row in float64: for float64 logits, and for the others at a temperature out of float32's
// reach. The formulas are those of membership.cpp. For membership.cpp, which is compiled once per instruction set.
#pragma once
#include <math.h>

#include <cstdint>

#include "common/storage.h"
#include "cpu/membership/scores.h"

namespace ff::FF_ISA {

// A sum in blocks, so that the rounding error does not grow with the number of terms.
struct BlockSum {
  double total = 0.0, block = 0.0;
  int terms = 0;
  __attribute__((always_inline)) void add(double x) {
    block += x;
    if (++terms == 64) {
      total += block;
      block = 0.0;
      terms = 0;
    }
  }
  __attribute__((always_inline)) double value() const { return total + block; }
};

template <class S>
static void score_row_in_double(const ScoreJob& job, int64_t row, double* e) {
  using Out = Compute<S>;
  const S* x = static_cast<const S*>(job.logits) + row * job.classes;
  const int64_t label = job.labels[row];
  int64_t top = 0;
  bool defined = true;
  for (int64_t k = 0; k < job.classes; ++k) {
    defined &= widen(x[k]) < static_cast<Out>(__builtin_inf());
    if (widen(x[k]) > widen(x[top])) top = k;
  }
  const auto z = [&](int64_t k) { return static_cast<double>(widen(x[k])) / job.temperature; };
  double second = -__builtin_inf();
  for (int64_t k = 0; k < job.classes; ++k) {
    if (k != top && z(k) > second) second = z(k);
  }
  defined &= z(top) > -__builtin_inf() && z(top) < __builtin_inf();
  job.correct[row] = defined && top == label;
  if (z(label) == z(top)) top = label;  // of equal logits any may stand for the arg-max in the formulas
  const double first = z(top);
  const bool lone = second == -__builtin_inf();
  const double reference = lone ? first : second;

  BlockSum mass_sum, moment_sum;
  for (int64_t k = 0; k < job.classes; ++k) {
    const double distance = z(k) - reference;
    e[k] = k == top ? 0.0 : exp(distance);
    mass_sum.add(e[k]);
    moment_sum.add(e[k] > 0.0 ? e[k] * distance : 0.0);
  }
  const double mass = mass_sum.value(), moment = moment_sum.value();
  const double gap = first - reference, decay = exp(-gap), tail = mass * decay, total = 1.0 + tail;
  const double log_total = log1p(tail), log_mass = log(mass);
  const double spread = decay > 0.0 ? decay * (gap * mass - moment) : 0.0;
  BlockSum surprise;
  for (int64_t k = 0; k < job.classes; ++k) {
    const double p = e[k] * decay / total;
    surprise.add(k == label ? 0.0 : -p * log1p(-p));
  }

  const double below = first - z(label), at_label = exp(-below);
  const bool is_top = top == label;
  const double loss = log_total + below;
  const double beside = is_top || tail < at_label ? 0.0 : tail - at_label;
  const double others = (is_top ? tail : 1.0 + beside) / total;
  const double of_top = is_top || lone ? 0.0 : (gap + log_total - log_mass) / total;
  double logit_confidence = is_top ? gap - log_mass : -below - log1p(beside);
  double margin = is_top ? gap : -below;
  if (is_top && lone) margin = logit_confidence = __builtin_inf();
  const double values[kScores] = {loss,
                                  is_top ? 1.0 / total : at_label / total,
                                  log_total + spread / total,
                                  others * loss + surprise.value() + of_top,
                                  margin,
                                  logit_confidence};
  for (int i = 0; i < kScores; ++i) {
    static_cast<Out*>(job.scores[i])[row] = static_cast<Out>(defined ? values[i] : __builtin_nan(""));
  }
}

}  // namespace ff::FF_ISA
