// What two lists of gradients have to do with each other: their products, in one launch for the whole list.
#include "common/call.h"
#include "common/launch.cuh"
#include "common/normal.h"  // fused

namespace ff::cuda {
namespace {

constexpr int kSums = 3;
template <class T>
constexpr int kPacksInFlight = sizeof(T) == 2 ? 2 : 4;
template <class T>
constexpr int kChunk =
    kThreads * Pack<T>::kSize * kPacksInFlight<T>;  // of fixed size: the sums do not depend on the launch

struct ProductsItem {
  const void* a;
  const void* b;
  int64_t size;
  double* partial;  // kSums a chunk
  bool aligned;
};

// In double, where the product of two float32 numbers is exact.
template <class T>
__global__ void __launch_bounds__(kThreads) products_kernel(const __grid_constant__ ListTable<ProductsItem> table) {
  using P = Pack<T>;
  for (int64_t chunk = blockIdx.x; chunk < table.chunks(); chunk += gridDim.x) {
    const int at = table.find(chunk);
    const ProductsItem& item = table.items[at];
    const int64_t local = chunk - table.first_chunk(at);
    const int64_t begin = local * kChunk<T> + threadIdx.x * P::kSize;
    P a[kPacksInFlight<T>], b[kPacksInFlight<T>];
#pragma unroll
    for (int j = 0; j < kPacksInFlight<T>; ++j) {
      const int64_t base = begin + j * kThreads * P::kSize;
      a[j] = load_pack<P>(static_cast<const T*>(item.a) + base, item.size - base, item.aligned);
      b[j] = load_pack<P>(static_cast<const T*>(item.b) + base, item.size - base, item.aligned);
    }
    double dot = 0.0, squares_a = 0.0, squares_b = 0.0;
#pragma unroll
    for (int j = 0; j < kPacksInFlight<T>; ++j) {
#pragma unroll
      for (int i = 0; i < P::kSize; ++i) {  // 0 past the end
        const double x = static_cast<double>(widen(a[j].at[i])), y = static_cast<double>(widen(b[j].at[i]));
        dot = fused(x, y, dot);
        squares_a = fused(x, x, squares_a);
        squares_b = fused(y, y, squares_b);
      }
    }
    dot = block_reduce<kThreads>(dot, Sum{});
    squares_a = block_reduce<kThreads>(squares_a, Sum{});
    squares_b = block_reduce<kThreads>(squares_b, Sum{});
    if (threadIdx.x == 0) {
      double* const to = item.partial + local * kSums;
      to[0] = dot;
      to[1] = squares_a;
      to[2] = squares_b;
    }
  }
}

// A block for each of the sums, several loads of each thread in flight.
constexpr int kTotalThreads = 1024;
__global__ void __launch_bounds__(kTotalThreads) totals_kernel(const double* partial, int64_t chunks, double* out) {
  double sum = 0.0;
#pragma unroll 8
  for (int64_t i = threadIdx.x; i < chunks; i += kTotalThreads) sum += partial[i * kSums + blockIdx.x];
  sum = block_reduce<kTotalThreads>(sum, Sum{});
  if (threadIdx.x == 0) out[blockIdx.x] = sum;
}

void gradient_products(std::vector<Tensor> a, std::vector<Tensor> b, Tensor out) {
  constexpr const char* kOp = "gradient_products";
  FF_CHECK(a.size() == b.size(), "gradient_products: ", a.size(), " tensors in a and ", b.size(),
           " in b; give as many of each");
  check_layout(out, ScalarType::Double, kSums, kOp, "out");
  int64_t all_chunks = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    float_dtype(a[i], kOp, "a");
    const ScalarType dtype = a[i].scalar_type();
    check_layout(a[i], dtype, a[i].numel(), kOp, "a");
    check_layout(b[i], dtype, a[i].numel(), kOp, "b");
    with_storage(dtype, [&](auto tag) { all_chunks += ceil_div(a[i].numel(), kChunk<typename decltype(tag)::type>); });
  }
  check_call(kOp, true, {given(a, "a"), given(b, "b"), whole(changed(out, "out"))});
  const DeviceScope scope(out);
  const Tensor partial = scratch(out, std::max<int64_t>(1, kSums * all_chunks) * int64_t{sizeof(double)});
  double* next = data<double>(partial);
  for (const ScalarType dtype : kStorageTypes) {
    with_storage(dtype, [&](auto tag) {
      using T = typename decltype(tag)::type;
      ListBatch<ProductsItem> batch;
      const auto run = [&](const ListTable<ProductsItem>& table, int64_t chunks) {
        launch(scope, products_kernel<T>, scope.blocks(chunks), kThreads, table);
      };
      for (size_t i = 0; i < a.size(); ++i) {
        if (a[i].scalar_type() != dtype) continue;
        ProductsItem item = {};
        item.a = a[i].data_ptr();
        item.b = b[i].data_ptr();
        item.size = a[i].numel();
        item.partial = next;
        item.aligned = aligned16(item.a, item.b);
        const int64_t chunks = ceil_div(item.size, kChunk<T>);
        batch.add(item, chunks, run);
        next += chunks * kSums;
      }
      batch.flush(run);
    });
  }
  launch(scope, totals_kernel, static_cast<unsigned>(kSums), kTotalThreads, data<double>(partial), all_chunks,
         data<double>(out));
}

}  // namespace
}  // namespace ff::cuda

FF_REGISTER(m) { m.impl("gradient_products", TORCH_BOX(&ff::cuda::gradient_products)); }
