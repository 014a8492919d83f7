// Selection of the largest magnitudes of a list (saliency_mask): kernel table. Torch-free; mask_select_ops.cpp checks
// the arguments and cuts the work.
#pragma once
#include <cstdint>

#include "cpu/dtypes.h"

namespace ff {

struct MaskSelectTable {};

}  // namespace ff
