#pragma once

namespace ff {

// Order of the dtype-indexed kernel tables. Arithmetic is float32 for the first three, float64 for the last.
enum Dtype : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2, kFloat64 = 3, kDtypes = 4 };

}  // namespace ff
