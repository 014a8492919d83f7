// Statistics of neurons and channels (neuron_stats): kernel table. Torch-free; mask_rows_ops.cpp checks the arguments
// and cuts the work.
#pragma once
#include <cstdint>

#include "cpu/dtypes.h"

namespace ff {

struct MaskRowsTable {};

}  // namespace ff
