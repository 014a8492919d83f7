// bfloat16 and float16 to float32 and back in integer arithmetic, rounding to nearest even. Host side, torch-free and
// branch-free, so that loops over them vectorise on every instruction set.
#pragma once
#include <cstdint>

#include "common/normal.h"

namespace ff {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

FF_HD float to_float(BFloat16 h) { return bits_float(static_cast<uint32_t>(h.bits) << 16); }

FF_HD BFloat16 to_bfloat16(float f) {
  const uint32_t u = float_bits(f);
  const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  // Rounding would carry a NaN with a full mantissa over into the sign.
  return {static_cast<uint16_t>((u & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded)};
}

FF_HD float to_float(Float16 h) {
  const uint32_t magnitude = h.bits & 0x7fffu;
  const uint32_t sign = static_cast<uint32_t>(h.bits & 0x8000u) << 16;
  // Shifted into a float's exponent field the value is 2^112 too small; the multiplication also normalises subnormals.
  const uint32_t finite = float_bits(bits_float(magnitude << 13) * 0x1p112f);
  const uint32_t special = (magnitude << 13) | 0x7f800000u;
  return bits_float((magnitude >= 0x7c00u ? special : finite) | sign);
}

FF_HD Float16 to_float16(float f) {
  const uint32_t u = float_bits(f);
  const uint32_t sign = (u >> 16) & 0x8000u;
  const uint32_t magnitude = u & 0x7fffffffu;
  // Normal results: rebias the exponent and round the 13 dropped bits in integers; overflow runs into the code of inf.
  const uint32_t normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // Subnormal results: adding 0.5 puts the last kept bit at 2^-24, and the addition does the rounding.
  const uint32_t subnormal = float_bits(bits_float(magnitude) + 0.5f) - 0x3f000000u;
  const uint32_t finite = magnitude < 0x38800000u ? subnormal : normal;
  const uint32_t bounded = magnitude >= 0x47800000u ? 0x7c00u : finite;
  return {static_cast<uint16_t>((magnitude > 0x7f800000u ? 0x7e00u : bounded) | sign)};
}

}  // namespace ff
