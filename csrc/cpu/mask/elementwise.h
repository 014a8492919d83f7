// Elementwise masking: kernel table. Torch-free; elementwise_ops.cpp checks the arguments and cuts the work.
#pragma once
#include <cstdint>

#include "common/dtypes.h"

namespace ff {

struct MaskElementwiseTable {
  // Returns how many of the n elements were selected.
  int64_t (*dampen[kDtypes])(void* param, const void* forget, const void* retain, int64_t n, double alpha, double lam);
  // importance += scale * |grad|^power, power 1 or 2. Indexed by grad's dtype and whether importance is float32 where
  // grad has 16 bits (otherwise it has grad's dtype).
  void (*accumulate[kDtypes][2])(void* importance, const void* grad, int64_t n, int64_t power, double scale);
  // Of the stored values: adds the magnitudes to l1, returns how many are not zero.
  int64_t (*soft_threshold[kDtypes])(void* x, int64_t n, double threshold, double* l1);
};

}  // namespace ff
