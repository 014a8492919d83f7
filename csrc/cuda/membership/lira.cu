// LiRA's statistics on CUDA: location and variance of every sample's shadow scores, and the running moments of models
// that come one after another. A thread owns a column (sample, query), so a warp reads consecutive scores; sums are
// float64, medians are exact order statistics.
#include "cuda/membership/lira_columns.cuh"

namespace ff::cuda {
namespace {

template <class T>
struct StatsOut {
  T* center;       // [2, samples, queries]
  T* variance;     // likewise
  int64_t* count;  // [2, samples]
};

template <class T>
__device__ __forceinline__ void write_side(const StatsOut<T>& out, int64_t column, int64_t sample, int64_t columns,
                                           int64_t samples, int which, bool first, const Side& side, double center) {
  out.center[which * columns + column] = static_cast<T>(center);
  out.variance[which * columns + column] = static_cast<T>(side.spread / side.count);
  if (first) out.count[which * samples + sample] = side.count;
}

template <class T, bool Median>
__global__ void __launch_bounds__(kColumnThreads)
    stats_kernel(const __grid_constant__ Shadow<T> s, const __grid_constant__ StatsOut<T> out) {
  const int64_t columns = s.samples * s.queries;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kColumnThreads;
#pragma unroll 1
  for (int64_t c = static_cast<int64_t>(blockIdx.x) * kColumnThreads + threadIdx.x; c < columns; c += stride) {
    const int64_t sample = c / s.queries, query = c - sample * s.queries;
    const Column<T> column(s, sample, query);
    const Sides<T> sides = column_sides(column, -1);
    double center_out = sides.out.mean, center_in = sides.in.mean;
    if constexpr (Median) {
      Three<T> ranks_out, ranks_in;
      const int n0 = sides.out.count, n1 = sides.in.count;
      column_ranks(column, sides, n0 > 0 ? (n0 - 1) / 2 : 0, n1 > 0 ? (n1 - 1) / 2 : 0, ranks_out, ranks_in);
      center_out = middle(center_out, ranks_out.at, n0 % 2 != 0 ? ranks_out.at : ranks_out.next);
      center_in = middle(center_in, ranks_in.at, n1 % 2 != 0 ? ranks_in.at : ranks_in.next);
    }
    write_side(out, c, sample, columns, s.samples, 0, query == 0, sides.out, center_out);
    write_side(out, c, sample, columns, s.samples, 1, query == 0, sides.in, center_in);
  }
}

// Without queries there are no columns, but still models to count.
__global__ void __launch_bounds__(kThreads)
    count_kernel(const bool* member, int64_t samples, int models, int64_t* count) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
#pragma unroll 1
  for (int64_t n = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; n < samples; n += stride) {
    int64_t in = 0;
    for (int m = 0; m < models; ++m) in += member[m * samples + n];
    count[n] = models - in;
    count[samples + n] = in;
  }
}

// Welford (Technometrics 4, 1962), one more model at a time. The counts of before are read here and raised by
// update_count_kernel afterwards.
template <class T>
__global__ void __launch_bounds__(kThreads)
    update_kernel(const T* scores, const int8_t* member, const int64_t* count, double* mean, double* m2, int64_t models,
                  int64_t samples, int64_t queries) {
  const int64_t columns = samples * queries;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
#pragma unroll 1
  for (int64_t c = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; c < columns; c += stride) {
    const int64_t sample = c / queries;
    double n_out = static_cast<double>(count[sample]), n_in = static_cast<double>(count[samples + sample]);
    double mean_out = mean[c], mean_in = mean[columns + c], m2_out = m2[c], m2_in = m2[columns + c];
#pragma unroll 1
    for (int64_t m = 0; m < models; ++m) {
      const int side = member[m * samples + sample];
      if (side != 0 && side != 1) continue;
      const double x = static_cast<double>(scores[m * columns + c]);
      const double n = (side ? n_in : n_out) + 1.0, before = side ? mean_in : mean_out;
      const double distance = x - before;
      const double moved = before + distance / n;
      const double spread = (side ? m2_in : m2_out) + distance * (x - moved);
      n_out = side ? n_out : n;
      n_in = side ? n : n_in;
      mean_out = side ? mean_out : moved;
      mean_in = side ? moved : mean_in;
      m2_out = side ? m2_out : spread;
      m2_in = side ? spread : m2_in;
    }
    mean[c] = mean_out;
    mean[columns + c] = mean_in;
    m2[c] = m2_out;
    m2[columns + c] = m2_in;
  }
}

__global__ void __launch_bounds__(kThreads)
    update_count_kernel(const int8_t* member, int64_t* count, int64_t models, int64_t samples) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
#pragma unroll 1
  for (int64_t n = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; n < samples; n += stride) {
    int64_t out = 0, in = 0;
    for (int64_t m = 0; m < models; ++m) {
      out += member[m * samples + n] == 0;
      in += member[m * samples + n] == 1;
    }
    count[n] += out;
    count[samples + n] += in;
  }
}

void lira_stats(Tensor scores, Tensor member, bool median, Tensor center, Tensor variance, Tensor count) {
  constexpr const char* kOp = "lira_stats";
  const ScalarType dtype = score_dtype(scores, kOp, "scores");
  const int64_t samples = scores.size(1), columns = samples * scores.size(2);
  check_layout(center, dtype, 2 * columns, kOp, "center");
  check_layout(variance, dtype, 2 * columns, kOp, "variance");
  check_layout(count, ScalarType::Long, 2 * samples, kOp, "count");
  with_score(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const Shadow<T> s = shadow_of<T>(scores, member, kOp);
    if (samples == 0) return;
    const DeviceScope scope(scores);
    if (columns == 0) {
      launch(scope, count_kernel, scope.blocks(ceil_div(samples, kThreads)), kThreads, s.member, samples, s.models,
             data<int64_t>(count));
      return;
    }
    const StatsOut<T> out = {data<T>(center), data<T>(variance), data<int64_t>(count)};
    launch(scope, median ? stats_kernel<T, true> : stats_kernel<T, false>,
           column_blocks(scope, columns, s.models, sizeof(T), median), kColumnThreads, s, out);
  });
}

void lira_update_(Tensor scores, Tensor member, Tensor count, Tensor mean, Tensor m2) {
  constexpr const char* kOp = "lira_update_";
  const ScalarType dtype = score_dtype(scores, kOp, "scores");
  const int64_t models = scores.size(0), samples = scores.size(1), queries = scores.size(2);
  const int64_t columns = samples * queries;
  check_layout(scores, dtype, models * columns, kOp, "scores");
  check_layout(member, ScalarType::Char, models * samples, kOp, "member");
  check_layout(count, ScalarType::Long, 2 * samples, kOp, "count");
  check_layout(mean, ScalarType::Double, 2 * columns, kOp, "mean");
  check_layout(m2, ScalarType::Double, 2 * columns, kOp, "m2");
  if (models * samples == 0) return;
  const DeviceScope scope(scores);
  const int8_t* const side = data<const int8_t>(member);
  int64_t* const counts = data<int64_t>(count);
  if (columns > 0) {
    with_score(dtype, [&](auto tag) {
      using T = typename decltype(tag)::type;
      launch(scope, update_kernel<T>, scope.blocks(ceil_div(columns, kThreads)), kThreads, data<const T>(scores), side,
             counts, data<double>(mean), data<double>(m2), models, samples, queries);
    });
  }
  launch(scope, update_count_kernel, scope.blocks(ceil_div(samples, kThreads)), kThreads, side, counts, models,
         samples);
}

}  // namespace
}  // namespace ff::cuda

FF_REGISTER(m) {
  m.impl("lira_stats", TORCH_BOX(&ff::cuda::lira_stats));
  m.impl("lira_update_", TORCH_BOX(&ff::cuda::lira_update_));
}
