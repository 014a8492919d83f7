// UNSIR's error-maximizing step on CUDA: the loss and its gradient in one pass over the logits, and Adam with the L2
// pull and the clamp in one pass over the noise.
#include <cmath>

#include "common/launch.cuh"
#include "common/rows.cuh"

namespace ff::cuda {
namespace {

// ---- Adam step ----

constexpr int kPacksInFlight = 2;
template <class T>
constexpr int kChunk =
    kThreads * Pack<T>::kSize * kPacksInFlight;  // of fixed size: the sums do not depend on the launch

template <class C>
struct AdamScalars {
  C pull, pull_rest;      // 2 * l2 / batch in two parts
  C rest1, beta2, rest2;  // rest = 1 - beta
  C rate;                 // lr / (1 - beta1^step)
  C inverse_root;         // 1 / sqrt(1 - beta2^step)
  C eps, low, high;
};

// x' of one element; m and v change in place. Where the gradient and the pull cancel, Adam divides what is left by its
// own size, so the rounding of the constant would decide the step: hence its second part. NaN compares false with both
// limits and stays NaN.
template <class C>
FF_HD C adam_element(C x, C grad, C& m, C& v, const AdamScalars<C>& s) {
  const C g = fused(s.pull_rest, x, fused(s.pull, x, grad));
  m = fused(s.rest1, g - m, m);
  v = fused(s.beta2, v, s.rest2 * g * g);
  const C stepped = x - s.rate * m / fused(sqrt_of(v), s.inverse_root, s.eps);
  return stepped < s.low ? s.low : (stepped > s.high ? s.high : stepped);
}

template <class T>
struct StepArgs {
  T* x;
  const T* grad;
  T* exp_avg;
  T* exp_avg_sq;
  double* partial;  // one sum of squares a chunk
  int64_t size;
  AdamScalars<Compute<T>> scalars;
  bool aligned;
};

template <class T>
__global__ void __launch_bounds__(kThreads) adam_kernel(const __grid_constant__ StepArgs<T> a) {
  using C = Compute<T>;
  using P = Pack<T>;
  const int64_t chunks = (a.size + kChunk<T> - 1) / kChunk<T>;
  for (int64_t chunk = blockIdx.x; chunk < chunks; chunk += gridDim.x) {
    P x[kPacksInFlight], grad[kPacksInFlight], m[kPacksInFlight], v[kPacksInFlight];
#pragma unroll
    for (int j = 0; j < kPacksInFlight; ++j) {
      const int64_t base = chunk * kChunk<T> + (j * kThreads + threadIdx.x) * P::kSize;
      const int64_t left = a.size - base;
      x[j] = load_pack<P>(a.x + base, left, a.aligned);
      grad[j] = load_pack<P>(a.grad + base, left, a.aligned);
      m[j] = load_pack<P>(a.exp_avg + base, left, a.aligned);
      v[j] = load_pack<P>(a.exp_avg_sq + base, left, a.aligned);
    }
    C squares = C(0);
#pragma unroll
    for (int j = 0; j < kPacksInFlight; ++j) {
      const int64_t base = chunk * kChunk<T> + (j * kThreads + threadIdx.x) * P::kSize;
      const int64_t left = a.size - base;
#pragma unroll
      for (int i = 0; i < P::kSize; ++i) {
        const C before = widen(x[j].at[i]);  // 0 past the end
        C mean = widen(m[j].at[i]), square = widen(v[j].at[i]);
        squares = fused(before, before, squares);
        x[j].at[i] = narrow<T>(adam_element(before, static_cast<C>(widen(grad[j].at[i])), mean, square, a.scalars));
        m[j].at[i] = narrow<T>(mean);
        v[j].at[i] = narrow<T>(square);
      }
      store_pack(a.x + base, x[j], left, a.aligned);
      store_pack(a.exp_avg + base, m[j], left, a.aligned);
      store_pack(a.exp_avg_sq + base, v[j], left, a.aligned);
    }
    const double sum = block_reduce<kThreads>(static_cast<double>(squares), Sum{});
    if (threadIdx.x == 0) a.partial[chunk] = sum;
  }
}

template <class C>
__global__ void __launch_bounds__(kThreads) sum_kernel(const double* partial, int64_t count, C* out) {
  double sum = 0.0;
  for (int64_t i = threadIdx.x; i < count; i += kThreads) sum += partial[i];
  sum = block_reduce<kThreads>(sum, Sum{});
  if (threadIdx.x == 0) *out = static_cast<C>(sum);
}

void error_max_step_(Tensor x, Tensor grad, Tensor exp_avg, Tensor exp_avg_sq, Tensor sum_sq, int64_t step, double lr,
                     double beta1, double beta2, double eps, double l2, double clamp_min, double clamp_max) {
  constexpr const char* kOp = "error_max_step_";
  const ScalarType dtype = x.scalar_type();
  const int64_t size = x.numel();
  float_dtype(x, kOp, "x");
  check_layout(x, dtype, size, kOp, "x");
  check_layout(grad, dtype, size, kOp, "grad");
  check_layout(exp_avg, dtype, size, kOp, "exp_avg");
  check_layout(exp_avg_sq, dtype, size, kOp, "exp_avg_sq");
  check_layout(sum_sq, dtype == ScalarType::Double ? dtype : ScalarType::Float, 1, kOp, "sum_sq");
  const DeviceScope scope(x);
  with_storage(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using C = Compute<T>;
    const int64_t chunks = ceil_div(size, kChunk<T>);
    const Tensor partial = scratch(x, std::max<int64_t>(1, chunks) * int64_t{sizeof(double)});
    if (size > 0) {
      const double correction1 = 1.0 - std::pow(beta1, static_cast<double>(step));
      const double correction2 = 1.0 - std::pow(beta2, static_cast<double>(step));
      StepArgs<T> a = {};
      a.x = data<T>(x);
      a.grad = data<const T>(grad);
      a.exp_avg = data<T>(exp_avg);
      a.exp_avg_sq = data<T>(exp_avg_sq);
      a.partial = data<double>(partial);
      a.size = size;
      a.aligned = aligned16(a.x, a.grad, a.exp_avg, a.exp_avg_sq);
      a.scalars.beta2 = static_cast<C>(beta2);
      a.scalars.rest1 = static_cast<C>(1.0 - beta1);
      a.scalars.rest2 = static_cast<C>(1.0 - beta2);
      const double pull = 2.0 * l2 / static_cast<double>(x.dim() > 0 ? x.size(0) : 1);
      a.scalars.pull = static_cast<C>(pull);
      a.scalars.pull_rest = static_cast<C>(pull - static_cast<double>(a.scalars.pull));
      a.scalars.rate = static_cast<C>(lr / correction1);
      a.scalars.inverse_root = static_cast<C>(1.0 / std::sqrt(correction2));
      a.scalars.eps = static_cast<C>(eps);
      a.scalars.low = static_cast<C>(clamp_min);
      a.scalars.high = static_cast<C>(clamp_max);
      launch(scope, adam_kernel<T>, scope.blocks(chunks), kThreads, a);
    }
    launch(scope, sum_kernel<C>, 1u, kThreads, data<double>(partial), chunks, data<C>(sum_sq));
  });
}

// ---- loss and gradient ----

template <class T>
struct LossArgs {
  const T* logits;        // [rows, classes]
  const int64_t* labels;  // [rows]
  Compute<T>* loss;       // [rows]
  T* dlogits;             // [rows, classes]
  int64_t rows;
  int classes;
};

template <class C>
struct LossRow {
  C loss;     // log p of the label
  C divisor;  // dlogits = -exp(z - largest) / divisor, except at the label
  C label;    // dlogits of the label
};

// What rounding took off a + b, both not negative.
template <class C>
FF_HD C sum_rest(C a, C b, C sum) {
  return smaller(a, b) - (sum - larger(a, b));
}

// `others`: sum of exp(z - largest) over the classes other than the label and the most likely one. The label's own
// gradient 1 - p comes from the other classes' share: 1 - p would lose it as p nears 1. It is the row's largest entry,
// so the roundings on its way are carried along and put right at the end.
template <class C>
FF_HD LossRow<C> loss_row(const Top<C>& top, C others, int label, C label_z, int64_t rows) {
  const bool right = label == top.at;
  const C distance = label_z - top.first;
  const C label_e = right ? C(0) : exp_of(distance);
  const C tail = others + label_e;
  const C total = C(1) + tail;
  const C share = right ? others : C(1) + others;
  const C count = static_cast<C>(rows);
  const C divisor = total * count;
  const C total_rest = sum_rest(C(1), tail, total) + sum_rest(others, label_e, tail);
  const C share_rest = right ? C(0) : sum_rest(C(1), others, share);
  const C divisor_rest = fused(total_rest, count, fused(total, count, -divisor));
  const C quotient = share / divisor;
  const C missing = fused(-quotient, divisor_rest, fused(-quotient, divisor, share) + share_rest);
  const C log_total = log1p_of(tail);
  return {right ? -log_total : distance - log_total, divisor, quotient + missing / divisor};
}

// All threads of the row's group call this. put(k, value) stores one gradient.
template <class T, class Row, class Put>
__device__ __forceinline__ void loss_and_gradient(const LossArgs<T>& a, int64_t at, Row& row, bool writes, Put&& put) {
  using C = Compute<T>;
  const int64_t label = a.labels[at];
  const Top<C> top = find_top<C>(row);
  if (label < 0 || label >= a.classes || !has_distribution(top)) {
    row.each([&](C&, int k) { put(k, Limits<C>::kNan); });
    if (writes) a.loss[at] = Limits<C>::kNan;
    return;
  }
  const C label_z = widen(a.logits[at * a.classes + label]);
  C others = C(0);
  row.each([&](C& z, int k) {
    const C e = exp_of(z - top.first);
    if (k != label && k != top.at) others += e;
    if constexpr (Row::kKeeps) z = e;
  });
  others = Group<Row::kSize>::reduce(others, Sum{});
  const LossRow<C> result = loss_row(top, others, static_cast<int>(label), label_z, a.rows);
  row.each([&](C& z, int k) {
    const C e = Row::kKeeps ? z : exp_of(z - top.first);
    put(k, k == label ? result.label : -e / result.divisor);
  });
  if (writes) a.loss[at] = result.loss;
}

template <class T>
__global__ void __launch_bounds__(kTileRows)
    loss_few_classes_kernel(const __grid_constant__ LossArgs<T> a, unsigned reciprocal, bool aligned) {
  using C = Compute<T>;
  __shared__ C tile[kTileSize];
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * kTileRows; first < a.rows;
       first += static_cast<int64_t>(gridDim.x) * kTileRows) {
    const int rows = static_cast<int>(smaller<int64_t>(kTileRows, a.rows - first));
    __syncthreads();  // the previous tile is stored
    load_tile<T>(tile, a.logits + first * a.classes, rows, a.classes, reciprocal, C(1), aligned);
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < rows) {
      C* const own = tile + threadIdx.x * kTileStride;
      TileRow<C> row{own, a.classes};
      loss_and_gradient(a, first + threadIdx.x, row, true, [&](int k, C value) { own[k] = value; });
    }
    __syncthreads();
    store_tile<T>(a.dlogits + first * a.classes, tile, rows, a.classes, reciprocal, aligned);
  }
}

template <class T, class Row>
__global__ void __launch_bounds__(kRowThreads<Row>) loss_kernel(const __grid_constant__ LossArgs<T> a) {
  using C = Compute<T>;
  constexpr int kGroups = kRowThreads<Row> / Row::kSize;
  for (int64_t at = static_cast<int64_t>(blockIdx.x) * kGroups + threadIdx.x / Row::kSize; at < a.rows;
       at += static_cast<int64_t>(gridDim.x) * kGroups) {
    Row row(a.logits + at * a.classes, a.classes, C(1));
    T* const to = a.dlogits + at * a.classes;
    loss_and_gradient(a, at, row, threadIdx.x % Row::kSize == 0, [&](int k, C value) { to[k] = narrow<T>(value); });
  }
}

template <class Row, class T>
void launch_rows(const DeviceScope& scope, const LossArgs<T>& a) {
  constexpr int kGroups = kRowThreads<Row> / Row::kSize;
  launch(scope, loss_kernel<T, Row>, scope.blocks(ceil_div(a.rows, kGroups), kRowThreads<Row>), kRowThreads<Row>, a);
}

template <class T>
void run_loss(const DeviceScope& scope, const LossArgs<T>& a) {
  using C = Compute<T>;
  constexpr int kBlock = 256;
  if (a.classes <= kFewClasses) {
    launch(scope, loss_few_classes_kernel<T>, scope.blocks(ceil_div(a.rows, kTileRows), kTileRows), kTileRows, a,
           tile_reciprocal(a.classes), aligned16(a.logits, a.dlogits));
  } else if constexpr (std::is_same_v<T, double>) {
    launch_rows<StreamRow<T, kBlock>>(scope, a);
  } else if (a.classes <= 8 * kWarp) {
    launch_rows<RegisterRow<C, kWarp, 8>>(scope, a);
  } else if (a.classes <= 32 * kWarp) {
    launch_rows<RegisterRow<C, kWarp, 32>>(scope, a);
  } else if (a.classes <= 32 * kBlock) {
    launch_rows<RegisterRow<C, kBlock, 32>>(scope, a);
  } else {
    launch_rows<StreamRow<T, kBlock>>(scope, a);
  }
}

void error_max_loss(Tensor logits, Tensor labels, Tensor loss, Tensor dlogits) {
  constexpr const char* kOp = "error_max_loss";
  const ScalarType dtype = logits.scalar_type();
  float_dtype(logits, kOp, "logits");
  FF_CHECK(logits.dim() == 2, "error_max_loss: logits has ", logits.dim(), " dimensions; expected [batch, classes]");
  const int64_t rows = logits.size(0), classes = logits.size(1);
  check_layout(logits, dtype, rows * classes, kOp, "logits");
  check_layout(labels, ScalarType::Long, rows, kOp, "labels");
  check_layout(loss, dtype == ScalarType::Double ? dtype : ScalarType::Float, rows, kOp, "loss");
  check_layout(dlogits, dtype, rows * classes, kOp, "dlogits");
  if (rows == 0) return;
  FF_CHECK(classes >= 1 && classes <= INT32_MAX, "error_max_loss: logits has ", classes, " classes; accepted: 1 to ",
           INT32_MAX);
  const DeviceScope scope(logits);
  with_storage(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    run_loss<T>(scope, {data<const T>(logits), data<const int64_t>(labels), data<Compute<T>>(loss), data<T>(dlogits),
                        rows, static_cast<int>(classes)});
  });
}

}  // namespace
}  // namespace ff::cuda

FF_REGISTER(m) {
  m.impl("error_max_loss", TORCH_BOX(&ff::cuda::error_max_loss));
  m.impl("error_max_step_", TORCH_BOX(&ff::cuda::error_max_step_));
}
