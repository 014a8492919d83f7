// Elementwise ops on weights on CUDA, each with one launch for a whole parameter list: selective synaptic dampening
// (where the forget set's importance exceeds alpha times the retain set's, p *= min(lam * retain / forget, 1)), the
// accumulation of importances, and soft thresholding.
#include <cmath>

#include "common/launch.cuh"
#include "common/normal.h"  // fused

namespace ff::cuda {
namespace {

template <class T>
constexpr int kPacksInFlight = sizeof(T) == 2 ? 2 : 4;
template <class T>
constexpr int kChunk = kThreads * Pack<T>::kSize * kPacksInFlight<T>;

struct DampenItem {
  void* p;
  const void* forget;
  const void* retain;
  int64_t size;
  bool aligned;
};

// NaN compares false, so an undefined importance selects nothing.
template <class C>
FF_HD bool selected(C forget, C retain, C alpha) {
  return forget > alpha * retain;
}

template <class C>
FF_HD C dampened(C p, C forget, C retain, C lam) {
  const C factor = lam * retain / forget;
  return p * (factor > C(1) ? C(1) : factor);
}

// p is read and written only where its pack holds a selected weight: dampening usually selects a few percent, and then
// half of the traffic is gone.
template <class T>
__global__ void __launch_bounds__(kThreads) dampen_kernel(const __grid_constant__ ListTable<DampenItem> table,
                                                          Compute<T> alpha, Compute<T> lam, unsigned long long* count) {
  using P = Pack<T>;
  unsigned hits = 0;
  unsigned long long total = 0;
  for (int64_t chunk = blockIdx.x; chunk < table.chunks(); chunk += gridDim.x) {
    const int at = table.find(chunk);
    const DampenItem& item = table.items[at];
    const int64_t begin = (chunk - table.first_chunk(at)) * kChunk<T> + threadIdx.x * P::kSize;
    P forget[kPacksInFlight<T>], retain[kPacksInFlight<T>];
#pragma unroll
    for (int j = 0; j < kPacksInFlight<T>; ++j) {
      const int64_t base = begin + j * kThreads * P::kSize;
      const int64_t left = item.size - base;
      forget[j] = load_pack<P>(static_cast<const T*>(item.forget) + base, left, item.aligned);
      retain[j] = load_pack<P>(static_cast<const T*>(item.retain) + base, left, item.aligned);
    }
#pragma unroll
    for (int j = 0; j < kPacksInFlight<T>; ++j) {
      const int64_t base = begin + j * kThreads * P::kSize;
      const int64_t left = item.size - base;
      unsigned chosen = 0;
#pragma unroll
      for (int i = 0; i < P::kSize; ++i) {
        const bool hit = i < left && selected(widen(forget[j].at[i]), widen(retain[j].at[i]), alpha);
        chosen |= static_cast<unsigned>(hit) << i;
      }
      if (chosen == 0) continue;
      T* const to = static_cast<T*>(item.p) + base;
      P p = load_pack<P>(to, left, item.aligned);
#pragma unroll
      for (int i = 0; i < P::kSize; ++i) {
        if (chosen >> i & 1u) {
          p.at[i] = narrow<T>(dampened(widen(p.at[i]), widen(forget[j].at[i]), widen(retain[j].at[i]), lam));
          ++hits;
        }
      }
      store_pack(to, p, left, item.aligned);
    }
    total += hits;
    hits = 0;
  }
  total = block_reduce<kThreads>(total, Sum{});
  if (threadIdx.x == 0 && total != 0) atomicAdd(count, total);  // integers: the order cannot matter
}

void dampen_(std::vector<Tensor> params, std::vector<Tensor> forget, std::vector<Tensor> retain, Tensor count,
             double alpha, double lam) {
  constexpr const char* kOp = "dampen_";
  FF_CHECK(forget.size() == params.size() && retain.size() == params.size(), "dampen_: ", params.size(), " params, ",
           forget.size(), " forget_importance and ", retain.size(), " retain_importance tensors; give as many of each");
  check_layout(count, ScalarType::Long, 1, kOp, "count");
  for (size_t i = 0; i < params.size(); ++i) {
    float_dtype(params[i], kOp, "params");
    check_layout(params[i], params[i].scalar_type(), params[i].numel(), kOp, "params");
    check_layout(forget[i], params[i].scalar_type(), params[i].numel(), kOp, "forget_importance");
    check_layout(retain[i], params[i].scalar_type(), params[i].numel(), kOp, "retain_importance");
  }
  const DeviceScope scope(count);
  auto* const total = data<unsigned long long>(count);
  FF_CUDA_CHECK(cudaMemsetAsync(total, 0, sizeof *total, scope.stream()));
  for (const ScalarType dtype : kStorageTypes) {
    with_storage(dtype, [&](auto tag) {
      using T = typename decltype(tag)::type;
      ListBatch<DampenItem> batch;
      const auto run = [&](const ListTable<DampenItem>& table, int64_t chunks) {
        launch(scope, dampen_kernel<T>, scope.blocks(chunks), kThreads, table, static_cast<Compute<T>>(alpha),
               static_cast<Compute<T>>(lam), total);
      };
      for (size_t i = 0; i < params.size(); ++i) {
        if (params[i].scalar_type() != dtype) continue;
        DampenItem item = {};
        item.p = params[i].data_ptr();
        item.forget = forget[i].data_ptr();
        item.retain = retain[i].data_ptr();
        item.size = params[i].numel();
        item.aligned = aligned16(item.p, item.forget, item.retain);
        batch.add(item, ceil_div(item.size, kChunk<T>), run);
      }
      batch.flush(run);
    });
  }
}

// ---- accumulate_importance_ ----

struct ImportanceItem {
  void* importance;
  const void* grad;
  int64_t size;
  bool aligned;
};

// Importances of 16-bit gradients may be kept in float32.
template <class I, class G>
constexpr int kImportancePack = 16 / static_cast<int>(sizeof(I) < sizeof(G) ? sizeof(I) : sizeof(G));
template <class I, class G>
constexpr int kImportanceChunk = kThreads * kImportancePack<I, G> * kPacksInFlight<G>;

template <class I, class G>
__global__ void __launch_bounds__(kThreads)
    importance_kernel(const __grid_constant__ ListTable<ImportanceItem> table, bool squared, Compute<I> scale) {
  using C = Compute<I>;
  constexpr int kSize = kImportancePack<I, G>;
  using PI = Pack<I, kSize>;
  using PG = Pack<G, kSize>;
  for (int64_t chunk = blockIdx.x; chunk < table.chunks(); chunk += gridDim.x) {
    const int at = table.find(chunk);
    const ImportanceItem& item = table.items[at];
    const int64_t begin = (chunk - table.first_chunk(at)) * kImportanceChunk<I, G> + threadIdx.x * kSize;
    PI importance[kPacksInFlight<G>];
    PG grad[kPacksInFlight<G>];
#pragma unroll
    for (int j = 0; j < kPacksInFlight<G>; ++j) {
      const int64_t base = begin + j * kThreads * kSize;
      const int64_t left = item.size - base;
      importance[j] = load_pack<PI>(static_cast<const I*>(item.importance) + base, left, item.aligned);
      grad[j] = load_pack<PG>(static_cast<const G*>(item.grad) + base, left, item.aligned);
    }
#pragma unroll
    for (int j = 0; j < kPacksInFlight<G>; ++j) {
      const int64_t base = begin + j * kThreads * kSize;
      const int64_t left = item.size - base;
#pragma unroll
      for (int i = 0; i < kSize; ++i) {
        const C g = static_cast<C>(widen(grad[j].at[i]));
        const C size = squared ? g * g : (g < C(0) ? -g : g);
        importance[j].at[i] = narrow<I>(fused(scale, size, static_cast<C>(widen(importance[j].at[i]))));
      }
      store_pack(static_cast<I*>(item.importance) + base, importance[j], left, item.aligned);
    }
  }
}

template <class I, class G>
void run_importance(const DeviceScope& scope, ScalarType kept, ScalarType dtype, const std::vector<Tensor>& importances,
                    const std::vector<Tensor>& grads, bool squared, double scale) {
  ListBatch<ImportanceItem> batch;
  const auto run = [&](const ListTable<ImportanceItem>& table, int64_t chunks) {
    launch(scope, importance_kernel<I, G>, scope.blocks(chunks), kThreads, table, squared,
           static_cast<Compute<I>>(scale));
  };
  for (size_t i = 0; i < grads.size(); ++i) {
    if (grads[i].scalar_type() != dtype || importances[i].scalar_type() != kept) continue;
    ImportanceItem item = {};
    item.importance = importances[i].data_ptr();
    item.grad = grads[i].data_ptr();
    item.size = grads[i].numel();
    item.aligned = aligned16(item.importance, item.grad);
    batch.add(item, ceil_div(item.size, kImportanceChunk<I, G>), run);
  }
  batch.flush(run);
}

void accumulate_importance_(std::vector<Tensor> importances, std::vector<Tensor> grads, int64_t power, double scale) {
  constexpr const char* kOp = "accumulate_importance_";
  FF_CHECK(importances.size() == grads.size(), "accumulate_importance_: ", importances.size(), " importances and ",
           grads.size(), " grads; give as many of each");
  FF_CHECK(power == 1 || power == 2, "accumulate_importance_: power is ", power, "; accepted: 1, 2");
  for (size_t i = 0; i < grads.size(); ++i) {
    float_dtype(grads[i], kOp, "grads");
    const ScalarType dtype = grads[i].scalar_type();
    const bool wide = dtype != ScalarType::Double && importances[i].scalar_type() == ScalarType::Float;
    check_layout(grads[i], dtype, grads[i].numel(), kOp, "grads");
    check_layout(importances[i], wide ? ScalarType::Float : dtype, grads[i].numel(), kOp, "importances");
  }
  if (grads.empty()) return;
  const DeviceScope scope(grads[0]);
  for (const ScalarType dtype : kStorageTypes) {
    with_storage(dtype, [&](auto tag) {
      using T = typename decltype(tag)::type;
      run_importance<T, T>(scope, dtype, dtype, importances, grads, power == 2, scale);
      if constexpr (sizeof(T) == 2) {
        run_importance<float, T>(scope, ScalarType::Float, dtype, importances, grads, power == 2, scale);
      }
    });
  }
}

// ---- soft_threshold_ ----

struct ShrinkItem {
  void* x;
  int64_t size;
  double threshold;
  double* partial;  // one sum of absolute values a chunk
  bool aligned;
};

FF_HD float magnitude(float x) { return fabsf(x); }
FF_HD double magnitude(double x) { return fabs(x); }
FF_HD float with_sign(float size, float sign) { return copysignf(size, sign); }
FF_HD double with_sign(double size, double sign) { return copysign(size, sign); }

template <class T>
__global__ void __launch_bounds__(kThreads)
    shrink_kernel(const __grid_constant__ ListTable<ShrinkItem> table, unsigned long long* nonzero) {
  using C = Compute<T>;
  using P = Pack<T>;
  unsigned long long total = 0;
  for (int64_t chunk = blockIdx.x; chunk < table.chunks(); chunk += gridDim.x) {
    const int at = table.find(chunk);
    const ShrinkItem& item = table.items[at];
    const int64_t local = chunk - table.first_chunk(at);
    const int64_t begin = local * kChunk<T> + threadIdx.x * P::kSize;
    const C threshold = static_cast<C>(item.threshold);
    P x[kPacksInFlight<T>];
#pragma unroll
    for (int j = 0; j < kPacksInFlight<T>; ++j) {
      const int64_t base = begin + j * kThreads * P::kSize;
      x[j] = load_pack<P>(static_cast<const T*>(item.x) + base, item.size - base, item.aligned);
    }
    double sum = 0.0;
    unsigned kept = 0;
#pragma unroll
    for (int j = 0; j < kPacksInFlight<T>; ++j) {
      const int64_t base = begin + j * kThreads * P::kSize;
      const int64_t left = item.size - base;
#pragma unroll
      for (int i = 0; i < P::kSize; ++i) {
        const C value = widen(x[j].at[i]);
        const C rest = magnitude(value) - threshold;
        x[j].at[i] = narrow<T>(with_sign(rest < C(0) ? C(0) : rest, value));  // NaN stays NaN
        const C stored = magnitude(static_cast<C>(widen(x[j].at[i])));
        if (i < left && stored != C(0)) {
          sum += static_cast<double>(stored);
          ++kept;
        }
      }
      store_pack(static_cast<T*>(item.x) + base, x[j], left, item.aligned);
    }
    total += kept;
    sum = block_reduce<kThreads>(sum, Sum{});
    if (threadIdx.x == 0) item.partial[local] = sum;
  }
  total = block_reduce<kThreads>(total, Sum{});
  if (threadIdx.x == 0 && total != 0) atomicAdd(nonzero, total);
}

// One block, so several loads of each thread in flight.
constexpr int kTotalThreads = 1024;
__global__ void __launch_bounds__(kTotalThreads) total_kernel(const double* partial, int64_t count, double* out) {
  double sum = 0.0;
#pragma unroll 8
  for (int64_t i = threadIdx.x; i < count; i += kTotalThreads) sum += partial[i];
  sum = block_reduce<kTotalThreads>(sum, Sum{});
  if (threadIdx.x == 0) *out = sum;
}

void soft_threshold_(std::vector<Tensor> xs, std::vector<double> threshold, Tensor l1, Tensor nnz) {
  constexpr const char* kOp = "soft_threshold_";
  check_per_tensor(threshold, xs.size(), kOp, "threshold");
  check_layout(l1, ScalarType::Double, 1, kOp, "l1");
  check_layout(nnz, ScalarType::Long, 1, kOp, "nnz");
  int64_t all_chunks = 0;
  for (const Tensor& x : xs) {
    float_dtype(x, kOp, "xs");
    check_layout(x, x.scalar_type(), x.numel(), kOp, "xs");
    with_storage(x.scalar_type(),
                 [&](auto tag) { all_chunks += ceil_div(x.numel(), kChunk<typename decltype(tag)::type>); });
  }
  const DeviceScope scope(l1);
  auto* const nonzero = data<unsigned long long>(nnz);
  FF_CUDA_CHECK(cudaMemsetAsync(nonzero, 0, sizeof *nonzero, scope.stream()));
  const Tensor partial = scratch(l1, std::max<int64_t>(1, all_chunks) * int64_t{sizeof(double)});
  double* next = data<double>(partial);
  for (const ScalarType dtype : kStorageTypes) {
    with_storage(dtype, [&](auto tag) {
      using T = typename decltype(tag)::type;
      ListBatch<ShrinkItem> batch;
      const auto run = [&](const ListTable<ShrinkItem>& table, int64_t chunks) {
        launch(scope, shrink_kernel<T>, scope.blocks(chunks), kThreads, table, nonzero);
      };
      for (size_t i = 0; i < xs.size(); ++i) {
        if (xs[i].scalar_type() != dtype) continue;
        ShrinkItem item = {};
        item.x = xs[i].data_ptr();
        item.size = xs[i].numel();
        item.threshold = per_tensor(threshold, i);
        item.partial = next;
        item.aligned = aligned16(item.x);
        const int64_t chunks = ceil_div(item.size, kChunk<T>);
        batch.add(item, chunks, run);
        next += chunks;
      }
      batch.flush(run);
    });
  }
  launch(scope, total_kernel, 1u, kTotalThreads, data<double>(partial), all_chunks, data<double>(l1));
}

}  // namespace
}  // namespace ff::cuda

FF_REGISTER(m) {
  m.impl("dampen_", TORCH_BOX(&ff::cuda::dampen_));
  m.impl("accumulate_importance_", TORCH_BOX(&ff::cuda::accumulate_importance_));
  m.impl("soft_threshold_", TORCH_BOX(&ff::cuda::soft_threshold_));
}
