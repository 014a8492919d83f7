// Selection of the largest magnitudes of a list (saliency_mask). Compiled once per instruction set.
#include "cpu/storage.h"
#include "cpu/table.h"

namespace ff::FF_ISA {

constinit const MaskSelectTable mask_select_table = {};

}  // namespace ff::FF_ISA
