#pragma once
#include "common/numeric.h"

using __nv_bfloat16 = ff::BFloat16;
inline float __bfloat162float(__nv_bfloat16 x) { return ff::to_float(x); }
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return ff::to_bfloat16(x); }
