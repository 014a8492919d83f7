// The exact global top-k of magnitudes as masks, on CUDA, with no word from the device to the host. Magnitudes order as
// their bits do, so the k-th largest is found digit by digit: a histogram of one digit over the whole list, then the
// digit in which the k-th lies. One more pass writes the masks. Only where more magnitudes equal the k-th than may be
// kept, two kernels in between rank them by position; otherwise these two return at once.
#include "cuda/mask/select_kernels.cuh"

namespace ff::cuda {
namespace {

// Calls run(tag, table, chunks) for the whole list, with the launches of one dtype after those of another.
template <class Key, class Run>
void each_table(const std::vector<Tensor>& xs, const std::vector<Tensor>& masks, Run&& run) {
  for (const ScalarType dtype : kStorageTypes) {
    with_storage(dtype, [&](auto tag) {
      if constexpr (sizeof(typename decltype(tag)::type) <= sizeof(Key)) {
        ListBatch<SelectItem> batch;
        const auto one = [&](const ListTable<SelectItem>& table, int64_t chunks) { run(tag, table, chunks); };
        int64_t first = 0;
        for (size_t i = 0; i < xs.size(); ++i) {
          const int64_t chunks = ceil_div(xs[i].numel(), kChunk);
          if (xs[i].scalar_type() == dtype) {
            SelectItem item = {};
            item.x = xs[i].data_ptr();
            item.mask = static_cast<uint8_t*>(masks[i].data_ptr());
            item.size = xs[i].numel();
            item.first = first;
            item.aligned = aligned16(item.x);
            item.packed = dtype_code(masks[i]) != dtype_code(ScalarType::Bool);
            item.mask_aligned = reinterpret_cast<uintptr_t>(item.mask) % 8 == 0;
            batch.add(item, chunks, one);
          }
          first += chunks;
        }
        batch.flush(one);
      }
    });
  }
}

template <class Key>
void run_select(const DeviceScope& scope, const std::vector<Tensor>& xs, int64_t k, const std::vector<Tensor>& masks,
                const Tensor& threshold, const std::vector<Digit>& digits) {
  int64_t chunks = 0;
  for (const Tensor& x : xs) chunks += ceil_div(x.numel(), kChunk);
  const int64_t histograms = static_cast<int64_t>(digits.size() * kBins * sizeof(uint64_t));
  const int64_t head = int64_t{sizeof(Found)} + histograms;
  const Tensor memory = scratch(threshold, head + chunks * int64_t{sizeof(int64_t)});
  Found* const found = data<Found>(memory);
  auto* const histogram = reinterpret_cast<unsigned long long*>(found + 1);
  auto* const ties = reinterpret_cast<int64_t*>(data<char>(memory) + head);
  FF_CUDA_CHECK(cudaMemsetAsync(found, k == 0 ? 0xff : 0, static_cast<size_t>(head), scope.stream()));
  if (k == 0) {
    launch(scope, infinity_kernel<Value<Key>>, 1u, kWarp, data<Value<Key>>(threshold));
  } else {
    for (size_t round = 0; round < digits.size(); ++round) {
      unsigned long long* const bins = histogram + round * kBins;
      each_table<Key>(xs, masks, [&](auto tag, const ListTable<SelectItem>& table, int64_t count) {
        launch(scope, histogram_kernel<typename decltype(tag)::type, Key>, scope.resident_blocks(count, 4),
               kHistogramThreads, table, found, digits[round], bins);
      });
      launch(scope, digit_kernel<Key>, 1u, kThreads, found, bins, digits[round], static_cast<uint64_t>(k),
             round + 1 == digits.size(), data<Value<Key>>(threshold));
    }
    each_table<Key>(xs, masks, [&](auto tag, const ListTable<SelectItem>& table, int64_t count) {
      launch(scope, ties_kernel<typename decltype(tag)::type, Key>, scope.blocks(count), kThreads, table, found, ties);
    });
    launch(scope, scan_kernel, 1u, kScanThreads, found, ties, chunks);
  }
  each_table<Key>(xs, masks, [&](auto tag, const ListTable<SelectItem>& table, int64_t count) {
    launch(scope, mask_kernel<typename decltype(tag)::type, Key>, scope.blocks(count), kThreads, table, found, ties);
  });
}

void saliency_mask(std::vector<Tensor> xs, int64_t k, std::vector<Tensor> masks, Tensor threshold) {
  constexpr const char* kOp = "saliency_mask";
  FF_CHECK(masks.size() == xs.size(), "saliency_mask: ", xs.size(), " xs and ", masks.size(),
           " masks; give as many of each");
  int64_t elements = 0;
  bool any_single = false, any_double = false;
  for (size_t i = 0; i < xs.size(); ++i) {
    float_dtype(xs[i], kOp, "xs");
    const ScalarType dtype = xs[i].scalar_type();
    const int64_t size = xs[i].numel();
    check_layout(xs[i], dtype, size, kOp, "xs");
    if (dtype_code(masks[i]) == aoti_torch_dtype_uint8()) {
      FF_CHECK(masks[i].numel() == ceil_div(size, 8) && masks[i].is_contiguous(), "saliency_mask: masks has ",
               masks[i].numel(), " bytes of packed bits; expected ", ceil_div(size, 8), " in a row");
    } else {
      check_layout(masks[i], ScalarType::Bool, size, kOp, "masks");
    }
    any_single |= dtype == ScalarType::Float;
    any_double |= dtype == ScalarType::Double;
    elements += size;
  }
  check_layout(threshold, any_double ? ScalarType::Double : ScalarType::Float, 1, kOp, "threshold");
  FF_CHECK(k >= 0 && k <= elements, "saliency_mask: k is ", k, "; accepted: 0 to ", elements);
  const DeviceScope scope(threshold);
  if (any_double) {
    run_select<uint64_t>(
        scope, xs, k, masks, threshold,
        {{52, 11, true}, {41, 11, false}, {30, 11, false}, {19, 11, false}, {8, 11, false}, {0, 8, false}});
  } else if (any_single) {
    run_select<uint32_t>(scope, xs, k, masks, threshold, {{20, 11, true}, {9, 11, false}, {0, 9, false}});
  } else {  // the last 13 bits of a widened 16-bit number are zero
    run_select<uint32_t>(scope, xs, k, masks, threshold, {{20, 11, true}, {9, 11, false}});
  }
}

}  // namespace
}  // namespace ff::cuda

FF_REGISTER(m) { m.impl("saliency_mask", TORCH_BOX(&ff::cuda::saliency_mask)); }
