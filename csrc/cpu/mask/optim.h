// Optimiser steps on unmasked coordinates (masked_sgd_, masked_adam_): kernel table. Torch-free; mask_optim_ops.cpp
// checks the arguments and cuts the work.
#pragma once
#include <cstdint>

#include "common/dtypes.h"

namespace ff {

enum class MaskForm : int { kAllOn, kBytes, kBits, kRows, kFactors };

struct OptimMask {
  MaskForm form;
  const void* data;  // bool a coordinate, packed bits, bool a row, float32 a row
  int64_t inner;     // elements of a row, for the last two
};

struct SgdItem {
  void* p;
  const void* grad;
  void* buffer;  // null without momentum
  OptimMask mask;
};

struct SgdStep {
  double lr, momentum, dampening, weight_decay;
  bool nesterov, maximize, first;
};

struct MaskedAdamItem {
  void* p;
  const void* grad;
  void* exp_avg;
  void* exp_avg_sq;
  OptimMask mask;
};

struct MaskedAdamStep {
  double step_size;   // lr / (1 - beta1^step)
  double sqrt_bias2;  // sqrt(1 - beta2^step)
  double beta1, beta2, eps;
  double l2;      // weight decay that joins the gradient
  double shrink;  // what decoupled weight decay leaves of a weight: 1 - lr * weight_decay
  bool maximize;
};

// Elements [begin, end) of one tensor.
struct MaskOptimTable {
  void (*sgd[kDtypes])(const SgdItem& item, int64_t begin, int64_t end, const SgdStep& step);
  void (*adam[kDtypes])(const MaskedAdamItem& item, int64_t begin, int64_t end, const MaskedAdamStep& step);
};

}  // namespace ff
