// SGD and Adam steps on the unmasked coordinates alone, on CUDA. One launch for a whole parameter list, whatever forms
// of mask it mixes. The mask is read first; what it leaves out is neither read nor written.
#include <cmath>

#include "common/launch.cuh"
#include "common/rows.cuh"
#include "cuda/mask/optim_mask.cuh"

namespace ff::cuda {
namespace {

// ---- SGD ----

template <class C>
struct SgdScalars {
  C lr, momentum, rest, weight_decay;  // rest = 1 - dampening
  bool nesterov, maximize, first;
};

template <class C>
FF_HD C sgd_element(C p, C grad, C& buffer, bool has_buffer, const SgdScalars<C>& s) {
  C g = fused(s.weight_decay, p, s.maximize ? -grad : grad);
  if (has_buffer) {
    buffer = s.first ? g : fused(s.momentum, buffer, s.rest * g);
    g = s.nesterov ? fused(s.momentum, buffer, g) : buffer;
  }
  return fused(-s.lr, g, p);
}

// Without a momentum buffer there are fewer streams, so more of each in flight.
template <class T, bool Momentum>
constexpr int kSgdInFlight = Momentum || sizeof(T) == 2 ? 2 : 4;
template <class T, bool Momentum>
constexpr int kSgdChunk = kThreads * Pack<T>::kSize * kSgdInFlight<T, Momentum>;

template <class T, bool Momentum>
__global__ void __launch_bounds__(kThreads)
    masked_sgd_kernel(const __grid_constant__ ListTable<OptimItem<1>> table, const SgdScalars<Compute<T>> scalars) {
  using C = Compute<T>;
  using P = Pack<T>;
  constexpr int kInFlight = kSgdInFlight<T, Momentum>;
  constexpr int64_t kStep = kThreads * P::kSize;
  for (int64_t chunk = blockIdx.x; chunk < table.chunks(); chunk += gridDim.x) {
    const int at = table.find(chunk);
    const OptimItem<1>& item = table.items[at];
    const int64_t begin =
        (chunk - table.first_chunk(at)) * kSgdChunk<T, Momentum> + static_cast<int64_t>(threadIdx.x) * P::kSize;
    unsigned on[kInFlight];
#pragma unroll
    for (int j = 0; j < kInFlight; ++j) on[j] = mask_bits<P::kSize>(item, begin + j * kStep);
    P p[kInFlight], grad[kInFlight], buffer[kInFlight];
#pragma unroll
    for (int j = 0; j < kInFlight; ++j) {
      if (on[j] == 0) continue;
      const int64_t base = begin + j * kStep;
      const int64_t left = item.size - base;
      p[j] = load_pack<P>(static_cast<const T*>(item.p) + base, left, item.aligned);
      grad[j] = load_pack<P>(static_cast<const T*>(item.grad) + base, left, item.aligned);
      if constexpr (Momentum) {
        // also in the first step: coordinates that are off keep what it holds
        buffer[j] = load_pack<P>(static_cast<const T*>(item.state[0]) + base, left, item.aligned);
      }
    }
#pragma unroll
    for (int j = 0; j < kInFlight; ++j) {
      if (on[j] == 0) continue;
      const int64_t base = begin + j * kStep;
      const int64_t left = item.size - base;
      C factor[P::kSize];
#pragma unroll
      for (int i = 0; i < P::kSize; ++i) factor[i] = C(1);
      if (item.kind == MaskKind::kFactors) load_factors(item, base, on[j], factor);
#pragma unroll
      for (int i = 0; i < P::kSize; ++i) {
        if ((on[j] >> i & 1u) == 0) continue;
        C state = Momentum ? static_cast<C>(widen(buffer[j].at[i])) : C(0);
        const C grad_i = static_cast<C>(widen(grad[j].at[i])) * factor[i];
        p[j].at[i] = narrow<T>(sgd_element(static_cast<C>(widen(p[j].at[i])), grad_i, state, Momentum, scalars));
        if constexpr (Momentum) buffer[j].at[i] = narrow<T>(state);
      }
      store_pack(static_cast<T*>(item.p) + base, p[j], left, item.aligned);
      if constexpr (Momentum) store_pack(static_cast<T*>(item.state[0]) + base, buffer[j], left, item.aligned);
    }
  }
}

// ---- Adam ----

template <class C>
struct AdamScalars {
  C rest1, beta2, rest2;  // rest = 1 - beta
  C rate;                 // lr / (1 - beta1^step)
  C inverse_root;         // 1 / sqrt(1 - beta2^step)
  C eps, decay;           // decoupled: the factor on the weight, else the weight's factor in the gradient
  bool decoupled, maximize;
};

template <class C>
FF_HD C adam_element(C p, C grad, C& m, C& v, const AdamScalars<C>& s) {
  const C towards = s.maximize ? -grad : grad;
  const C g = s.decoupled ? towards : fused(s.decay, p, towards);
  const C kept = s.decoupled ? p * s.decay : p;
  m = fused(s.rest1, g - m, m);
  v = fused(s.beta2, v, s.rest2 * g * g);
  return kept - s.rate * m / fused(sqrt_of(v), s.inverse_root, s.eps);
}

constexpr int kAdamInFlight = 2;
template <class T>
constexpr int kAdamChunk = kThreads * Pack<T>::kSize * kAdamInFlight;

template <class T>
__global__ void __launch_bounds__(kThreads)
    masked_adam_kernel(const __grid_constant__ ListTable<OptimItem<2>> table, const AdamScalars<Compute<T>> scalars) {
  using C = Compute<T>;
  using P = Pack<T>;
  constexpr int64_t kStep = kThreads * P::kSize;
  for (int64_t chunk = blockIdx.x; chunk < table.chunks(); chunk += gridDim.x) {
    const int at = table.find(chunk);
    const OptimItem<2>& item = table.items[at];
    const int64_t begin =
        (chunk - table.first_chunk(at)) * kAdamChunk<T> + static_cast<int64_t>(threadIdx.x) * P::kSize;
    unsigned on[kAdamInFlight];
#pragma unroll
    for (int j = 0; j < kAdamInFlight; ++j) on[j] = mask_bits<P::kSize>(item, begin + j * kStep);
    P p[kAdamInFlight], grad[kAdamInFlight], m[kAdamInFlight], v[kAdamInFlight];
#pragma unroll
    for (int j = 0; j < kAdamInFlight; ++j) {
      if (on[j] == 0) continue;
      const int64_t base = begin + j * kStep;
      const int64_t left = item.size - base;
      p[j] = load_pack<P>(static_cast<const T*>(item.p) + base, left, item.aligned);
      grad[j] = load_pack<P>(static_cast<const T*>(item.grad) + base, left, item.aligned);
      m[j] = load_pack<P>(static_cast<const T*>(item.state[0]) + base, left, item.aligned);
      v[j] = load_pack<P>(static_cast<const T*>(item.state[1]) + base, left, item.aligned);
    }
#pragma unroll
    for (int j = 0; j < kAdamInFlight; ++j) {
      if (on[j] == 0) continue;
      const int64_t base = begin + j * kStep;
      const int64_t left = item.size - base;
#pragma unroll
      for (int i = 0; i < P::kSize; ++i) {
        if ((on[j] >> i & 1u) == 0) continue;
        C mean = widen(m[j].at[i]), square = widen(v[j].at[i]);
        p[j].at[i] = narrow<T>(adam_element(static_cast<C>(widen(p[j].at[i])), static_cast<C>(widen(grad[j].at[i])),
                                            mean, square, scalars));
        m[j].at[i] = narrow<T>(mean);
        v[j].at[i] = narrow<T>(square);
      }
      store_pack(static_cast<T*>(item.p) + base, p[j], left, item.aligned);
      store_pack(static_cast<T*>(item.state[0]) + base, m[j], left, item.aligned);
      store_pack(static_cast<T*>(item.state[1]) + base, v[j], left, item.aligned);
    }
  }
}

// ---- host ----

template <int States>
OptimItem<States> optim_item(const Tensor& p, const Tensor& grad, const Tensor& mask, const char* op,
                             bool factors_allowed) {
  OptimItem<States> item = {};
  item.p = p.data_ptr();
  item.grad = grad.data_ptr();
  item.size = p.numel();
  item.aligned = aligned16(item.p, item.grad);
  item.mask_aligned = reinterpret_cast<uintptr_t>(mask.data_ptr()) % 8 == 0;
  set_mask(item, p, mask, op, factors_allowed);
  return item;
}

void check_param(const Tensor& p, const Tensor& grad, const char* op) {
  float_dtype(p, op, "params");
  check_layout(p, p.scalar_type(), p.numel(), op, "params");
  check_layout(grad, p.scalar_type(), p.numel(), op, "grads");
}

template <class T, bool Momentum>
void run_sgd(const DeviceScope& scope, ScalarType dtype, const std::vector<Tensor>& params,
             const std::vector<Tensor>& grads, const std::vector<Tensor>& masks, const std::vector<Tensor>& buffers,
             const SgdScalars<Compute<T>>& scalars) {
  ListBatch<OptimItem<1>> batch;
  const auto run = [&](const ListTable<OptimItem<1>>& table, int64_t chunks) {
    launch(scope, masked_sgd_kernel<T, Momentum>, scope.blocks(chunks), kThreads, table, scalars);
  };
  for (size_t i = 0; i < params.size(); ++i) {
    if (params[i].scalar_type() != dtype) continue;
    OptimItem<1> item = optim_item<1>(params[i], grads[i], masks[i], "masked_sgd_", true);
    if (Momentum) {
      item.state[0] = buffers[i].data_ptr();
      item.aligned = item.aligned && aligned16(item.state[0]);
    }
    batch.add(item, ceil_div(item.size, kSgdChunk<T, Momentum>), run);
  }
  batch.flush(run);
}

void masked_sgd_(std::vector<Tensor> params, std::vector<Tensor> grads, std::vector<Tensor> masks,
                 std::vector<Tensor> momentum_buffers, double lr, double momentum, double dampening,
                 double weight_decay, bool nesterov, bool maximize, bool first) {
  constexpr const char* kOp = "masked_sgd_";
  const bool has_buffers = !momentum_buffers.empty();
  FF_CHECK(grads.size() == params.size() && masks.size() == params.size() &&
               (!has_buffers || momentum_buffers.size() == params.size()),
           "masked_sgd_: ", params.size(), " params, ", grads.size(), " grads, ", masks.size(), " masks and ",
           momentum_buffers.size(), " momentum_buffers; give as many of each (momentum_buffers: or none)");
  for (size_t i = 0; i < params.size(); ++i) {
    check_param(params[i], grads[i], kOp);
    if (has_buffers) {
      check_layout(momentum_buffers[i], params[i].scalar_type(), params[i].numel(), kOp, "momentum_buffers");
    }
  }
  if (params.empty()) return;
  const DeviceScope scope(params[0]);
  for (const ScalarType dtype : kStorageTypes) {
    with_storage(dtype, [&](auto tag) {
      using T = typename decltype(tag)::type;
      using C = Compute<T>;
      const SgdScalars<C> scalars = {static_cast<C>(lr),
                                     static_cast<C>(momentum),
                                     static_cast<C>(1.0 - dampening),
                                     static_cast<C>(weight_decay),
                                     nesterov,
                                     maximize,
                                     first};
      (has_buffers ? run_sgd<T, true> : run_sgd<T, false>)(scope, dtype, params, grads, masks, momentum_buffers,
                                                           scalars);
    });
  }
}

void masked_adam_(std::vector<Tensor> params, std::vector<Tensor> grads, std::vector<Tensor> masks,
                  std::vector<Tensor> exp_avgs, std::vector<Tensor> exp_avg_sqs, int64_t step, double lr, double beta1,
                  double beta2, double eps, double weight_decay, bool decoupled, bool maximize) {
  constexpr const char* kOp = "masked_adam_";
  FF_CHECK(grads.size() == params.size() && masks.size() == params.size() && exp_avgs.size() == params.size() &&
               exp_avg_sqs.size() == params.size(),
           "masked_adam_: ", params.size(), " params, ", grads.size(), " grads, ", masks.size(), " masks, ",
           exp_avgs.size(), " exp_avgs and ", exp_avg_sqs.size(), " exp_avg_sqs; give as many of each");
  for (size_t i = 0; i < params.size(); ++i) {
    check_param(params[i], grads[i], kOp);
    check_layout(exp_avgs[i], params[i].scalar_type(), params[i].numel(), kOp, "exp_avgs");
    check_layout(exp_avg_sqs[i], params[i].scalar_type(), params[i].numel(), kOp, "exp_avg_sqs");
  }
  if (params.empty()) return;
  const DeviceScope scope(params[0]);
  const double correction1 = 1.0 - std::pow(beta1, static_cast<double>(step));
  const double correction2 = 1.0 - std::pow(beta2, static_cast<double>(step));
  for (const ScalarType dtype : kStorageTypes) {
    with_storage(dtype, [&](auto tag) {
      using T = typename decltype(tag)::type;
      using C = Compute<T>;
      AdamScalars<C> scalars = {};
      scalars.rest1 = static_cast<C>(1.0 - beta1);
      scalars.beta2 = static_cast<C>(beta2);
      scalars.rest2 = static_cast<C>(1.0 - beta2);
      scalars.rate = static_cast<C>(lr / correction1);
      scalars.inverse_root = static_cast<C>(1.0 / std::sqrt(correction2));
      scalars.eps = static_cast<C>(eps);
      scalars.decay = static_cast<C>(decoupled ? 1.0 - lr * weight_decay : weight_decay);
      scalars.decoupled = decoupled;
      scalars.maximize = maximize;
      ListBatch<OptimItem<2>> batch;
      const auto run = [&](const ListTable<OptimItem<2>>& table, int64_t chunks) {
        launch(scope, masked_adam_kernel<T>, scope.blocks(chunks), kThreads, table, scalars);
      };
      for (size_t i = 0; i < params.size(); ++i) {
        if (params[i].scalar_type() != dtype) continue;
        OptimItem<2> item = optim_item<2>(params[i], grads[i], masks[i], kOp, false);
        item.state[0] = exp_avgs[i].data_ptr();
        item.state[1] = exp_avg_sqs[i].data_ptr();
        item.aligned = item.aligned && aligned16(item.state[0], item.state[1]);
        batch.add(item, ceil_div(item.size, kAdamChunk<T>), run);
      }
      batch.flush(run);
    });
  }
}

}  // namespace
}  // namespace ff::cuda

FF_REGISTER(m) {
  m.impl("masked_sgd_", TORCH_BOX(&ff::cuda::masked_sgd_));
  m.impl("masked_adam_", TORCH_BOX(&ff::cuda::masked_adam_));
}
