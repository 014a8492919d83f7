// The masks of the optimiser steps: which coordinates of a pack are on, from any form of mask.
#pragma once
#include "common/divide.cuh"
#include "common/launch.cuh"

namespace ff::cuda {

enum class MaskKind : uint8_t {
  kAll,       // no mask: every coordinate is on
  kElements,  // a byte a coordinate
  kBits,      // a bit a coordinate, the lowest first
  kRows,      // a byte a row
  kFactors,   // float32 a row: off where 0, else a factor on the row's gradient
};

template <int States>
struct OptimItem {
  void* p;
  const void* grad;
  const void* mask;
  void* state[States];
  int64_t size;
  int64_t row;    // elements a row
  float inverse;  // of `row`
  MaskKind kind;
  bool aligned;       // p, grad and the states
  bool mask_aligned;  // a pack's mask bytes are one word
};

struct RowPlace {
  int64_t row, rest;
};

FF_HD RowPlace place_in_row(int64_t i, int64_t row, float inverse) {
  const int64_t at = quotient(i, row, inverse);
  return {at, i - at * row};
}

template <int States>
__device__ __forceinline__ bool row_is_on(const OptimItem<States>& item, int64_t row) {
  return item.kind == MaskKind::kRows ? static_cast<const uint8_t*>(item.mask)[row] != 0
                                      : static_cast<const float*>(item.mask)[row] != 0.0f;
}

template <int N>
struct Word;
template <>
struct Word<2> {
  using type = uint16_t;
};
template <>
struct Word<4> {
  using type = uint32_t;
};
template <>
struct Word<8> {
  using type = uint64_t;
};

// Which of the N coordinates from `base`, a multiple of N, are on: coordinate i is bit i.
template <int N, int States>
__device__ __forceinline__ unsigned mask_bits(const OptimItem<States>& item, int64_t base) {
  const int64_t left = item.size - base;
  if (left <= 0) return 0;
  const unsigned inside = left >= N ? (1u << N) - 1u : (1u << static_cast<int>(left)) - 1u;
  if (item.kind == MaskKind::kAll) return inside;
  unsigned on = 0;
  if (item.kind == MaskKind::kElements) {
    const uint8_t* const from = static_cast<const uint8_t*>(item.mask) + base;
    if (item.mask_aligned && left >= N) {
      const auto word = *reinterpret_cast<const typename Word<N>::type*>(from);
#pragma unroll
      for (int i = 0; i < N; ++i) on |= static_cast<unsigned>((word >> 8 * i & 0xff) != 0) << i;
    } else {
#pragma unroll
      for (int i = 0; i < N; ++i) on |= static_cast<unsigned>(i < left && from[i] != 0) << i;
    }
  } else if (item.kind == MaskKind::kBits) {
    on = static_cast<const uint8_t*>(item.mask)[base >> 3] >> (base & 7);
  } else {
    RowPlace at = place_in_row(base, item.row, item.inverse);
    if (at.rest + N <= item.row) return row_is_on(item, at.row) ? inside : 0;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      on |= static_cast<unsigned>(i < left && row_is_on(item, at.row)) << i;
      if (++at.rest == item.row) {
        at.rest = 0;
        ++at.row;
      }
    }
  }
  return on & inside;
}

// The factors on the gradients of the coordinates that are on.
template <int N, class C, int States>
__device__ __forceinline__ void load_factors(const OptimItem<States>& item, int64_t base, unsigned on, C (&factor)[N]) {
  RowPlace at = place_in_row(base, item.row, item.inverse);
#pragma unroll
  for (int i = 0; i < N; ++i) {
    if (on >> i & 1u) factor[i] = static_cast<C>(static_cast<const float*>(item.mask)[at.row]);
    if (++at.rest == item.row) {
      at.rest = 0;
      ++at.row;
    }
  }
}

template <class Item>
void set_mask(Item& item, const Tensor& p, const Tensor& mask, const char* op, bool factors_allowed) {
  const int64_t rows = p.dim() > 0 ? p.size(0) : 1;
  item.row = rows > 0 ? item.size / rows : 0;
  item.inverse = inverse_of(item.row);
  item.mask = mask.data_ptr();
  const int64_t count = mask.numel();
  const int32_t code = dtype_code(mask);
  if (!mask.is_contiguous()) fail("fastforget.", op, ": masks is not contiguous");
  if (count == 0) {
    item.kind = MaskKind::kAll;
  } else if (code == dtype_code(ScalarType::Bool) && count == item.size) {
    item.kind = MaskKind::kElements;
  } else if (code == dtype_code(ScalarType::Bool) && count == rows) {
    item.kind = MaskKind::kRows;
  } else if (code == aoti_torch_dtype_uint8() && count == ceil_div(item.size, 8)) {
    item.kind = MaskKind::kBits;
  } else if (factors_allowed && code == dtype_code(ScalarType::Float) && count == rows) {
    item.kind = MaskKind::kFactors;
  } else {
    fail("fastforget.", op, ": masks has a tensor of ", count, " elements, dtype ",
         torch::headeronly::toString(mask.scalar_type()), ", for a parameter of ", item.size, " elements in ", rows,
         " rows; accepted: bool of the parameter's shape or one a row, uint8 with a bit a coordinate",
         factors_allowed ? ", float32 one a row" : "", ", or an empty tensor");
  }
}

}  // namespace ff::cuda
