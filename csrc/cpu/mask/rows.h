// Statistics of neurons and channels (neuron_stats): kernel table. Torch-free; mask_rows_ops.cpp checks the arguments
// and cuts the work.
#pragma once
#include <cstdint>

#include "common/dtypes.h"

namespace ff {

// x seen as [outer, rows, inner].
struct RowsShape {
  int64_t outer, rows, inner;
};

struct MaskRowsTable {
  // For each outer index in [outer0, outer1), in order: magnitudes[r] += sum |x| and squares[r] += sum x^2 over
  // elements [from, to) of row r, r in [row0, row1).
  void (*segments[kDtypes])(const void* x, const RowsShape& shape, int64_t outer0, int64_t outer1, int64_t row0,
                            int64_t row1, int64_t from, int64_t to, double* magnitudes, double* squares);
  // The same over whole rows, for short ones: vectors run across the rows. The sums must be 0 before.
  void (*columns[kDtypes])(const void* x, const RowsShape& shape, int64_t outer0, int64_t outer1, int64_t row0,
                           int64_t row1, double* magnitudes, double* squares);
};

}  // namespace ff
