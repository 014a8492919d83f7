// Masks of the elements where one importance is large beside another. Compiled once per instruction set; plain loops,
// because these are bound by memory.
#include "common/storage.h"
#include "common/table.h"

namespace ff::FF_ISA {
namespace {

constexpr int64_t kTile = 1024;

// A NaN compares false: off.
template <class C>
FF_INLINE void compare(const C* a, const C* b, int64_t n, C threshold, C eps, uint8_t* on) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) on[i] = a[i] + eps >= threshold * (b[i] + eps) ? 1 : 0;
}

// Eight bytes of 0 or 1 to the bits of one: the product moves byte i to bit 56 + i, and nothing carries into those.
FF_INLINE uint8_t bits_of_bytes(const uint8_t* bytes) {
  uint64_t eight;
  __builtin_memcpy(&eight, bytes, sizeof eight);
  return static_cast<uint8_t>((eight * 0x0102040810204080u) >> 56);
}

// `bytes` has room for whole groups of eight.
FF_INLINE void pack(uint8_t* bytes, int64_t n, uint8_t* bits) {
  const int64_t whole = (n + 7) / 8;
  for (int64_t i = n; i < whole * 8; ++i) bytes[i] = 0;
  for (int64_t i = 0; i < whole; ++i) bits[i] = bits_of_bytes(bytes + 8 * i);
}

template <class S, bool kPacked>
void ratio(const void* numerator, const void* denominator, int64_t n, double threshold_, double eps_, uint8_t* mask) {
  using C = Compute<S>;
  const C threshold = static_cast<C>(threshold_), eps = static_cast<C>(eps_);
  const S* a = static_cast<const S*>(numerator);
  const S* b = static_cast<const S*>(denominator);
  for (int64_t at = 0; at < n; at += kTile) {
    const int64_t count = n - at < kTile ? n - at : kTile;
    alignas(64) uint8_t on[kTile];
    uint8_t* const to = kPacked ? on : mask + at;
    if constexpr (kStaged<S>) {
      alignas(64) C x[kTile], y[kTile];
      load_block(a + at, x, count);
      load_block(b + at, y, count);
      compare(x, y, count, threshold, eps, to);
    } else {
      compare(a + at, b + at, count, threshold, eps, to);
    }
    if constexpr (kPacked) pack(on, count, mask + at / 8);
  }
}

}  // namespace

constinit const MaskRatioTable mask_ratio_table = {
    {{ratio<float, false>, ratio<float, true>},
     {ratio<BFloat16, false>, ratio<BFloat16, true>},
     {ratio<Float16, false>, ratio<Float16, true>},
     {ratio<double, false>, ratio<double, true>}},
};

}  // namespace ff::FF_ISA
