// Optimiser steps on unmasked coordinates (masked_sgd_, masked_adam_). Compiled once per instruction set.
#include "cpu/storage.h"
#include "cpu/table.h"

namespace ff::FF_ISA {

constinit const MaskOptimTable mask_optim_table = {};

}  // namespace ff::FF_ISA
