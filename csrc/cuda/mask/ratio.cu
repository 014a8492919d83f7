// Masks of the elements where one importance is large beside another, in one launch for a whole list.
#include "common/call.h"
#include "common/launch.cuh"

namespace ff::cuda {
namespace {

constexpr int kRun = 8;  // elements of a thread: a byte of bits, or 8 bytes of bools
constexpr int kRuns = 2;
constexpr int kChunk = kThreads * kRun * kRuns;

template <class T>
using RunPack = Pack<T, kRun>;

struct RatioItem {
  const void* numerator;
  const void* denominator;
  uint8_t* mask;
  int64_t size;
  bool aligned, mask_aligned, packed;
};

// A NaN compares false: off.
template <class C>
FF_HD bool is_on(C numerator, C denominator, C threshold, C eps) {
  return numerator + eps >= threshold * (denominator + eps);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    ratio_kernel(const __grid_constant__ ListTable<RatioItem> table, Compute<T> threshold, Compute<T> eps) {
  using P = RunPack<T>;
  for (int64_t chunk = blockIdx.x; chunk < table.chunks(); chunk += gridDim.x) {
    const int at = table.find(chunk);
    const RatioItem& item = table.items[at];
    const int64_t begin = (chunk - table.first_chunk(at)) * kChunk + threadIdx.x * kRun;
    P numerator[kRuns], denominator[kRuns];
#pragma unroll
    for (int j = 0; j < kRuns; ++j) {
      const int64_t base = begin + j * kThreads * kRun;
      const int64_t left = item.size - base;
      numerator[j] = load_pack<P>(static_cast<const T*>(item.numerator) + base, left, item.aligned);
      denominator[j] = load_pack<P>(static_cast<const T*>(item.denominator) + base, left, item.aligned);
    }
#pragma unroll
    for (int j = 0; j < kRuns; ++j) {
      const int64_t base = begin + j * kThreads * kRun;
      const int64_t left = item.size - base;
      if (left <= 0) continue;
      uint64_t bytes = 0;
      unsigned bits = 0;
#pragma unroll
      for (int i = 0; i < kRun; ++i) {
        const bool on =
            i < left && is_on<Compute<T>>(widen(numerator[j].at[i]), widen(denominator[j].at[i]), threshold, eps);
        bits |= static_cast<unsigned>(on) << i;
        bytes |= static_cast<uint64_t>(on) << (8 * i);
      }
      if (item.packed) {
        item.mask[base / kRun] = static_cast<uint8_t>(bits);
      } else if (item.mask_aligned && left >= kRun) {
        *reinterpret_cast<uint64_t*>(item.mask + base) = bytes;
      } else {
#pragma unroll
        for (int i = 0; i < kRun; ++i) {
          if (i < left) item.mask[base + i] = static_cast<uint8_t>(bits >> i & 1u);
        }
      }
    }
  }
}

void ratio_mask(std::vector<Tensor> numerators, std::vector<Tensor> denominators, std::vector<Tensor> masks,
                double threshold, double eps) {
  constexpr const char* kOp = "ratio_mask";
  FF_CHECK(denominators.size() == numerators.size() && masks.size() == numerators.size(),
           "ratio_mask: ", numerators.size(), " numerators, ", denominators.size(), " denominators and ", masks.size(),
           " masks; give as many of each");
  for (size_t i = 0; i < numerators.size(); ++i) {
    float_dtype(numerators[i], kOp, "numerators");
    const ScalarType dtype = numerators[i].scalar_type();
    const int64_t size = numerators[i].numel();
    check_layout(numerators[i], dtype, size, kOp, "numerators");
    check_layout(denominators[i], dtype, size, kOp, "denominators");
    const bool packed = dtype_code(masks[i]) == dtype_code(ScalarType::Byte);
    check_layout(masks[i], packed ? ScalarType::Byte : ScalarType::Bool, packed ? ceil_div(size, kRun) : size, kOp,
                 "masks");
  }
  check_call(kOp, false,
             {given(numerators, "numerators"), given(denominators, "denominators"), changed(masks, "masks")});
  if (numerators.empty()) return;
  const DeviceScope scope(numerators[0]);
  for (const ScalarType dtype : kStorageTypes) {
    with_storage(dtype, [&](auto tag) {
      using T = typename decltype(tag)::type;
      ListBatch<RatioItem> batch;
      const auto run = [&](const ListTable<RatioItem>& table, int64_t chunks) {
        launch(scope, ratio_kernel<T>, scope.blocks(chunks), kThreads, table, static_cast<Compute<T>>(threshold),
               static_cast<Compute<T>>(eps));
      };
      for (size_t i = 0; i < numerators.size(); ++i) {
        if (numerators[i].scalar_type() != dtype) continue;
        RatioItem item = {};
        item.numerator = numerators[i].data_ptr();
        item.denominator = denominators[i].data_ptr();
        item.mask = static_cast<uint8_t*>(masks[i].data_ptr());
        item.size = numerators[i].numel();
        item.aligned = aligned16(item.numerator, item.denominator);
        item.mask_aligned = reinterpret_cast<uintptr_t>(item.mask) % 8 == 0;
        item.packed = dtype_code(masks[i]) == dtype_code(ScalarType::Byte);
        batch.add(item, ceil_div(item.size, kChunk), run);
      }
      batch.flush(run);
    });
  }
}

}  // namespace
}  // namespace ff::cuda

FF_REGISTER(m) { m.impl("ratio_mask", TORCH_BOX(&ff::cuda::ratio_mask)); }
