#pragma once
#include "common/numeric.h"

using __half = ff::Float16;
inline float __half2float(__half x) { return ff::to_float(x); }
inline __half __float2half_rn(float x) { return ff::to_float16(x); }
