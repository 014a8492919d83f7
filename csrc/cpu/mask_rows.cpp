// Statistics of neurons and channels (neuron_stats). Compiled once per instruction set.
#include "cpu/storage.h"
#include "cpu/table.h"

namespace ff::FF_ISA {

constinit const MaskRowsTable mask_rows_table = {};

}  // namespace ff::FF_ISA
