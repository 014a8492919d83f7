// Normal noise: kernel table. Torch-free; noise_ops.cpp checks the arguments and cuts the work.
#pragma once
#include <cstdint>

#include "common/dtypes.h"

namespace ff {

// Which words: element i of the range is global element `start + i` of this stream.
struct NoiseRange {
  uint64_t seed;
  uint32_t stream, step;
  uint64_t start;
};

struct NoiseTable {
  void (*random_bits)(uint32_t* out, int64_t n, const NoiseRange& range);
  // x = mean + std * z
  void (*normal[kDtypes])(void* x, int64_t n, double mean, double std, const NoiseRange& range);
  // x += -lr * grad + std * z: with neither tensor (no gradient, std a number), the gradient, std as a tensor, both.
  // What a kernel has no use for is not read.
  using Perturb = void(void* x, const void* grad, const void* std_elements, int64_t n, double lr, double std,
                       const NoiseRange& range);
  enum { kPlain, kGrad, kElements, kGradAndElements, kPerturbs };
  Perturb* perturb[kPerturbs][kDtypes];
};

}  // namespace ff
