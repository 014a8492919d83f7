// Statistics of neurons and channels (neuron_stats). Compiled once per instruction set.
//
// Many lanes hold short sums in the compute type and hand them on to sums in double. Memory is read as one stream: two
// streams within a row halved the bandwidth of memory.
//
// The vector code writes a * b + c for one fused operation. Without the fusion it is less accurate.
// flags (avx2, avx512): -ffp-contract=fast
#include <utility>

#include "common/storage.h"
#include "common/table.h"

#if FF_ISA_LEVEL >= 3
#if defined(__GNUC__) && !defined(__clang__)
// gcc 12's AVX-512 headers start from a deliberately undefined register and then warn about it.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>
#endif

namespace ff::FF_ISA {
namespace {

constexpr int kVectorBytes = FF_ISA_LEVEL >= 4 ? 64 : FF_ISA_LEVEL == 3 ? 32 : 16;
// Vectors of each sum: as many as fit into the registers, and what hides an addition's latency.
constexpr int kSums = 4;
// Additions to each lane before the sums go to double. Equal values err the same way each time, so long runs show.
constexpr int kRun = 8;
// A segment's last run may be that long, which spares a short one.
constexpr int kLongRun = 12;
// Blocks of runs whose sums are added up before they join a segment's. One chain through a long segment, 64 blocks at
// the narrowest level, erred by more than twice plain PyTorch's float64 now and then.
constexpr int kBlocks = 8;
// Bytes that are asked for ahead of their use. A sum has three operations a vector that wait for memory, so that the
// core looks less far ahead than a plain read does. From memory, rows of 4096 take 15 (AVX2) and 10 % (AVX-512) less
// than with 4096 bytes; from 14336 on AVX-512 loses again.
constexpr int64_t kAhead = FF_ISA_LEVEL >= 3 ? 10240 : 0;
constexpr int64_t kLine = 64;

template <class C>
struct VectorOf {
  typedef C type __attribute__((vector_size(kVectorBytes)));
};
template <class C>
using Vector = typename VectorOf<C>::type;
template <class C>
constexpr int kWidth = kVectorBytes / static_cast<int>(sizeof(C));

template <class C>
FF_INLINE Vector<C> load(const C* from) {
  Vector<C> v;
  __builtin_memcpy(&v, from, sizeof v);
  return v;
}

template <class C>
FF_INLINE Vector<C> magnitudes_of(Vector<C> x) {
  if constexpr (sizeof(C) == 4) {
    typedef int32_t Bits __attribute__((vector_size(kVectorBytes)));
    return (Vector<C>)((Bits)x & 0x7fffffff);
  } else {
    typedef int64_t Bits __attribute__((vector_size(kVectorBytes)));
    return (Vector<C>)((Bits)x & INT64_MAX);
  }
}

// Read from memory once: left alone, gcc reads anew for each of the two uses, and in cache the reads are the limit.
template <class C>
FF_INLINE Vector<C> load_once(const C* from) {
  Vector<C> v = load(from);
#if defined(__AVX__)
  asm("" : "+v"(v));
#endif
  return v;
}

// Sums of lanes in double: with them a sum of any length errs like one of a few additions.
typedef double Doubles __attribute__((vector_size(kVectorBytes)));
constexpr int kDoubles = kVectorBytes / 8;

// The lower or upper half in double. gcc takes __builtin_convertvector apart here.
template <int... I>
FF_INLINE Doubles half_in_double(Vector<float> v, bool high, std::integer_sequence<int, I...>) {
  typedef float Half __attribute__((vector_size(kVectorBytes / 2)));
  const Half half = high ? __builtin_shufflevector(v, v, (I + kDoubles)...) : __builtin_shufflevector(v, v, I...);
#if FF_ISA_LEVEL >= 4
  return (Doubles)_mm512_cvtps_pd((__m256)half);
#elif FF_ISA_LEVEL == 3
  return (Doubles)_mm256_cvtps_pd((__m128)half);
#else
  return __builtin_convertvector(half, Doubles);
#endif
}

template <class C>
FF_INLINE Doubles in_double(Vector<C> v) {
  if constexpr (sizeof(C) == 8) {
    return v;
  } else {
    constexpr auto lanes = std::make_integer_sequence<int, kDoubles>();
    return half_in_double(v, false, lanes) + half_in_double(v, true, lanes);
  }
}

typedef double Two __attribute__((vector_size(16)));

FF_INLINE Two fold(Doubles v) {
  Two parts[kDoubles / 2];
  __builtin_memcpy(parts, &v, sizeof parts);
#pragma GCC unroll 2
  for (int width = kDoubles / 4; width > 0; width /= 2) {
#pragma GCC unroll 2
    for (int j = 0; j < width; ++j) parts[j] += parts[j + width];
  }
  return parts[0];
}

// The sums of the lanes of `a` and of `b`; the last step is one for both.
FF_INLINE Two totals(Doubles a, Doubles b) {
  const Two x = fold(a), y = fold(b);
  return __builtin_shufflevector(x, y, 0, 2) + __builtin_shufflevector(x, y, 1, 3);
}

// `count` < kWidth<C> values, the other lanes 0; no byte beyond them is read.
template <class C>
FF_INLINE Vector<C> load_few(const C* from, int64_t count) {
#if FF_ISA_LEVEL >= 4
  const auto lanes = (1u << count) - 1;
  if constexpr (sizeof(C) == 4) return (Vector<C>)_mm512_maskz_loadu_ps(static_cast<__mmask16>(lanes), from);
  if constexpr (sizeof(C) == 8) return (Vector<C>)_mm512_maskz_loadu_pd(static_cast<__mmask8>(lanes), from);
#elif FF_ISA_LEVEL == 3
  if constexpr (sizeof(C) == 4) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return (Vector<C>)_mm256_maskload_ps(from, _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), lane));
  } else {
    const __m256i lane = _mm256_setr_epi64x(0, 1, 2, 3);
    return (Vector<C>)_mm256_maskload_pd(from, _mm256_cmpgt_epi64(_mm256_set1_epi64x(count), lane));
  }
#else
  Vector<C> v = {};
  for (int j = 0; j < count; ++j) v[j] = from[j];
  return v;
#endif
}

// At most kLongRun * kSums vectors, and what is left over of one.
template <bool kFromMemory, class C>
FF_INLINE void add_run(const C* x, int64_t n, Doubles& magnitude, Doubles& square) {
  constexpr int kW = kWidth<C>;
  Vector<C> magnitudes[kSums] = {}, squares[kSums] = {};
  const auto add = [&](Vector<C> v, int sum) {
    magnitudes[sum] += magnitudes_of<C>(v);
    squares[sum] += v * v;
  };
  int64_t i = 0;
  for (; i + kSums * kW <= n; i += kSums * kW) {
    if constexpr (kFromMemory && kAhead > 0) {
      const char* ahead = reinterpret_cast<const char*>(x + i) + kAhead;
#pragma GCC unroll 4
      for (int k = 0; k < kSums * kVectorBytes; k += kLine) __builtin_prefetch(ahead + k);
    }
#pragma GCC unroll 4
    for (int sum = 0; sum < kSums; ++sum) add(load_once(x + i + sum * kW), sum);
  }
  for (; i + kW <= n; i += kW) add(load_once(x + i), 0);
  if (i < n) add(load_few(x + i, n - i), 1);
  magnitude += in_double<C>((magnitudes[0] + magnitudes[1]) + (magnitudes[2] + magnitudes[3]));
  square += in_double<C>((squares[0] + squares[1]) + (squares[2] + squares[3]));
}

// For what overflowed float32 on the way: a mean can be finite where a sum of a few values is not.
template <class S>
__attribute__((noinline, cold)) double sum_in_double(const S* x, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(absolute(widen(x[i])));
  return sum;
}

template <class S>
FF_INLINE bool overflowed(double sum) {
  return sizeof(S) < 8 && __builtin_expect(!(sum <= 0x1.fffffffffffffp1023), 0);
}

template <class S>
FF_INLINE void add_segment(const S* x, int64_t n, double& magnitude, double& square) {
  using C = Compute<S>;
  constexpr int64_t kElements = kRun * kSums * kWidth<C>, kMost = kLongRun * kSums * kWidth<C>, kBlock = 16 * kElements;
  constexpr int64_t kChunk = kBlocks * kBlock;
  for (int64_t chunk = 0; chunk < n; chunk += kChunk) {
    const int64_t chunk_end = n - chunk < kChunk ? n : chunk + kChunk;
    double chunk_magnitude = 0, chunk_square = 0;
    for (int64_t block = chunk; block < chunk_end; block += kBlock) {
      const int64_t end = chunk_end - block < kBlock ? chunk_end : block + kBlock;
      Doubles magnitudes = {}, squares = {};
      for (int64_t at = block, count = 0; at < end; at += count) {
        count = end - at <= kMost ? end - at : kElements;
        if constexpr (kStaged<S>) {
          alignas(64) C run[kMost];
          load_block(x + at, run, count);
          add_run<false, C>(run, count, magnitudes, squares);
        } else {
          add_run<true, C>(x + at, count, magnitudes, squares);
        }
      }
      const Two sums = totals(magnitudes, squares);
      chunk_magnitude += overflowed<S>(sums[0]) ? sum_in_double(x + block, end - block) : sums[0];
      chunk_square += sums[1];
    }
    magnitude += chunk_magnitude;
    square += chunk_square;
  }
}

template <class S>
void segments(const void* x_, const RowsShape& shape, int64_t outer0, int64_t outer1, int64_t row0, int64_t row1,
              int64_t from, int64_t to, double* magnitudes, double* squares) {
  for (int64_t o = outer0; o < outer1; ++o) {
    const S* x = static_cast<const S*>(x_) + (o * shape.rows + row0) * shape.inner + from;
    for (int64_t r = row0; r < row1; ++r, x += shape.inner) add_segment(x, to - from, magnitudes[r], squares[r]);
  }
}

// ---- short rows -----------------------------------------------------------------------------------------------------

constexpr int64_t kColumns = 512;
constexpr int kStacked = 8;      // rows of memory added up before their sum goes to double
constexpr int64_t kDepth = 128;  // rows of memory added up before the columns' sums go to the rows'

// magnitudes[i], squares[i] += over kCount rows of memory, `stride` apart.
template <class C, int kCount>
FF_INLINE void add_stack(const C* x, int64_t stride, int64_t width, double* magnitudes, double* squares) {
  constexpr int kW = kWidth<C>;
  int64_t i = 0;
  for (; i + kW <= width; i += kW) {
    Vector<C> magnitude[kCount], square[kCount];
#pragma GCC unroll 8
    for (int j = 0; j < kCount; ++j) {
      const Vector<C> v = load(x + j * stride + i);
      magnitude[j] = magnitudes_of<C>(v);
      square[j] = v * v;
    }
#pragma GCC unroll 4
    for (int step = 1; step < kCount; step *= 2) {
#pragma GCC unroll 8
      for (int j = 0; j < kCount; j += 2 * step) {
        magnitude[j] += magnitude[j + step];
        square[j] += square[j + step];
      }
    }
#pragma omp simd
    for (int lane = 0; lane < kW; ++lane) {
      magnitudes[i + lane] += static_cast<double>(magnitude[0][lane]);
      squares[i + lane] += static_cast<double>(square[0][lane]);
    }
  }
  for (; i < width; ++i) {
    for (int j = 0; j < kCount; ++j) {
      const C value = x[j * stride + i];
      magnitudes[i] += static_cast<double>(absolute(value));
      squares[i] += static_cast<double>(value * value);
    }
  }
}

// The same over `count` rows.
template <class S>
FF_INLINE void add_rows(const S* x, int64_t stride, int64_t count, int64_t width, double* magnitudes, double* squares) {
  using C = Compute<S>;
  int64_t o = 0;
  if constexpr (kStaged<S>) {
    alignas(64) C tile[kStacked][kColumns];
    for (; o + kStacked <= count; o += kStacked) {
      for (int j = 0; j < kStacked; ++j) load_block(x + (o + j) * stride, tile[j], width);
      add_stack<C, kStacked>(tile[0], kColumns, width, magnitudes, squares);
    }
    for (; o < count; ++o) {
      load_block(x + o * stride, tile[0], width);
      add_stack<C, 1>(tile[0], kColumns, width, magnitudes, squares);
    }
  } else {
    for (; o + kStacked <= count; o += kStacked)
      add_stack<C, kStacked>(x + o * stride, stride, width, magnitudes, squares);
    for (; o < count; ++o) add_stack<C, 1>(x + o * stride, stride, width, magnitudes, squares);
  }
}

template <class S>
void columns(const void* x_, const RowsShape& shape, int64_t outer0, int64_t outer1, int64_t row0, int64_t row1,
             double* magnitudes, double* squares) {
  const int64_t inner = shape.inner, stride = shape.rows * inner;
  const S* x = static_cast<const S*>(x_) + outer0 * stride;
  alignas(64) double magnitude[kColumns], square[kColumns];
  // Rows [row, row + rows) from `copies` runs of them, each sum in four chains.
  const auto fold = [&](int64_t row, int64_t rows, int64_t copies) {
    for (int64_t r = 0; r < rows; ++r) {
      double ms[4] = {}, qs[4] = {};
      int64_t chain = 0;
      for (int64_t copy = 0; copy < copies; ++copy) {
        const int64_t from = (copy * rows + r) * inner;
        for (int64_t i = from; i < from + inner; ++i, ++chain) {
          ms[chain % 4] += magnitude[i];
          qs[chain % 4] += square[i];
        }
      }
      magnitudes[row + r] += (ms[0] + ms[1]) + (ms[2] + ms[3]);
      squares[row + r] += (qs[0] + qs[1]) + (qs[2] + qs[3]);
    }
  };
  const auto clear = [&] {
    for (int64_t i = 0; i < kColumns; ++i) magnitude[i] = square[i] = 0;
  };
  int64_t count = outer1 - outer0;
  if (row1 - row0 == shape.rows && 2 * stride <= kColumns && count > 1) {
    // Few columns: several outer indices side by side fill the vectors.
    const int64_t copies = kColumns / stride < count ? kColumns / stride : count, whole = count / copies;
    for (int64_t o = 0; o < whole; o += kDepth) {
      clear();
      add_rows(x + o * copies * stride, copies * stride, whole - o < kDepth ? whole - o : kDepth, copies * stride,
               magnitude, square);
      fold(0, shape.rows, copies);
    }
    x += whole * copies * stride;
    count -= whole * copies;
  }
  const int64_t rows_at_once = kColumns / inner;
  for (int64_t row = row0; row < row1; row += rows_at_once) {
    const int64_t rows = row1 - row < rows_at_once ? row1 - row : rows_at_once;
    for (int64_t o = 0; o < count; o += kDepth) {
      clear();
      add_rows(x + o * stride + row * inner, stride, count - o < kDepth ? count - o : kDepth, rows * inner, magnitude,
               square);
      fold(row, rows, 1);
    }
  }
  x = static_cast<const S*>(x_);
  for (int64_t r = row0; r < row1; ++r) {
    if (!overflowed<S>(magnitudes[r])) continue;
    magnitudes[r] = 0;
    for (int64_t o = outer0; o < outer1; ++o) magnitudes[r] += sum_in_double(x + o * stride + r * inner, inner);
  }
}

}  // namespace

constinit const MaskRowsTable mask_rows_table = {
    {segments<float>, segments<BFloat16>, segments<Float16>, segments<double>},
    {columns<float>, columns<BFloat16>, columns<Float16>, columns<double>},
};

}  // namespace ff::FF_ISA
