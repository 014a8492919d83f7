// What one thread does with one column of shadow scores, the models' scores of one (sample, query): moments and order
// statistics of the two sides, OUT (models trained without the sample) and IN.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "common/launch.cuh"

namespace ff::cuda {

// Integers in the order of the values: infinity and its neighbour beyond included, -0 and 0 alike.
template <class T>
struct Ordered {
  using Key = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
  using Width = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
  static constexpr Width kSign = Width(1) << (8 * sizeof(T) - 1);

  __device__ __forceinline__ static Key key(T x) {
    Width bits;
    memcpy(&bits, &x, sizeof bits);
    return static_cast<Key>((bits & kSign) != 0 ? Width(0) - (bits ^ kSign) : bits);
  }
  __device__ __forceinline__ static T value(Key key) {
    const Width bits = key < 0 ? (Width(0) - static_cast<Width>(key)) | kSign : static_cast<Width>(key);
    T x;
    memcpy(&x, &bits, sizeof x);
    return x;
  }
};

template <class T>
struct Shadow {
  const T* scores;     // [models, samples, queries]
  const bool* member;  // [models, samples]
  int64_t samples, queries;
  int models;
};

// Scores of one column, model after model; consecutive threads have consecutive columns.
template <class T>
struct Column {
  const T* scores;
  const bool* member;
  int64_t score_step, member_step;
  int models;

  __device__ __forceinline__ Column(const Shadow<T>& s, int64_t sample, int64_t query)
      : scores(s.scores + sample * s.queries + query),
        member(s.member + sample),
        score_step(s.samples * s.queries),
        member_step(s.samples),
        models(s.models) {}

  // body(score, whether IN)
  template <class Body>
  __device__ __forceinline__ void each(Body&& body) const {
    const T* score = scores;
    const bool* in = member;
#pragma unroll 8
    for (int m = 0; m < models; ++m) {
      body(*score, *in);
      score += score_step;
      in += member_step;
    }
  }
};

template <class T>
__device__ __forceinline__ bool is_finite(T x) {
  return x - x == T(0);
}

__device__ __forceinline__ bool is_infinite(double x) { return x == x && !is_finite(x); }

// Count, mean and sum of squared distances of one side, in float64. Values are taken relative to the side's first: the
// mean is then at most sqrt(count) standard deviations away from the origin, so that sums of squares lose no more than
// that, where E[x^2] - mean^2 can lose everything.
template <class T>
struct Moments {
  double shift = 0.0, sum = 0.0, square = 0.0;
  T low = T(0), high = T(0);
  int count = 0;

  __device__ __forceinline__ void push(T x) {
    const double wide = static_cast<double>(x);
    if (count == 0) {
      shift = is_finite(wide) ? wide : 0.0;
      low = high = x;
    }
    const double d = wide - shift;
    sum += d;
    square += d * d;
    low = x < low ? x : low;
    high = x > high ? x : high;
    ++count;
  }
  __device__ __forceinline__ double mean() const { return shift + sum / count; }
  // Sum of squared distances to the mean.
  __device__ __forceinline__ double spread() const {
    const double found = square - sum * (sum / count);
    return found < 0.0 ? 0.0 : found;  // rounding; a NaN stays
  }
};

// The same relative to the mean that a first pass found, which then is corrected: what float64 scores need. The squares
// are all of one sign, so their sum carries what each addition lost (Kahan, 1965).
struct Refined {
  double mean, sum = 0.0, square = 0.0, lost = 0.0;

  __device__ __forceinline__ explicit Refined(double first_mean) : mean(first_mean) {}
  __device__ __forceinline__ void push(double x) {
    const double d = x - mean;
    sum += d;
    const double next = d * d - lost, total = square + next;
    lost = (total - square) - next;
    square = total;
  }
  __device__ __forceinline__ void finish(int count) {
    const double correction = sum / count;
    const double found = square - sum * correction;
    square = found < 0.0 ? 0.0 : found;
    if (is_finite(correction)) mean += correction;
  }
};

struct Side {
  double mean = 0.0, spread = 0.0;  // spread: sum of squared distances to the mean
  int count = 0;
};

template <class T>
struct Sides {
  Side out, in;
  T out_low, out_high, in_low, in_high;
};

// Moments of both sides, without model `left_out` (-1: with all).
template <class T>
__device__ __forceinline__ Sides<T> column_sides(const Column<T>& column, int left_out) {
  Moments<T> out, in;
  int m = 0;
  column.each([&](T x, bool is_in) {
    if (m++ == left_out) return;
    if (is_in) {
      in.push(x);
    } else {
      out.push(x);
    }
  });
  Sides<T> sides = {
      {out.mean(), out.spread(), out.count}, {in.mean(), in.spread(), in.count}, out.low, out.high, in.low, in.high};
  if constexpr (std::is_same_v<T, double>) {
    Refined fine_out(sides.out.mean), fine_in(sides.in.mean);
    m = 0;
    column.each([&](T x, bool is_in) {
      if (m++ == left_out) return;
      if (is_in) {
        fine_in.push(x);
      } else {
        fine_out.push(x);
      }
    });
    fine_out.finish(out.count);
    fine_in.finish(in.count);
    sides.out.mean = fine_out.mean;
    sides.out.spread = fine_out.square;
    sides.in.mean = fine_in.mean;
    sides.in.spread = fine_in.square;
  }
  return sides;
}

// The value of rank k and those of the next two ranks of one side; what lies beyond the last is infinite.
template <class T>
struct Three {
  T at, next, after;
};

// Search for the value of rank k among a side's scores, in rounds of counting: of all keys, those in (low, high] are
// left, and scores of rank [below, reached) have them. Odd rounds halve the keys, so that there are at most twice as
// many rounds as bits; even rounds take the share of scores for the share of the interval, which on scores that are
// spread evenly finds the place in a few rounds.
template <class T>
struct Search {
  using O = Ordered<T>;
  using Key = typename O::Key;
  Key low, high;
  int below, reached, rank;
  T pivot;

  __device__ __forceinline__ Search(T lowest, T highest, int count, int k)
      : low(O::key(lowest) - 1), high(O::key(highest)), below(0), reached(count), rank(k), pivot(highest) {}

  __device__ __forceinline__ bool done() const {
    return reached - below <= 1 || static_cast<typename O::Width>(high) - static_cast<typename O::Width>(low) <= 1;
  }
  __device__ __forceinline__ void aim(int round) {
    if (done()) return;
    using Width = typename O::Width;
    const Width width = static_cast<Width>(high) - static_cast<Width>(low);
    Key at = static_cast<Key>(static_cast<Width>(low) + width / 2);
    if (round % 2 == 0) {
      const T from = O::value(low + 1), to = O::value(high);
      const float share = (static_cast<float>(rank - below) + 0.5f) / static_cast<float>(reached - below);
      const T guess = from + (to - from) * static_cast<T>(share);
      // infinite ends make no sensible guess
      if (is_finite(guess) && O::key(guess) > low && O::key(guess) < high) at = O::key(guess);
    }
    pivot = O::value(at);
  }
  // `count` scores are <= pivot.
  __device__ __forceinline__ void narrow(int count) {
    if (done()) return;
    if (count > rank) {
      high = O::key(pivot);
      reached = count;
    } else {
      low = O::key(pivot);
      below = count;
    }
  }
};

// The two smallest of the scores above a search's interval, and its smallest inside.
template <class T>
struct Nearest {
  T below, limit, at, next, after;

  __device__ __forceinline__ explicit Nearest(const Search<T>& s)
      : below(Ordered<T>::value(s.low)),
        limit(Ordered<T>::value(s.high)),
        at(static_cast<T>(__builtin_huge_val())),
        next(at),
        after(at) {}

  __device__ __forceinline__ void push(T x) {
    // the key below -infinity is a NaN: "not at most" where "above" would be false
    if (x <= limit) {
      if (!(x <= below) && x < at) at = x;
    } else if (x < next) {
      after = next;
      next = x;
    } else if (x < after) {
      after = x;
    }
  }
  __device__ __forceinline__ Three<T> finish(const Search<T>& s) const {
    const bool twice = s.reached > s.rank + 1, thrice = s.reached > s.rank + 2;
    return {at, twice ? at : next, thrice ? at : twice ? next : after};
  }
};

// Of both sides, from the given rank each. No score of the column may be NaN on a side whose result counts.
template <class T>
__device__ __forceinline__ void column_ranks(const Column<T>& column, const Sides<T>& sides, int out_rank, int in_rank,
                                             Three<T>& out, Three<T>& in) {
  Search<T> out_search(sides.out_low, sides.out_high, sides.out.count, out_rank);
  Search<T> in_search(sides.in_low, sides.in_high, sides.in.count, in_rank);
  for (int round = 0; !(out_search.done() && in_search.done()); ++round) {
    out_search.aim(round);
    in_search.aim(round);
    int all = 0, inside = 0;
    column.each([&](T x, bool is_in) {
      const bool counted = x <= (is_in ? in_search.pivot : out_search.pivot);
      all += counted;
      inside += counted && is_in;
    });
    out_search.narrow(all - inside);
    in_search.narrow(inside);
  }
  Nearest<T> out_nearest(out_search), in_nearest(in_search);
  column.each([&](T x, bool is_in) {
    if (is_in) {
      in_nearest.push(x);
    } else {
      out_nearest.push(x);
    }
  });
  out = out_nearest.finish(out_search);
  in = in_nearest.finish(in_search);
}

// The median from the two middle values.
__device__ __forceinline__ double middle(double mean, double a, double b) {
  return mean == mean ? (a + b) / 2.0 : mean;  // none, a NaN, or both infinities
}

constexpr int kColumnThreads = 128;

inline ScalarType score_dtype(const Tensor& t, const char* op, const char* name) {
  const ScalarType dtype = t.scalar_type();
  if (dtype != ScalarType::Float && dtype != ScalarType::Double) {
    fail("fastforget.", op, ": ", name, " has dtype ", torch::headeronly::toString(dtype),
         "; accepted: float32, float64");
  }
  if (t.dim() != 3) fail("fastforget.", op, ": ", name, " has ", t.dim(), " dimensions; expected 3");
  return dtype;
}

template <class Body>
void with_score(ScalarType dtype, Body&& body) {
  if (dtype == ScalarType::Float) {
    body(TypeTag<float>{});
  } else {
    body(TypeTag<double>{});
  }
}

template <class T>
Shadow<T> shadow_of(const Tensor& scores, const Tensor& member, const char* op) {
  const int64_t models = scores.size(0), samples = scores.size(1);
  if (models > INT32_MAX) fail("fastforget.", op, ": scores has ", models, " models; accepted: at most ", INT32_MAX);
  check_layout(scores, scores.scalar_type(), scores.numel(), op, "scores");
  check_layout(member, ScalarType::Bool, models * samples, op, "member");
  return {data<const T>(scores), data<const bool>(member), samples, scores.size(2), static_cast<int>(models)};
}

// The search for a median reads its columns some ten times: no more of them at a time than the L1 caches keep.
inline unsigned column_blocks(const DeviceScope& scope, int64_t columns, int64_t models, size_t size, bool median) {
  const unsigned all = scope.blocks(ceil_div(columns, kColumnThreads), kColumnThreads);
  if (!median) return all;
  constexpr int64_t kCache = 192 << 10;
  const int64_t block = std::max<int64_t>(1, models) * kColumnThreads * static_cast<int64_t>(size + 1);
  return std::min(all, static_cast<unsigned>(std::clamp<int64_t>(kCache / block, 1, 16)) * scope.multiprocessors());
}

}  // namespace ff::cuda
