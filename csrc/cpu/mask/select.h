// Selection of the largest magnitudes of a list (saliency_mask): kernel table. Torch-free; mask_select_ops.cpp checks
// the arguments, cuts the work and narrows the threshold down.
//
// Everything is decided on keys: the bits of |x| as an unsigned integer, which order like the magnitudes do. All NaN
// share one key, the one above infinity's.
#pragma once
#include <cstdint>

#include "common/dtypes.h"

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
// A range of at most this many elements is sifted at once; a multiple of 8, so that the next begins a byte of bits.
inline constexpr int64_t kSelectChunk = 16384;
// What `sift` may write past the places it counts.
inline constexpr int64_t kPlacesSlack = 3;

struct Sifted {
  int64_t above, within;
};

// Keys in [low, high) are looked for; a mask of bytes is written as if the threshold were `guess`, in [low, high].
template <class Key>
struct SiftLimits {
  Key low, guess, high;
};

// Indexed by the dtype of x. 32-bit keys know no float64.
template <class Key>
struct SelectKernels {
  // Writes the mask, as bytes key >= guess or as bits key >= high; counts the keys at or above high and those in
  // [low, high) and, unless `places` is null, writes where the latter are (n + kPlacesSlack).
  Sifted (*sift[kDtypes])(const void* x, int64_t n, const SiftLimits<Key>& limits, bool packed, uint8_t* out,
                          uint16_t* places);
  void (*keys[kDtypes])(const void* x, int64_t n, Key* out);
  // The keys at these places.
  void (*pick[kDtypes])(const void* x, const uint16_t* places, int64_t count, Key* out);
  // counts[(key - low) >> shift] += 1 for the keys in [low, high); n below 2^32.
  void (*histogram[kDtypes])(const void* x, int64_t n, Key low, Key high, int shift, int64_t* counts);
  // Turns the first `count` elements of this key on.
  void (*first[kDtypes])(const void* x, int64_t n, Key key, int64_t count, bool packed, uint8_t* out);
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
