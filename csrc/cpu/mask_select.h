// Selection of the largest magnitudes of a list (saliency_mask): kernel table. Torch-free; mask_select_ops.cpp checks
// the arguments, cuts the work and narrows the threshold down.
//
// Everything is decided on keys: the bits of |x| as an unsigned integer, which order like the magnitudes do. All NaN
// share one key, the one above infinity's.
#pragma once
#include <cstdint>

#include "cpu/dtypes.h"

namespace ff {

template <class Key>
struct KeyOrder;
template <>
struct KeyOrder<uint32_t> {
  using Signed = int32_t;
  static constexpr uint32_t kMagnitude = 0x7fffffffu, kInfinity = 0x7f800000u, kNan = kInfinity + 1, kEnd = kNan + 1;
};
template <>
struct KeyOrder<uint64_t> {
  using Signed = int64_t;
  static constexpr uint64_t kMagnitude = ~uint64_t(0) >> 1, kInfinity = uint64_t(0x7ff) << 52, kNan = kInfinity + 1,
                            kEnd = kNan + 1;
};

// A histogram divides a range of keys into at most this many equal parts.
inline constexpr int kSelectDigitBits = 11;
inline constexpr int64_t kSelectDigits = int64_t(1) << kSelectDigitBits;
// What `collect` may write past the keys it returns.
inline constexpr int64_t kCollectSlack = 64;

// Indexed by the dtype of x. 32-bit keys know no float64.
template <class Key>
struct SelectKernels {
  // Writes the keys in [low, high) to `out` (n + kCollectSlack) and returns how many; *above: keys >= high.
  int64_t (*collect[kDtypes])(const void* x, int64_t n, Key low, Key high, Key* out, int64_t* above);
  // counts[(key - low) >> shift] += 1 for the keys in [low, high); n below 2^32.
  void (*histogram[kDtypes])(const void* x, int64_t n, Key low, Key high, int shift, int64_t* counts);
  // on = key > floor (-1: all), as bytes or as bits. Returns how many keys are floor + 1 if `ties`, else 0.
  int64_t (*mask[kDtypes])(const void* x, int64_t n, typename KeyOrder<Key>::Signed floor, bool ties, bool packed,
                           uint8_t* out);
  // Turns the first `count` elements of this key on.
  void (*first[kDtypes])(const void* x, int64_t n, Key key, int64_t count, bool packed, uint8_t* out);
  // The key of one element.
  Key (*key_at[kDtypes])(const void* x, int64_t index);
};

struct MaskSelectTable {
  SelectKernels<uint32_t> narrow;
  SelectKernels<uint64_t> wide;

  template <class Key>
  const SelectKernels<Key>& kernels() const {
    if constexpr (sizeof(Key) == 4) {
      return narrow;
    } else {
      return wide;
    }
  }
};

}  // namespace ff
