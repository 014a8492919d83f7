// Selective synaptic dampening on CUDA: where the forget set's importance exceeds alpha times the retain set's,
// p *= min(lam * retain / forget, 1). One launch for a whole parameter list.
#include "launch.cuh"

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

}  // namespace
}  // namespace ff::cuda

FF_REGISTER(m) { m.impl("dampen_", TORCH_BOX(&ff::cuda::dampen_)); }
