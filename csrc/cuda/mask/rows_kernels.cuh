// Kernels of neuron_stats (rows.cu).
#pragma once
#include "common/divide.cuh"
#include "common/launch.cuh"
#include "common/normal.h"  // fused

namespace ff::cuda {
namespace {

constexpr int kWarps = kThreads / kWarp;
constexpr int kPacksInFlight = 4;
template <class T>
constexpr int kPiece = 16384 / static_cast<int>(sizeof(T));

struct Sums {
  double magnitude, square;
};

FF_HD float magnitude(float x) { return x < 0.0f ? -x : x; }
FF_HD double magnitude(double x) { return x < 0.0 ? -x : x; }

// Adds N values. A few of them are summed in float32, as conversions to float64 are slow; should that overflow where
// float64 would not, they are summed once more.
template <class T, int N>
__device__ __forceinline__ void accumulate(Sums& sums, const T (&values)[N]) {
  using C = Compute<T>;
  C size = C(0), square = C(0);
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const C value = widen(values[i]);
    size += magnitude(value);
    square = fused(value, value, square);
  }
  if constexpr (sizeof(C) == 4) {
    if (!(size <= 3.4028234663852886e38f)) {
#pragma unroll
      for (int i = 0; i < N; ++i) sums.magnitude += static_cast<double>(magnitude(widen(values[i])));
      sums.square += static_cast<double>(square);
      return;
    }
  }
  sums.magnitude += static_cast<double>(size);
  sums.square += static_cast<double>(square);
}

template <class C>
__device__ __forceinline__ void finish(const Sums& sums, double count, C* mean_abs, C* sum_sq) {
  *mean_abs = static_cast<C>(sums.magnitude / count);  // 0 / 0 where a row is empty
  *sum_sq = static_cast<C>(sums.square);
}

// The sums of the lanes that share a row: `lanes`, a power of two, is the same for the whole warp.
__device__ __forceinline__ Sums reduce_lanes(Sums sums, int lanes) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) {
    if (step >= lanes) continue;
    sums.magnitude += __shfl_xor_sync(kFullWarp, sums.magnitude, step);
    sums.square += __shfl_xor_sync(kFullWarp, sums.square, step);
  }
  return sums;
}

// ---- pieces ----

struct PiecesItem {
  const void* x;
  void* mean_abs;
  void* sum_sq;
  Sums* partial;  // [rows, pieces]; unused where a row is one piece
  int64_t rows, inner, outer, pieces;
  int64_t slices;       // pieces of a run of `inner` elements, if it is longer than a piece
  int group;            // else runs a piece
  unsigned reciprocal;  // ceil(2^32 / inner), for offsets into a group of several runs
  float inverse_pieces, inverse_slices;
  int lanes;   // that share a piece
  bool whole;  // packs are 16-byte aligned and end where runs end
};

template <class T, int N>
__device__ __forceinline__ Sums sum_piece(const T* from, int64_t jump, int inner, int count, unsigned reciprocal,
                                          bool one_run, int lanes) {
  Sums sums = {0.0, 0.0};
  const int lane = static_cast<int>(threadIdx.x) & (lanes - 1);
  for (int begin = lane * N; begin < count; begin += kPacksInFlight * lanes * N) {
    T values[kPacksInFlight][N];
#pragma unroll
    for (int j = 0; j < kPacksInFlight; ++j) {
      const int at = begin + j * lanes * N;
#pragma unroll
      for (int i = 0; i < N; ++i) values[j][i] = narrow<T>(0);
      if (at >= count) continue;
      int64_t offset = at;
      if (!one_run) {
        const int run = static_cast<int>((static_cast<uint64_t>(static_cast<unsigned>(at)) * reciprocal) >> 32);
        offset = run * jump + (at - run * inner);
      }
      if constexpr (N == 1) {
        values[j][0] = from[offset];
      } else {
        const Pack<T> pack = load_whole<Pack<T>>(from + offset);
#pragma unroll
        for (int i = 0; i < N; ++i) values[j][i] = pack.at[i];
      }
    }
#pragma unroll
    for (int j = 0; j < kPacksInFlight; ++j) accumulate(sums, values[j]);
  }
  return sums;
}

template <class T>
__global__ void __launch_bounds__(kThreads) pieces_kernel(const __grid_constant__ ListTable<PiecesItem> table) {
  using C = Compute<T>;
  for (int64_t chunk = blockIdx.x; chunk < table.chunks(); chunk += gridDim.x) {
    const int at = table.find(chunk);
    const PiecesItem& item = table.items[at];
    const int shared_by = kThreads / item.lanes;
    const int64_t piece = (chunk - table.first_chunk(at)) * shared_by + static_cast<int>(threadIdx.x) / item.lanes;
    const bool exists = piece < item.rows * item.pieces;
    int64_t row = piece, part = 0;
    if (item.pieces > 1) {
      row = quotient(piece, item.pieces, item.inverse_pieces);
      part = piece - row * item.pieces;
    }
    const int64_t jump = item.rows * item.inner;
    int64_t first_run, start = 0, count;
    if (item.slices > 1) {
      first_run = item.outer > 1 ? quotient(part, item.slices, item.inverse_slices) : 0;
      start = (part - first_run * item.slices) * kPiece<T>;
      count = item.inner - start < kPiece<T> ? item.inner - start : kPiece<T>;
    } else {
      first_run = part * item.group;
      const int64_t runs = item.outer - first_run < item.group ? item.outer - first_run : item.group;
      count = runs * item.inner;
    }
    const T* const from = static_cast<const T*>(item.x) + first_run * jump + row * item.inner + start;
    const int inner = static_cast<int>(item.slices > 1 ? 0 : item.inner);
    const bool one_run = item.slices > 1 || item.group == 1;
    const int size = exists ? static_cast<int>(count) : 0;
    Sums sums = item.whole ? sum_piece<T, Pack<T>::kSize>(from, jump, inner, size, item.reciprocal, one_run, item.lanes)
                           : sum_piece<T, 1>(from, jump, inner, size, item.reciprocal, one_run, item.lanes);
    sums = reduce_lanes(sums, item.lanes);
    if (!exists || (threadIdx.x & (item.lanes - 1)) != 0) continue;
    if (item.pieces > 1) {
      item.partial[piece] = sums;
    } else {
      finish(sums, static_cast<double>(item.outer) * static_cast<double>(item.inner),
             static_cast<C*>(item.mean_abs) + row, static_cast<C*>(item.sum_sq) + row);
    }
  }
}

// ---- columns ----

constexpr int kLinesInFlight = 4;
constexpr int kSplit = 256;  // lines a block takes

// The flat memory as [lines, width], with width a multiple of rows * inner and of a pack.
struct ColumnsItem {
  const void* x;
  Sums* partial;  // [splits, width]
  int64_t size, width, tiles;
  float inverse_tiles;
  bool aligned;
};

template <class T>
__global__ void __launch_bounds__(kThreads) columns_kernel(const __grid_constant__ ListTable<ColumnsItem> table) {
  using P = Pack<T>;
  __shared__ Sums shared[kWarps][kWarp];
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  for (int64_t chunk = blockIdx.x; chunk < table.chunks(); chunk += gridDim.x) {
    const int at = table.find(chunk);
    const ColumnsItem& item = table.items[at];
    const int64_t local = chunk - table.first_chunk(at);
    const int64_t split = quotient(local, item.tiles, item.inverse_tiles);
    const int64_t column = ((local - split * item.tiles) * kWarp + lane) * P::kSize;
    const bool exists = column < item.width;
    Sums sums[P::kSize];
#pragma unroll
    for (int i = 0; i < P::kSize; ++i) sums[i] = {0.0, 0.0};
    for (int line = warp; line < kSplit; line += kWarps * kLinesInFlight) {
      P packs[kLinesInFlight];
#pragma unroll
      for (int j = 0; j < kLinesInFlight; ++j) {
        const int64_t base = (split * kSplit + line + j * kWarps) * item.width + column;
        packs[j] = load_pack<P>(static_cast<const T*>(item.x) + base, exists ? item.size - base : 0, item.aligned);
      }
#pragma unroll
      for (int i = 0; i < P::kSize; ++i) {
        T values[kLinesInFlight];
#pragma unroll
        for (int j = 0; j < kLinesInFlight; ++j) values[j] = packs[j].at[i];
        accumulate(sums[i], values);
      }
    }
#pragma unroll
    for (int i = 0; i < P::kSize; ++i) {
      __syncthreads();  // the sums of the column before are read
      shared[warp][lane] = sums[i];
      __syncthreads();
      if (warp != 0 || !exists) continue;
      Sums total = shared[0][lane];
#pragma unroll
      for (int other = 1; other < kWarps; ++other) {
        total.magnitude += shared[other][lane].magnitude;
        total.square += shared[other][lane].square;
      }
      item.partial[split * item.width + column + i] = total;
    }
  }
}

// ---- last sums ----

// Row r's partial sum number q lies at (q / run) * stride + r * run + q % run.
struct FinalItem {
  const Sums* partial;
  void* mean_abs;
  void* sum_sq;
  double elements;  // a row
  int64_t rows, count, run, stride;
  float inverse_run;
  int lanes;
};

template <class C>
__global__ void __launch_bounds__(kThreads) rows_kernel(const __grid_constant__ ListTable<FinalItem> table) {
  for (int64_t chunk = blockIdx.x; chunk < table.chunks(); chunk += gridDim.x) {
    const int at = table.find(chunk);
    const FinalItem& item = table.items[at];
    const int64_t row =
        (chunk - table.first_chunk(at)) * (kThreads / item.lanes) + static_cast<int>(threadIdx.x) / item.lanes;
    const int lane = static_cast<int>(threadIdx.x) & (item.lanes - 1);
    Sums sums = {0.0, 0.0};
    if (row < item.rows) {
#pragma unroll 4
      for (int64_t q = lane; q < item.count; q += item.lanes) {
        const int64_t line = quotient(q, item.run, item.inverse_run);
        const Sums part = item.partial[line * item.stride + row * item.run + (q - line * item.run)];
        sums.magnitude += part.magnitude;
        sums.square += part.square;
      }
    }
    sums = reduce_lanes(sums, item.lanes);
    if (row < item.rows && lane == 0) {
      finish(sums, item.elements, static_cast<C*>(item.mean_abs) + row, static_cast<C*>(item.sum_sq) + row);
    }
  }
}

}  // namespace
}  // namespace ff::cuda
