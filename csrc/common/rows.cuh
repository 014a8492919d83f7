// Rows of logits: how threads share a row, and the maths of one row in pieces that merge. The scalar functions are host
// and device code, so they can be checked without a GPU. Torch-free.
#pragma once
#include <cmath>
#include <cstdint>

#include "common/device.cuh"
#include "common/normal.h"  // fused

namespace ff::cuda {

FF_HD float exp_of(float x) { return expf(x); }
FF_HD double exp_of(double x) { return exp(x); }
FF_HD float log_of(float x) { return logf(x); }
FF_HD double log_of(double x) { return log(x); }
FF_HD float log1p_of(float x) { return log1pf(x); }
FF_HD double log1p_of(double x) { return log1p(x); }
FF_HD float sqrt_of(float x) { return sqrtf(x); }
FF_HD double sqrt_of(double x) { return sqrt(x); }

template <class C>
struct Limits;
template <>
struct Limits<float> {
  static constexpr float kInf = __builtin_huge_valf();
  static constexpr float kNan = __builtin_nanf("");
  static constexpr float kLowest = -3.4028234663852886e38f;
};
template <>
struct Limits<double> {
  static constexpr double kInf = __builtin_huge_val();
  static constexpr double kNan = __builtin_nan("");
  static constexpr double kLowest = -1.7976931348623157e308;
};

template <class C>
FF_HD C larger(C a, C b) {
  return a > b ? a : b;
}
template <class C>
FF_HD C smaller(C a, C b) {
  return a < b ? a : b;
}

// The two largest logits, where the largest is (first index of a tie), and whether the row has a distribution at all.
template <class C>
struct Top {
  C first, second;
  int at;
  bool undefined;  // a NaN or +inf was seen
};

template <class C>
FF_HD Top<C> empty_top() {
  return {-Limits<C>::kInf, -Limits<C>::kInf, 0x7fffffff, false};
}

// `k` must grow from call to call.
template <class C>
FF_HD void push(Top<C>& top, C z, int k) {
  const bool above = z > top.first;
  top.undefined |= !(z < Limits<C>::kInf);
  top.second = larger(top.second, above ? top.first : z);
  top.first = above ? z : top.first;
  top.at = above ? k : top.at;
}

template <class C>
FF_HD Top<C> merge(const Top<C>& a, const Top<C>& b) {
  const bool take_b = b.first > a.first || (b.first == a.first && b.at < a.at);
  return {take_b ? b.first : a.first, larger(larger(a.second, b.second), smaller(a.first, b.first)),
          take_b ? b.at : a.at, a.undefined || b.undefined};
}

template <class C>
FF_HD bool has_distribution(const Top<C>& top) {
  return !top.undefined && top.first > -Limits<C>::kInf;
}

// -log(1 - p) for p in [0, 1/2]: every class but the most likely one. The float form is a fit without range reduction.
FF_HD float minus_log1m(float p) {
  float q = 2.21090663f;
  q = fused(q, p, -3.75019553f);
  q = fused(q, p, 3.31683483f);
  q = fused(q, p, -1.40470031f);
  q = fused(q, p, 0.592914067f);
  q = fused(q, p, 0.0836752799f);
  q = fused(q, p, 0.209390645f);
  q = fused(q, p, 0.24938691f);
  q = fused(q, p, 0.333353697f);
  q = fused(q, p, 0.499999738f);
  return p * fused(q, p, 1.0f);
}
FF_HD double minus_log1m(double p) { return -log1p(-p); }

// What exponentials are taken relative to: the largest logit, or the second where it is so far behind that the tail
// would run out of exponents. (Always the second would put the rounding of one more factor on the whole tail.)
template <class C>
FF_HD C tail_reference(const Top<C>& top) {
  const bool far = top.second < top.first - C(60) && top.second > -Limits<C>::kInf;
  return far ? top.second : top.first;
}

// Sums over the classes other than the label and the most likely one.
template <class C>
struct Tail {
  C sum;       // exp(z - reference)
  C weighted;  // exp(z - reference) * (z - first)
};

template <class C>
FF_HD C tail_term(C z, int k, int label, const Top<C>& top, C reference) {
  return k == label || k == top.at ? C(0) : exp_of(z - reference);
}

template <class C>
FF_HD void push(Tail<C>& tail, C e, C z, const Top<C>& top) {
  tail.sum += e;
  tail.weighted = fused(e, larger(z - top.first, Limits<C>::kLowest), tail.weighted);  // 0 * -inf would be NaN
}

template <class C>
struct Scores {
  C loss, confidence, entropy, modified_entropy, margin, logit_confidence;
};

template <class C>
FF_HD Scores<C> undefined_scores() {
  constexpr C nan = Limits<C>::kNan;
  return {nan, nan, nan, nan, nan, nan};
}

// What follows from the sums, before modified entropy's own.
template <class C>
struct RowSummary {
  C scale;    // p_k = scale * exp(z_k - reference)
  C label_e;  // the label's exp(z - reference); 0 where the label is the most likely class
  C others;   // sum of exp(z - first) over the classes other than the label, without the most likely one's 1
  C tail;     // sum of exp(z - first) over all but the most likely class
  C log_total;
};

template <class C>
FF_HD RowSummary<C> summarize(const Top<C>& top, const Tail<C>& sums, int label, C label_z) {
  RowSummary<C> row;
  const C gap = exp_of(tail_reference(top) - top.first);  // 1 unless the tail is far
  row.label_e = label == top.at ? C(0) : exp_of(label_z - tail_reference(top));
  row.others = gap * sums.sum;
  row.tail = gap * (sums.sum + row.label_e);
  row.log_total = log1p_of(row.tail);
  row.scale = gap / (C(1) + row.tail);
  return row;
}

// `elsewhere`: sum of p_k * -log(1 - p_k) over the classes other than the label and the most likely one.
template <class C>
FF_HD Scores<C> finish_scores(const Top<C>& top, const Tail<C>& sums, const RowSummary<C>& row, C elsewhere, int label,
                              C label_z) {
  const bool right = label == top.at;
  const C total = C(1) + row.tail;
  const C distance = label_z - top.first;
  const C minus_log_tail = (top.first - tail_reference(top)) - log_of(sums.sum + row.label_e);
  const C weighted = fused(row.label_e, larger(distance, Limits<C>::kLowest), sums.weighted);
  Scores<C> s;
  s.loss = right ? row.log_total : row.log_total - distance;
  s.confidence = (right ? C(1) : exp_of(distance)) / total;
  s.entropy = row.log_total - row.scale * weighted;
  s.margin = right ? top.first - top.second : distance;
  s.logit_confidence = right ? minus_log_tail : distance - log1p_of(row.others);
  const C not_label = (right ? row.tail : C(1) + row.others) / total;
  const C label_part = not_label == C(0) ? C(0) : not_label * s.loss;
  // 1 - p of the most likely class is the tail's share; its logarithm is taken before anything underflows.
  const C top_part = right ? C(0) : (row.log_total + minus_log_tail) / total;
  s.modified_entropy = label_part + elsewhere + top_part;
  return s;
}

// A group of `Size` threads (one, a warp or a block) that shares a row.
template <int Size>
struct Group {
  static_assert(Size == 1 || Size % kWarp == 0);
  template <class V, class Op>
  static __device__ __forceinline__ V reduce(V value, Op op) {
    if constexpr (Size == 1) {
      return value;
    } else if constexpr (Size == kWarp) {
      return warp_reduce(value, op);
    } else {
      return block_reduce<Size>(value, op);
    }
  }

  template <class C>
  static __device__ __forceinline__ Top<C> merge_top(Top<C> top) {
    if constexpr (Size > 1) {
#pragma unroll
      for (int step = kWarp / 2; step > 0; step /= 2) {
        Top<C> other;
        other.first = __shfl_xor_sync(kFullWarp, top.first, step);
        other.second = __shfl_xor_sync(kFullWarp, top.second, step);
        other.at = __shfl_xor_sync(kFullWarp, top.at, step);
        other.undefined = __shfl_xor_sync(kFullWarp, static_cast<int>(top.undefined), step) != 0;
        top = merge(top, other);
      }
    }
    if constexpr (Size > kWarp) {
      __shared__ Top<C> partial[Size / kWarp];
      __syncthreads();  // the previous row's readers are done
      if (threadIdx.x % kWarp == 0) partial[threadIdx.x / kWarp] = top;
      __syncthreads();
      top = partial[0];
#pragma unroll
      for (int warp = 1; warp < Size / kWarp; ++warp) top = merge(top, partial[warp]);
    }
    return top;
  }
};

// Three places for a row's logits, with the same face: each(f) calls f(z, k) for the classes this thread looks after,
// in growing order of k. Where kKeeps holds, f may change z and the next each() sees it.

// A row of one's own in shared memory.
template <class C>
struct TileRow {
  static constexpr int kSize = 1;
  static constexpr bool kKeeps = true;
  C* z;
  int classes;

  template <class F>
  __device__ __forceinline__ void each(F&& f) {
    for (int k = 0; k < classes; ++k) f(z[k], k);
  }
};

// Read once, kept in registers.
template <class C, int Size, int PerThread>
struct RegisterRow {
  static constexpr int kSize = Size;
  static constexpr bool kKeeps = true;
  C z[PerThread];
  int classes;

  template <class T>
  __device__ __forceinline__ RegisterRow(const T* from, int count, C temperature) : classes(count) {
    each([&](C& value, int k) { value = widen(from[k]); });  // all loads before the first use
    if (temperature != C(1)) each([&](C& value, int) { value /= temperature; });
  }

  template <class F>
  __device__ __forceinline__ void each(F&& f) {
    const int lane = threadIdx.x % Size;
#pragma unroll
    for (int j = 0; j < PerThread; ++j) {
      if (lane + j * Size < classes) f(z[j], lane + j * Size);
    }
  }
};

// Read again for every pass: rows too long for registers.
template <class T, int Size>
struct StreamRow {
  static constexpr int kSize = Size;
  static constexpr bool kKeeps = false;
  const T* from;
  int classes;
  Compute<T> temperature;

  __device__ __forceinline__ StreamRow(const T* from_, int count, Compute<T> temperature_)
      : from(from_), classes(count), temperature(temperature_) {}

  template <class F>
  __device__ __forceinline__ void each(F&& f) {
    // Several loads in flight; float64's exp is too long to unroll without spilling.
#pragma unroll(sizeof(T) == 8 ? 1 : 4)
    for (int k = threadIdx.x % Size; k < classes; k += Size) {
      Compute<T> value = widen(from[k]);
      if (temperature != Compute<T>(1)) value /= temperature;
      f(value, k);
    }
  }
};

// A block holds one row, or four where a warp has one.
template <class Row>
constexpr int kRowThreads = Row::kSize == kWarp ? 4 * kWarp : Row::kSize;

template <class C, class Row>
__device__ __forceinline__ Top<C> find_top(Row& row) {
  Top<C> top = empty_top<C>();
  row.each([&](C& z, int k) { push(top, z, k); });
  return Group<Row::kSize>::merge_top(top);
}

// Few classes: a block takes as many rows as it has threads, staged through shared memory so that global accesses stay
// whole lines; then each thread walks its own row. The stride is odd, so the threads' banks differ.
constexpr int kFewClasses = 32;
constexpr int kTileRows = 128;
constexpr int kTileStride = kFewClasses + 1;
constexpr int kTileSize = kTileRows * kTileStride;

// i / classes for i < kTileRows * kFewClasses, by a multiplication; reciprocal = ceil(2^20 / classes).
FF_HD int tile_row(int i, unsigned reciprocal) {
  return static_cast<int>((static_cast<unsigned>(i) * reciprocal) >> 20);
}
inline unsigned tile_reciprocal(int classes) {
  return ((1u << 20) + static_cast<unsigned>(classes) - 1) / static_cast<unsigned>(classes);
}

// A full tile's bytes are a multiple of 16, so the tensor's alignment carries over to every tile.
template <class T>
__device__ __forceinline__ void load_tile(Compute<T>* tile, const T* from, int rows, int classes, unsigned reciprocal,
                                          Compute<T> temperature, bool aligned) {
  using P = Pack<T>;
  const int size = rows * classes;
  for (int base = threadIdx.x * P::kSize; base < size; base += kTileRows * P::kSize) {
    const P pack = load_pack<P>(from + base, size - base, aligned);
#pragma unroll
    for (int i = 0; i < P::kSize; ++i) {
      if (base + i >= size) break;
      const int row = tile_row(base + i, reciprocal);
      const Compute<T> value = widen(pack.at[i]);
      tile[row * kTileStride + (base + i - row * classes)] = temperature != Compute<T>(1) ? value / temperature : value;
    }
  }
}

template <class T>
__device__ __forceinline__ void store_tile(T* to, const Compute<T>* tile, int rows, int classes, unsigned reciprocal,
                                           bool aligned) {
  using P = Pack<T>;
  const int size = rows * classes;
  for (int base = threadIdx.x * P::kSize; base < size; base += kTileRows * P::kSize) {
    P pack;
#pragma unroll
    for (int i = 0; i < P::kSize; ++i) {
      const int at = base + i < size ? base + i : base;
      const int row = tile_row(at, reciprocal);
      pack.at[i] = narrow<T>(tile[row * kTileStride + (at - row * classes)]);
    }
    store_pack(to + base, pack, size - base, aligned);
  }
}

}  // namespace ff::cuda
