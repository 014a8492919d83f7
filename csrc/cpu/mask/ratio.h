// Masks by the ratio of two importances: kernel table. Torch-free; ratio_ops.cpp checks the arguments and cuts the
// work.
#pragma once
#include <cstdint>

#include "common/dtypes.h"

namespace ff {

struct MaskRatioTable {
  // numerator + eps >= threshold * (denominator + eps), as bytes of 0 and 1 (index 0) or as bits, the lowest of a byte
  // first (index 1).
  void (*ratio[kDtypes][2])(const void* numerator, const void* denominator, int64_t n, double threshold, double eps,
                            uint8_t* mask);
};

}  // namespace ff
