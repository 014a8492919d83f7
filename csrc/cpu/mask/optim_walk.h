// The parts of a parameter that a mask leaves on, for the optimiser steps. For mask_optim.cpp, which is compiled once
// per instruction set.
#pragma once
#include <cstdint>

#include "common/floats.h"
#include "common/storage.h"
#include "cpu/mask/optim.h"

namespace ff::FF_ISA {

constexpr int64_t kTile = 512;
constexpr int64_t kPiece = 512;    // elements that are worked on while the next ones are fetched: a miss takes as long
constexpr int64_t kAhead = 16384;  // elements into a stretch where fetching ahead ends
constexpr int64_t kLine = 64;      // bytes of a cache line
constexpr int64_t kShortRow = 64;  // below this a run of rows is too short to be worth a loop of its own

template <class C>
struct LaneOf {
  using type = int32_t;
};
template <>
struct LaneOf<double> {
  using type = int64_t;
};
// One a coordinate: all bits set where it is on, none where it is off.
template <class C>
using Lane = typename LaneOf<C>::type;

// ---- masks to lanes -------------------------------------------------------------------------------------------------
// Each fills on[0, n) and returns whether any is on.

template <class L>
FF_INLINE bool expand_bytes(const uint8_t* from, L* on, int64_t n) {
  L any = 0;
#pragma omp simd reduction(| : any)
  for (int64_t i = 0; i < n; ++i) {
    const L lane = -static_cast<L>(from[i] != 0);
    on[i] = lane;
    any |= lane;
  }
  return any != 0;
}

// Bits [start, start + n), the lowest of a byte first.
template <class L>
FF_INLINE bool expand_bits(const uint8_t* bits, int64_t start, L* on, int64_t n) {
  constexpr int kBits = 16;
  L any = 0;
  int64_t i = 0;
  const auto single = [&] {
    const int64_t at = start + i;
    on[i] = -static_cast<L>((bits[at >> 3] >> (at & 7)) & 1);
    any |= on[i];
    ++i;
  };
  while (i < n && ((start + i) & 7) != 0) single();
  for (; i + kBits <= n; i += kBits) {
    const uint8_t* pair = bits + ((start + i) >> 3);
    const L word = pair[0] | pair[1] << 8;
#pragma omp simd
    for (int k = 0; k < kBits; ++k) on[i + k] = (word & (L(1) << k)) != 0 ? L(-1) : L(0);
    any |= word;
  }
  while (i < n) single();
  return any != 0;
}

#if defined(FF_HAS_FLOATS)
// The same masks a vector at a time. any(n): whether one of the first n is on.
struct ByteMask {
  const uint8_t* bytes;

  __attribute__((always_inline)) Floats::Mask at(int64_t i) const { return Floats::nonzero(bytes + i); }
  __attribute__((always_inline)) bool any(int64_t n) const {
    uint8_t set = 0;
#pragma omp simd reduction(| : set)
    for (int64_t i = 0; i < n; ++i) set |= bytes[i];
    return set != 0;
  }
};
struct BitMask {
  const uint8_t* bytes;

  __attribute__((always_inline)) Floats::Mask at(int64_t i) const { return Floats::from_bits(bytes + i / 8); }
  __attribute__((always_inline)) bool any(int64_t n) const { return ByteMask{bytes}.any(n / 8); }
};
#endif

// `of(row)` is what every coordinate of a row gets.
template <class L, class Of>
FF_INLINE bool expand_rows(int64_t inner, int64_t start, L* on, int64_t n, const Of& of) {
  bool any = false;
  int64_t row = start / inner, left = inner - start % inner;
  for (int64_t i = 0; i < n; ++row, left = inner) {
    const int64_t stop = i + left < n ? i + left : n;
    const L lane = of(row);
    any |= lane != L(0);
    for (; i < stop; ++i) on[i] = lane;
  }
  return any;
}

// ---- walking a masked range -----------------------------------------------------------------------------------------

// A stretch of whole rows of one kind, and the factor of their gradient (0: frozen). Rows that are on lie too far apart
// for the hardware to guess the next one; so it is looked for, and asked for, while the one before is worked on.
template <class C>
struct Stretch {
  int64_t start, stop;
  C factor;

  // The first stretch of [at, end) that is on; if there is none, an empty one.
  FF_INLINE Stretch on_from(const OptimMask& mask, int64_t at, int64_t end) {
    while (at < end) {
      const Stretch found = of(mask, at, end);
      if (found.factor != C(0)) return found;
      at = found.stop;
    }
    return {end, end, C(0)};
  }

  FF_INLINE Stretch of(const OptimMask& mask, int64_t at, int64_t end) {
    const int64_t inner = mask.inner;
    int64_t row = at / inner;
    C factor;
    if (mask.form == MaskForm::kFactors) {
      factor = static_cast<C>(static_cast<const float*>(mask.data)[row++]);
    } else {
      const uint8_t* rows = static_cast<const uint8_t*>(mask.data);
      const bool on = rows[row] != 0;
      do ++row;
      while (row * inner < end && (rows[row] != 0) == on);  // rows of one kind as one stretch
      factor = on ? C(1) : C(0);
    }
    return {at, row * inner < end ? row * inner : end, factor};
  }
};

// Fills on[0, n), and factor[0, n) where the mask holds factors; returns whether anything is on.
template <class C>
FF_INLINE bool expand(const OptimMask& mask, int64_t at, int64_t n, Lane<C>* on, C* factor) {
  const uint8_t* bytes = static_cast<const uint8_t*>(mask.data);
  if (mask.form == MaskForm::kBytes) return expand_bytes(bytes + at, on, n);
  if (mask.form == MaskForm::kBits) return expand_bits(bytes, at, on, n);
  if (mask.form == MaskForm::kRows) {
    return expand_rows(mask.inner, at, on, n, [&](int64_t row) { return -static_cast<Lane<C>>(bytes[row] != 0); });
  }
  const float* factors = static_cast<const float*>(mask.data);
  const bool any = expand_rows(mask.inner, at, factor, n, [&](int64_t row) { return static_cast<C>(factors[row]); });
  for (int64_t i = 0; i < n; ++i) on[i] = -static_cast<Lane<C>>(factor[i] != C(0));
  return any;
}

// Calls range.fetch(from, to) for what comes next, range.whole(from, to, factor) where everything is on and
// range.tile(at, n, on, factors) elsewhere (factors is null but for one factor a row), on parts of [begin, end) that
// leave out nothing but frozen coordinates. range.vectors(mask, at, n) is asked first and says how much it has done.
template <class C, class Range>
FF_INLINE void walk(const OptimMask& mask, int64_t begin, int64_t end, const Range& range) {
  const bool by_row = mask.form == MaskForm::kRows || mask.form == MaskForm::kFactors;
  if (mask.form == MaskForm::kAllOn) {
    range.whole(begin, end, C(1));
    return;
  }
  if (by_row && mask.inner >= kShortRow) {
    Stretch<C> here = Stretch<C>::on_from(mask, begin, end);
    while (here.start < end) {
      const Stretch<C> next = Stretch<C>::on_from(mask, here.stop, end);
      for (int64_t at = here.start, stop; at < here.stop; at = stop) {
        // Far into a stretch the hardware knows the way: all but the last piece goes as one.
        const int64_t piece =
            at - here.start >= kAhead && here.stop - at > 2 * kPiece ? here.stop - at - kPiece : kPiece;
        stop = at + piece < here.stop ? at + piece : here.stop;
        range.fetch(stop < here.stop ? stop : next.start, stop < here.stop ? here.stop : next.stop);
        range.whole(at, stop, here.factor);
      }
      here = next;
    }
    return;
  }
  alignas(64) Lane<C> on[kTile];
  alignas(64) C factors[kTile];
  for (int64_t at = begin; at < end;) {
    const int64_t border = (at / kTile + 1) * kTile;  // so that all tiles but the first start on a whole byte of bits
    const int64_t stop = border < end ? border : end;
    at += range.vectors(mask, at, stop - at);
    if (at < stop && expand(mask, at, stop - at, on, factors)) {
      range.tile(at, stop - at, on, mask.form == MaskForm::kFactors ? factors : nullptr);
    }
    at = stop;
  }
}

// Asks for the first piece of p[from, to).
template <class S>
FF_INLINE void fetch_piece(const S* p, int64_t from, int64_t to) {
  if (p == nullptr) return;
  const int64_t stop = from + kPiece < to ? from + kPiece : to;
  for (int64_t i = from; i < stop; i += kLine / static_cast<int64_t>(sizeof(S))) __builtin_prefetch(p + i);
}

}  // namespace ff::FF_ISA
