// Losses, steps and products of gradients: kernel tables. Torch-free; the _ops.cpp files check the arguments and cut
// the work.
#pragma once
#include <cstdint>

#include "common/dtypes.h"

namespace ff {

// Constants of one error_max_step_, computed once in double.
struct AdamStep {
  double l2_gradient;  // 2 * l2 / B
  double beta1, beta2;
  double eps;
  double step_size;   // lr / (1 - beta1^step)
  double sqrt_bias2;  // sqrt(1 - beta2^step)
  double clamp_min, clamp_max;
};

struct UpdateTable {
  // Returns the sum of x^2 before the step over the n elements.
  double (*error_max_step[kDtypes])(void* x, const void* grad, void* exp_avg, void* exp_avg_sq, int64_t n,
                                    const AdamStep& step);
};

struct UpdateLossTable {
  // Rows of logits[n, classes]; `batch` is the B of the batch mean. loss: float32 (float64 for float64 logits).
  void (*error_max_loss[kDtypes])(const void* logits, const int64_t* labels, int64_t n, int64_t classes, int64_t batch,
                                  void* loss, void* dlogits);
};

// The classes that the teacher's distribution leaves out: one a row, or the same for all; either may be null.
struct Dropped {
  const int64_t* labels;   // a class or -1 for each row
  const uint8_t* classes;  // not 0: left out
};

struct UpdateDistillTable {
  // Rows of logits[n, classes] and teacher[n, classes]; `batch` is the B of the batch mean. loss: float32 (float64 for
  // float64 logits).
  void (*distill_loss[kDtypes])(const void* logits, const void* teacher, const Dropped& dropped, int64_t n,
                                int64_t classes, int64_t batch, double temperature, void* loss, void* dlogits);
};

struct UpdateGradientsTable {
  // out: the sums of a * b, a * a and b * b over the n elements.
  void (*products[kDtypes])(const void* a, const void* b, int64_t n, double* out);
};

}  // namespace ff
