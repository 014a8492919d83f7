// Optimiser steps on unmasked coordinates (masked_sgd_, masked_adam_): kernel table. Torch-free; mask_optim_ops.cpp
// checks the arguments and cuts the work.
#pragma once
#include <cstdint>

#include "cpu/dtypes.h"

namespace ff {

struct MaskOptimTable {};

}  // namespace ff
