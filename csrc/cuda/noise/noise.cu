// Counter-based normal noise on CUDA. A thread makes whole Philox blocks of four, so no word is computed twice; every
// value depends only on (seed, stream, step, global index), never on the launch.
#include "common/launch.cuh"
#include "common/normal.h"
#include "common/philox.h"

namespace ff::cuda {
namespace {

// What one thread makes at a time: whole Philox blocks that fill whole 16-byte packs.
template <class T>
constexpr int kUnit = sizeof(T) == 2 ? 8 : 4;
constexpr int kUnitsInFlight = 2;
constexpr int kUnitsPerChunk = 2 * kUnitsInFlight * kThreads;

// What the noise is added to, and what it is multiplied by: a number, or a tensor that is read beside x. Each pair
// shares its bytes, which keeps a ResNet-18's 62 tensors in one launch table.
struct NoiseItem {
  void* x;
  int64_t size;
  int64_t start;
  union {
    double mean;
    const void* grad;
  };
  union {
    double std;
    const void* std_elements;
  };
  uint32_t stream;
  bool aligned;  // a Philox block starts at x[0], and every tensor is 16-byte aligned
};

// The terms of a kernel: x is read (Add), a gradient is (Grad, with Add), std is one value an element (Elements).
template <bool Add_, bool Grad_, bool Elements_>
struct Terms {
  static constexpr bool Add = Add_, Grad = Grad_, Elements = Elements_;
};

template <class T>
__device__ __forceinline__ void normals(uint64_t seed, uint32_t stream, uint32_t step, uint64_t block,
                                        Compute<T> (&z)[kUnit<T>]) {
#pragma unroll
  for (int i = 0; i < kUnit<T>; i += 4) {
    const Words words = philox(seed, stream, step, block + i / 4);
    const NormalPair<Compute<T>> low = normal_pair<Compute<T>>(words.w0, words.w1);
    const NormalPair<Compute<T>> high = normal_pair<Compute<T>>(words.w2, words.w3);
    z[i] = low.z0;
    z[i + 1] = low.z1;
    z[i + 2] = high.z0;
    z[i + 3] = high.z1;
  }
}

// One element: mean + std * z, x + std * z, or x - lr * grad + std * z.
template <class K, class T, class C>
__device__ __forceinline__ T noisy(C z, T x, T grad, T std_element, C mean, C std, C minus_lr) {
  const C scale = K::Elements ? widen(std_element) : std;
  if constexpr (!K::Add) return narrow<T>(fused(scale, z, mean));
  return narrow<T>(fused(scale, z, K::Grad ? fused(minus_lr, widen(grad), widen(x)) : widen(x)));
}

template <class T, class K>
__device__ __forceinline__ void write_noise(const ListTable<NoiseItem>& table, uint64_t seed, uint32_t step,
                                            Compute<T> minus_lr) {
  using C = Compute<T>;
  using P = Pack<T, kUnit<T>>;
  for (int64_t chunk = blockIdx.x; chunk < table.chunks(); chunk += gridDim.x) {
    const int at = table.find(chunk);
    const NoiseItem& item = table.items[at];
    T* const x = static_cast<T*>(item.x);
    const T* const grad = K::Grad ? static_cast<const T*>(item.grad) : nullptr;
    const T* const elements = K::Elements ? static_cast<const T*>(item.std_elements) : nullptr;
    const C mean = K::Add ? C(0) : static_cast<C>(item.mean), std = K::Elements ? C(0) : static_cast<C>(item.std);
    const uint64_t first_block = static_cast<uint64_t>(item.start) / 4;
    const int64_t skew = item.start % 4;  // elements of the first block that lie before x[0]
    const int64_t first_unit = (chunk - table.first_chunk(at)) * kUnitsPerChunk + threadIdx.x;
    for (int done = 0; done < kUnitsPerChunk; done += kUnitsInFlight * kThreads) {
      P packs[kUnitsInFlight], grads[kUnitsInFlight], stds[kUnitsInFlight];
      if constexpr (K::Add || K::Elements) {
#pragma unroll
        for (int j = 0; j < kUnitsInFlight; ++j) {
          const int64_t base = (first_unit + done + j * kThreads) * kUnit<T> - skew;
          if (!item.aligned || base + kUnit<T> > item.size) continue;
          if constexpr (K::Add) packs[j] = load_whole<P>(x + base);
          if constexpr (K::Grad) grads[j] = load_whole<P>(grad + base);
          if constexpr (K::Elements) stds[j] = load_whole<P>(elements + base);
        }
      }
#pragma unroll
      for (int j = 0; j < kUnitsInFlight; ++j) {
        const int64_t unit = first_unit + done + j * kThreads;
        const int64_t base = unit * kUnit<T> - skew;
        if (base >= item.size) continue;
        C z[kUnit<T>];
        normals<T>(seed, item.stream, step, first_block + static_cast<uint64_t>(unit) * (kUnit<T> / 4), z);
        if (item.aligned && base + kUnit<T> <= item.size) {
#pragma unroll
          for (int i = 0; i < kUnit<T>; ++i) {
            packs[j].at[i] = noisy<K>(z[i], packs[j].at[i], grads[j].at[i], stds[j].at[i], mean, std, minus_lr);
          }
          store_whole(x + base, packs[j]);
        } else {
#pragma unroll
          for (int i = 0; i < kUnit<T>; ++i) {
            const int64_t index = base + i;
            if (index < 0 || index >= item.size) continue;
            const T none = {};
            x[index] = noisy<K>(z[i], K::Add ? x[index] : none, K::Grad ? grad[index] : none,
                                K::Elements ? elements[index] : none, mean, std, minus_lr);
          }
        }
      }
    }
  }
}

template <class T, bool Add>
__global__ void __launch_bounds__(kThreads)
    normal_kernel(const __grid_constant__ ListTable<NoiseItem> table, uint64_t seed, uint32_t step) {
  write_noise<T, Terms<Add, false, false>>(table, seed, step, 0);
}

template <class T, bool Grad, bool Elements>
__global__ void __launch_bounds__(kThreads) perturb_kernel(const __grid_constant__ ListTable<NoiseItem> table,
                                                           uint64_t seed, uint32_t step, Compute<T> minus_lr) {
  write_noise<T, Terms<true, Grad, Elements>>(table, seed, step, minus_lr);
}

__global__ void __launch_bounds__(kThreads)
    random_bits_kernel(uint32_t* out, int64_t size, uint64_t seed, uint32_t stream, uint32_t step, int64_t start,
                       bool aligned) {
  const uint64_t first_block = static_cast<uint64_t>(start) / 4;
  const int64_t skew = start % 4;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t unit = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; unit * 4 - skew < size;
       unit += stride) {
    const Words words = philox(seed, stream, step, first_block + static_cast<uint64_t>(unit));
    const int64_t base = unit * 4 - skew;
    if (aligned && base + 4 <= size) {
      store16(out + base, make_uint4(words.w0, words.w1, words.w2, words.w3));
    } else {
#pragma unroll
      for (unsigned i = 0; i < 4; ++i) {
        const int64_t index = base + i;
        if (index >= 0 && index < size) out[index] = word(words, i);
      }
    }
  }
}

// Puts a list into launch tables, a dtype after the other: `terms(item, i)` fills in what tensor i's kernel computes
// with, `launch_table(tag of the storage type, table, blocks)` starts it on a full table.
template <class Fill, class Launch>
void each_table(const DeviceScope& scope, const std::vector<Tensor>& xs, int64_t stream,
                const std::vector<int64_t>& start, const Fill& terms, const Launch& launch_table) {
  for (const ScalarType dtype : kStorageTypes) {
    with_storage(dtype, [&](auto tag) {
      using T = typename decltype(tag)::type;
      ListBatch<NoiseItem> batch;
      const auto run = [&](const ListTable<NoiseItem>& table, int64_t chunks) {
        launch_table(tag, table, scope.blocks(chunks));
      };
      for (size_t i = 0; i < xs.size(); ++i) {
        if (xs[i].scalar_type() != dtype) continue;
        NoiseItem item = {};
        item.x = xs[i].data_ptr();
        item.size = xs[i].numel();
        item.start = per_tensor(start, i);
        item.stream = static_cast<uint32_t>(stream + static_cast<int64_t>(i));
        item.aligned = item.start % 4 == 0 && aligned16(item.x);
        terms(item, i);
        const int64_t units = item.size == 0 ? 0 : ceil_div(item.start % 4 + item.size, kUnit<T>);
        batch.add(item, ceil_div(units, kUnitsPerChunk), run);
      }
      batch.flush(run);
    });
  }
}

void check_written(const std::vector<Tensor>& xs, const char* op, const char* name) {
  for (const Tensor& x : xs) {
    float_dtype(x, op, name);
    check_layout(x, x.scalar_type(), x.numel(), op, name);
  }
}

// An optional list that is read beside xs.
void check_beside(const std::vector<Tensor>& list, const std::vector<Tensor>& xs, const char* op, const char* name) {
  check_none_or_each(list, xs.size(), op, name);
  for (size_t i = 0; i < list.size(); ++i) check_layout(list[i], xs[i].scalar_type(), xs[i].numel(), op, name);
}

template <bool Add>
void run_normal(const std::vector<Tensor>& xs, const std::vector<double>& mean, const std::vector<double>& std,
                int64_t seed, int64_t stream, int64_t step, const std::vector<int64_t>& start) {
  if (xs.empty()) return;
  constexpr const char* kOp = Add ? "add_normal_" : "normal_";
  if constexpr (!Add) check_per_tensor(mean, xs.size(), kOp, "mean");
  check_per_tensor(std, xs.size(), kOp, "std");
  check_per_tensor(start, xs.size(), kOp, "start");
  check_written(xs, kOp, "xs");
  const DeviceScope scope(xs[0]);
  const auto terms = [&](NoiseItem& item, size_t i) {
    item.mean = Add ? 0.0 : per_tensor(mean, i);
    item.std = per_tensor(std, i);
  };
  each_table(scope, xs, stream, start, terms, [&](auto tag, const ListTable<NoiseItem>& table, unsigned blocks) {
    using T = typename decltype(tag)::type;
    launch(scope, normal_kernel<T, Add>, blocks, kThreads, table, static_cast<uint64_t>(seed),
           static_cast<uint32_t>(step));
  });
}

void normal_(std::vector<Tensor> xs, std::vector<double> mean, std::vector<double> std, int64_t seed, int64_t stream,
             int64_t step, std::vector<int64_t> start) {
  run_normal<false>(xs, mean, std, seed, stream, step, start);
}

void add_normal_(std::vector<Tensor> xs, std::vector<double> std, int64_t seed, int64_t stream, int64_t step,
                 std::vector<int64_t> start) {
  run_normal<true>(xs, {}, std, seed, stream, step, start);
}

// grads may be empty (no gradient term); std_elements, if not empty, replaces std.
void perturb_step_(std::vector<Tensor> params, std::vector<Tensor> grads, double lr, std::vector<double> std,
                   std::vector<Tensor> std_elements, int64_t seed, int64_t stream, int64_t step,
                   std::vector<int64_t> start) {
  constexpr const char* kOp = "perturb_step_";
  const bool graded = !grads.empty(), elementwise = !std_elements.empty();
  if (!graded && !elementwise) return add_normal_(params, std, seed, stream, step, start);
  if (params.empty()) fail("fastforget.", kOp, ": grads or std_elements for no params");
  check_written(params, kOp, "params");
  check_beside(grads, params, kOp, "grads");
  check_beside(std_elements, params, kOp, "std_elements");
  if (!elementwise) check_per_tensor(std, params.size(), kOp, "std");
  check_per_tensor(start, params.size(), kOp, "start");
  const DeviceScope scope(params[0]);
  const auto terms = [&](NoiseItem& item, size_t i) {
    item.grad = graded ? grads[i].data_ptr() : nullptr;
    if (elementwise) {
      item.std_elements = std_elements[i].data_ptr();
    } else {
      item.std = per_tensor(std, i);
    }
    item.aligned = item.aligned && aligned16(item.grad) && (!elementwise || aligned16(item.std_elements));
  };
  each_table(scope, params, stream, start, terms, [&](auto tag, const ListTable<NoiseItem>& table, unsigned blocks) {
    using T = typename decltype(tag)::type;
    const auto kernel = !graded       ? perturb_kernel<T, false, true>
                        : elementwise ? perturb_kernel<T, true, true>
                                      : perturb_kernel<T, true, false>;
    launch(scope, kernel, blocks, kThreads, table, static_cast<uint64_t>(seed), static_cast<uint32_t>(step),
           static_cast<Compute<T>>(-lr));
  });
}

void random_bits(Tensor out, int64_t seed, int64_t stream, int64_t step, int64_t start) {
  const int64_t size = out.numel();
  check_layout(out, ScalarType::Int, size, "random_bits", "out");
  if (size == 0) return;
  const DeviceScope scope(out);
  uint32_t* const words = data<uint32_t>(out);
  const unsigned blocks = scope.blocks(ceil_div(start % 4 + size, 4 * kThreads));
  launch(scope, random_bits_kernel, blocks, kThreads, words, size, static_cast<uint64_t>(seed),
         static_cast<uint32_t>(stream), static_cast<uint32_t>(step), start, start % 4 == 0 && aligned16(words));
}

}  // namespace
}  // namespace ff::cuda

FF_REGISTER(m) {
  m.impl("random_bits", TORCH_BOX(&ff::cuda::random_bits));
  m.impl("normal_", TORCH_BOX(&ff::cuda::normal_));
  m.impl("add_normal_", TORCH_BOX(&ff::cuda::add_normal_));
  m.impl("perturb_step_", TORCH_BOX(&ff::cuda::perturb_step_));
}
