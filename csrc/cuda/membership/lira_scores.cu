// LiRA's log-likelihood ratios on CUDA: of given targets against given statistics, or of every shadow model against the
// others (leave one out). For the latter a first kernel keeps each column's statistics with all models; the second one
// takes a model out of them, instead of collecting them once for every model.
#include "cuda/membership/lira_columns.cuh"

namespace ff::cuda {
namespace {

enum Mode { kOnline = 0, kOneSided = 1, kDensity = 2 };

// What leaving one score out needs of each side, as columns of float64: a plane a quantity.
enum Plane { kCount, kMean, kSpread, kAt, kNext, kAfter, kPlanes };

__device__ __forceinline__ void keep_side(double* planes, int64_t columns, const Side& side) {
  planes[kCount * columns] = side.count;
  planes[kMean * columns] = side.mean;
  planes[kSpread * columns] = side.spread;
}

template <class T>
__device__ __forceinline__ void keep_ranks(double* planes, int64_t columns, const Three<T>& ranks) {
  planes[kAt * columns] = ranks.at;
  planes[kNext * columns] = ranks.next;
  planes[kAfter * columns] = ranks.after;
}

template <class T, bool Median>
__global__ void __launch_bounds__(kColumnThreads) keep_kernel(const __grid_constant__ Shadow<T> s, double* kept) {
  const int64_t columns = s.samples * s.queries;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kColumnThreads;
#pragma unroll 1
  for (int64_t c = static_cast<int64_t>(blockIdx.x) * kColumnThreads + threadIdx.x; c < columns; c += stride) {
    const int64_t sample = c / s.queries;
    const Column<T> column(s, sample, c - sample * s.queries);
    const Sides<T> sides = column_sides(column, -1);
    keep_side(kept + c, columns, sides.out);
    keep_side(kept + kPlanes * columns + c, columns, sides.in);
    if constexpr (Median) {
      // the rank below the middle, so that the two or three values are there that can be a middle without one score
      Three<T> ranks_out, ranks_in;
      const int half_out = sides.out.count / 2, half_in = sides.in.count / 2;
      column_ranks(column, sides, half_out > 0 ? half_out - 1 : 0, half_in > 0 ? half_in - 1 : 0, ranks_out, ranks_in);
      keep_ranks(kept + c, columns, ranks_out);
      keep_ranks(kept + kPlanes * columns + c, columns, ranks_in);
    }
  }
}

struct Rule {
  int mode;
  double floor;
  int64_t min_count;
};

// One side as a score uses it.
struct Normal {
  double center, variance, count;
};

__device__ __forceinline__ double at_least(double x, double floor) { return x < floor ? floor : x; }

__device__ __forceinline__ double log_ratio(double t, const Normal& out, const Normal& in, const Rule& rule) {
  const double least = static_cast<double>(rule.min_count);
  if (!(out.count >= least)) return __builtin_nan("");
  const double variance_out = at_least(out.variance, rule.floor);
  const double z_out = (t - out.center) / sqrt(variance_out);
  if (rule.mode == kOneSided) return z_out;
  if (rule.mode == kDensity) return 0.5 * z_out * z_out + 0.5 * log(6.283185307179586 * variance_out);
  if (!(in.count >= least)) return __builtin_nan("");
  const double variance_in = at_least(in.variance, rule.floor);
  const double z_in = (t - in.center) / sqrt(variance_in);
  return 0.5 * (z_out * z_out - z_in * z_in) + 0.5 * log(variance_out / variance_in);
}

// Statistics that the caller gives, for targets that are not among the shadow models.
template <class T>
struct Given {
  const T* target;  // [rows, samples, queries]
  const T* center;  // [2, samples, queries]
  const T* variance;
  const int64_t* count;  // [2, samples]
  int64_t samples, queries, rows;
  bool one_variance;  // [2] for all columns

  struct Here {
    const T* target;
    int64_t step;
    Normal out, in;
  };
  __device__ __forceinline__ Here at(int64_t sample, int64_t query) const {
    const int64_t columns = samples * queries, c = sample * queries + query;
    const int64_t v = one_variance ? 0 : c, v_step = one_variance ? 1 : columns;
    return {target + c,
            columns,
            {static_cast<double>(center[c]), static_cast<double>(variance[v]), static_cast<double>(count[sample])},
            {static_cast<double>(center[columns + c]), static_cast<double>(variance[v_step + v]),
             static_cast<double>(count[samples + sample])}};
  }
  __device__ __forceinline__ double score(const Here& here, int64_t row, const Rule& rule) const {
    return log_ratio(static_cast<double>(here.target[row * here.step]), here.out, here.in, rule);
  }
};

// Every shadow model in turn against the others, from the statistics with all of them.
template <class T, bool Median>
struct LeaveOneOut {
  Shadow<T> shadow;
  const double* kept;  // [2, kPlanes, columns]
  const T* variance;   // [2], for all columns, or null
  int64_t samples, queries, rows;

  struct Half {
    double count, mean, spread, at, next, after;
  };
  // Value by value: a choice between two objects is one between addresses, and puts both into local memory.
  __device__ __forceinline__ static Half pick(bool first, const Half& a, const Half& b) {
    return {first ? a.count : b.count, first ? a.mean : b.mean, first ? a.spread : b.spread,
            first ? a.at : b.at,       first ? a.next : b.next, first ? a.after : b.after};
  }
  __device__ __forceinline__ static Normal pick(bool first, const Normal& a, const Normal& b) {
    return {first ? a.center : b.center, first ? a.variance : b.variance, first ? a.count : b.count};
  }
  struct Here {
    Column<T> column;
    Half out, in;
  };
  __device__ __forceinline__ Half half(int64_t c, int which) const {
    const int64_t columns = samples * queries;
    const double* const planes = kept + which * kPlanes * columns + c;
    Half h = {planes[kCount * columns], planes[kMean * columns], planes[kSpread * columns], 0.0, 0.0, 0.0};
    if constexpr (Median) {
      h.at = planes[kAt * columns];
      h.next = planes[kNext * columns];
      h.after = planes[kAfter * columns];
    }
    return h;
  }
  __device__ __forceinline__ Here at(int64_t sample, int64_t query) const {
    const int64_t c = sample * queries + query;
    return {Column<T>(shadow, sample, query), half(c, 0), half(c, 1)};
  }

  __device__ __forceinline__ static Normal whole(const Half& h) {
    const bool odd = static_cast<int64_t>(h.count) % 2 != 0;
    const double one = h.count >= 2.0 ? h.next : h.at;
    return {Median ? middle(h.mean, odd ? one : h.at, odd ? one : h.next) : h.mean, h.spread / h.count, h.count};
  }
  // Without `x`, which is one of its values. The subtraction from the spread is safe while at least half of it stays;
  // where it is not, but for a column of equal values, the column is read again.
  __device__ __forceinline__ static Normal without(const Half& h, double x, int left_out, bool is_in,
                                                   const Column<T>& column) {
    const double left = h.count - 1.0;
    const double d = x - h.mean;
    double mean = h.mean - d / left, spread = h.spread - d * d * (h.count / left);
    const bool lossy = is_finite(h.spread) ? !(spread >= 0.5 * h.spread) : is_infinite(x) || is_infinite(h.spread);
    if (lossy) {
      const Sides<T> sides = column_sides(column, left_out);
      mean = is_in ? sides.in.mean : sides.out.mean;
      spread = is_in ? sides.in.spread : sides.out.spread;
    }
    double center = mean;
    if constexpr (Median) {
      // of two equal values it does not matter which one goes
      const double low = x <= h.at ? h.next : h.at;
      const double high = x <= h.next ? h.after : h.next;
      center = middle(mean, low, static_cast<int64_t>(h.count) % 2 != 0 ? high : low);
    }
    return {center, spread / left, left};
  }
  __device__ __forceinline__ double score(const Here& here, int64_t row, const Rule& rule) const {
    const double t = static_cast<double>(here.column.scores[row * here.column.score_step]);
    const bool is_in = here.column.member[row * here.column.member_step];
    const Half mine = pick(is_in, here.in, here.out), theirs = pick(is_in, here.out, here.in);
    const Normal own = without(mine, t, static_cast<int>(row), is_in, here.column);
    const Normal other = whole(theirs);
    Normal out = pick(is_in, other, own), in = pick(is_in, own, other);
    if (variance != nullptr) {
      out.variance = static_cast<double>(variance[0]);
      in.variance = static_cast<double>(variance[1]);
    }
    return log_ratio(t, out, in, rule);
  }
};

// Scores of kScoreRows targets at a time for a group of samples; the mean over the queries is taken in their order.
constexpr int kScoreRows = 8;

// Left to itself the compiler stops at 80 registers for sm_80 and spills; two blocks leave it 128.
template <class T, class Source>
__global__ void __launch_bounds__(kThreads, 2)
    score_kernel(const __grid_constant__ Source source, const __grid_constant__ Rule rule, T* out) {
  __shared__ double partial[kScoreRows][kThreads];
  const int lanes = static_cast<int>(source.queries < kThreads ? (source.queries > 0 ? source.queries : 1) : kThreads);
  const int together = kThreads / lanes;  // samples a block takes at a time
  const int mine = static_cast<int>(threadIdx.x) / lanes, lane = static_cast<int>(threadIdx.x) % lanes;
  const int64_t groups = (source.samples + together - 1) / together;
  const int64_t chunks = (source.rows + kScoreRows - 1) / kScoreRows;
#pragma unroll 1
  for (int64_t item = blockIdx.x; item < groups * chunks; item += gridDim.x) {
    const int64_t first_row = item / groups * kScoreRows, first = item % groups * together;
    const int rows = static_cast<int>(source.rows - first_row < kScoreRows ? source.rows - first_row : kScoreRows);
    const bool works = mine < together && first + mine < source.samples;
    __syncthreads();  // the previous item's sums are read
    for (int row = 0; row < rows; ++row) partial[row][threadIdx.x] = 0.0;
    if (works) {
#pragma unroll 1
      for (int64_t query = lane; query < source.queries; query += lanes) {
        const auto here = source.at(first + mine, query);
#pragma unroll 1
        for (int row = 0; row < rows; ++row) {
          partial[row][threadIdx.x] += source.score(here, first_row + row, rule);
        }
      }
    }
    __syncthreads();
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < rows * together; i += kThreads) {
      const int row = i / together, sample = i % together;
      if (first + sample >= source.samples) continue;
      // with what each addition loses (Kahan, 1965), but for infinite sums, where that is no number
      double sum = 0.0, lost = 0.0;
#pragma unroll 1
      for (int k = 0; k < lanes; ++k) {
        const double next = partial[row][sample * lanes + k] - lost, total = sum + next;
        lost = is_finite(total) ? (total - sum) - next : 0.0;
        sum = total;
      }
      out[(first_row + row) * source.samples + first + sample] =
          static_cast<T>(sum / static_cast<double>(source.queries));
    }
  }
}

void check_mode(int64_t mode, const char* op) {
  if (mode < kOnline || mode > kDensity) fail("fastforget.", op, ": mode is ", mode, "; accepted: 0, 1, 2");
}

template <class T, class Source>
void launch_scores(const DeviceScope& scope, const Source& source, const Rule& rule, T* out) {
  const int64_t lanes = std::clamp<int64_t>(source.queries, 1, kThreads);
  const int64_t items = ceil_div(source.samples, kThreads / lanes) * ceil_div(source.rows, kScoreRows);
  launch(scope, score_kernel<T, Source>, scope.blocks(items), kThreads, source, rule, out);
}

void lira_ratio(Tensor target, Tensor center, Tensor variance, Tensor count, int64_t mode, double var_floor,
                int64_t min_count, Tensor out) {
  constexpr const char* kOp = "lira_ratio";
  const ScalarType dtype = score_dtype(target, kOp, "target");
  check_mode(mode, kOp);
  const int64_t rows = target.size(0), samples = target.size(1), queries = target.size(2);
  const int64_t columns = samples * queries;
  const bool one_variance = variance.numel() == 2 && columns != 1;
  check_layout(target, dtype, rows * columns, kOp, "target");
  check_layout(center, dtype, 2 * columns, kOp, "center");
  check_layout(variance, dtype, one_variance ? 2 : 2 * columns, kOp, "variance");
  check_layout(count, ScalarType::Long, 2 * samples, kOp, "count");
  check_layout(out, dtype, rows * samples, kOp, "out");
  if (rows * samples == 0) return;
  const DeviceScope scope(target);
  with_score(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const Given<T> source = {data<const T>(target),
                             data<const T>(center),
                             data<const T>(variance),
                             data<const int64_t>(count),
                             samples,
                             queries,
                             rows,
                             one_variance};
    launch_scores(scope, source, Rule{static_cast<int>(mode), var_floor, min_count}, data<T>(out));
  });
}

template <class T, bool Median>
void run_loo(const DeviceScope& scope, const Shadow<T>& s, const Tensor& scores, const T* variance, const Rule& rule,
             T* out) {
  const int64_t columns = s.samples * s.queries;
  const Tensor kept = scratch(scores, 2 * kPlanes * columns * int64_t{sizeof(double)});
  if (columns > 0) {
    launch(scope, keep_kernel<T, Median>, column_blocks(scope, columns, s.models, sizeof(T), Median), kColumnThreads, s,
           data<double>(kept));
  }
  const LeaveOneOut<T, Median> source = {s, data<const double>(kept), variance, s.samples, s.queries, s.models};
  launch_scores(scope, source, rule, out);
}

void lira_loo(Tensor scores, Tensor member, bool median, Tensor variance, int64_t mode, double var_floor,
              int64_t min_count, Tensor out) {
  constexpr const char* kOp = "lira_loo";
  const ScalarType dtype = score_dtype(scores, kOp, "scores");
  check_mode(mode, kOp);
  const int64_t models = scores.size(0), samples = scores.size(1);
  check_layout(variance, dtype, variance.numel() == 0 ? 0 : 2, kOp, "variance");
  check_layout(out, dtype, models * samples, kOp, "out");
  with_score(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const Shadow<T> s = shadow_of<T>(scores, member, kOp);
    if (models * samples == 0) return;
    const DeviceScope scope(scores);
    const T* const one = variance.numel() == 0 ? nullptr : data<const T>(variance);
    const Rule rule = {static_cast<int>(mode), var_floor, min_count};
    if (median) {
      run_loo<T, true>(scope, s, scores, one, rule, data<T>(out));
    } else {
      run_loo<T, false>(scope, s, scores, one, rule, data<T>(out));
    }
  });
}

}  // namespace
}  // namespace ff::cuda

FF_REGISTER(m) {
  m.impl("lira_ratio", TORCH_BOX(&ff::cuda::lira_ratio));
  m.impl("lira_loo", TORCH_BOX(&ff::cuda::lira_loo));
}
