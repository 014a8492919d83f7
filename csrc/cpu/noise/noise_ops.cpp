// The noise ops on CPU tensors: checks, and the cut of a list into ranges for torch's threads.
#include "common/lists.h"
#include "common/table.h"
#include "common/torch_glue.h"

namespace ff {
namespace {

uint64_t checked_start(int64_t start, const char* op) {
  if (__builtin_expect(start < 0, 0)) fail("fastforget.", op, ": start is ", start, "; accepted: 0 or more");
  return static_cast<uint64_t>(start);
}

void random_bits(const Tensor& out, int64_t seed, int64_t stream, int64_t step, int64_t start) {
  const int64_t n = out.numel();
  check_layout(out, ScalarType::Int, n, "random_bits", "out");
  const NoiseRange range{static_cast<uint64_t>(seed), static_cast<uint32_t>(stream), static_cast<uint32_t>(step),
                         checked_start(start, "random_bits")};
  uint32_t* words = static_cast<uint32_t*>(out.data_ptr());
  const NoiseTable& kernels = table().noise;
  torch::stable::parallel_for(0, n, kNoiseGrain, [&](int64_t begin, int64_t end) {
    NoiseRange part = range;
    part.start += static_cast<uint64_t>(begin);
    kernels.random_bits(words + begin, end - begin, part);
  });
}

// One tensor of a noise list, with everything the kernel needs.
struct NoiseItem {
  char* data;
  int64_t element_size;
  int dtype;
  double mean, std;
  NoiseRange range;
};

// mean is null for add_normal_.
void noise_list(const std::vector<Tensor>& xs, const std::vector<double>* mean, const std::vector<double>& std,
                int64_t seed, int64_t stream, int64_t step, const std::vector<int64_t>& start, const char* op) {
  check_per_tensor(std, xs.size(), op, "std");
  check_per_tensor(start, xs.size(), op, "start");
  if (mean != nullptr) check_per_tensor(*mean, xs.size(), op, "mean");
  std::vector<NoiseItem> items;
  items.reserve(xs.size());
  for (size_t i = 0; i < xs.size(); ++i) {
    const Tensor& x = xs[i];
    const int dtype = float_dtype(x, op, "xs");
    if (__builtin_expect(!x.is_contiguous(), 0)) fail("fastforget.", op, ": xs[", i, "] is not contiguous");
    items.push_back({static_cast<char*>(x.data_ptr()), dtype_size(dtype), dtype,
                     mean == nullptr ? 0.0 : per_tensor(*mean, i), per_tensor(std, i),
                     NoiseRange{static_cast<uint64_t>(seed), static_cast<uint32_t>(stream + static_cast<int64_t>(i)),
                                static_cast<uint32_t>(step), checked_start(per_tensor(start, i), op)}});
  }
  const NoiseTable& kernels = table().noise;
  const auto& add_normal = kernels.perturb[NoiseTable::kPlain];
  FlatList(xs).parallel(kNoiseGrain, [&](size_t i, int64_t begin, int64_t end) {
    const NoiseItem& item = items[i];
    NoiseRange range = item.range;
    range.start += static_cast<uint64_t>(begin);
    void* data = item.data + begin * item.element_size;
    if (mean == nullptr) {
      add_normal[item.dtype](data, nullptr, nullptr, end - begin, 0.0, item.std, range);
    } else {
      kernels.normal[item.dtype](data, end - begin, item.mean, item.std, range);
    }
  });
}

void normal_(const std::vector<Tensor>& xs, const std::vector<double>& mean, const std::vector<double>& std,
             int64_t seed, int64_t stream, int64_t step, const std::vector<int64_t>& start) {
  noise_list(xs, &mean, std, seed, stream, step, start, "normal_");
}

void add_normal_(const std::vector<Tensor>& xs, const std::vector<double>& std, int64_t seed, int64_t stream,
                 int64_t step, const std::vector<int64_t>& start) {
  noise_list(xs, nullptr, std, seed, stream, step, start, "add_normal_");
}

// grads may be empty (no gradient term); std_elements, if not empty, replaces std.
void perturb_step_(const std::vector<Tensor>& params, const std::vector<Tensor>& grads, double lr,
                   const std::vector<double>& std, const std::vector<Tensor>& std_elements, int64_t seed,
                   int64_t stream, int64_t step, const std::vector<int64_t>& start) {
  constexpr const char* kOp = "perturb_step_";
  check_none_or_each(grads, params.size(), kOp, "grads");
  check_none_or_each(std_elements, params.size(), kOp, "std_elements");
  if (std_elements.empty()) check_per_tensor(std, params.size(), kOp, "std");
  check_per_tensor(start, params.size(), kOp, "start");
  struct Item {
    char* param;
    const char* grad;
    const char* std_elements;
    int dtype;
    double std;
    NoiseRange range;
  };
  std::vector<Item> items;
  items.reserve(params.size());
  for (size_t i = 0; i < params.size(); ++i) {
    const Leader leader(params[i], kOp, "params");
    if (!grads.empty()) check_like(grads[i], leader, kOp, "grads");
    if (!std_elements.empty()) check_like(std_elements[i], leader, kOp, "std_elements");
    items.push_back({static_cast<char*>(params[i].data_ptr()),
                     grads.empty() ? nullptr : static_cast<const char*>(grads[i].data_ptr()),
                     std_elements.empty() ? nullptr : static_cast<const char*>(std_elements[i].data_ptr()),
                     leader.index, std_elements.empty() ? per_tensor(std, i) : 0.0,
                     NoiseRange{static_cast<uint64_t>(seed), static_cast<uint32_t>(stream + static_cast<int64_t>(i)),
                                static_cast<uint32_t>(step), checked_start(per_tensor(start, i), kOp)}});
  }
  const auto& perturb = table().noise.perturb[(grads.empty() ? NoiseTable::kPlain : NoiseTable::kGrad) +
                                              (std_elements.empty() ? NoiseTable::kPlain : NoiseTable::kElements)];
  FlatList(params).parallel(kNoiseGrain, [&](size_t i, int64_t begin, int64_t end) {
    const Item& item = items[i];
    const int64_t offset = begin * dtype_size(item.dtype);
    NoiseRange range = item.range;
    range.start += static_cast<uint64_t>(begin);
    perturb[item.dtype](item.param + offset, item.grad == nullptr ? nullptr : item.grad + offset,
                        item.std_elements == nullptr ? nullptr : item.std_elements + offset, end - begin, lr, item.std,
                        range);
  });
}

}  // namespace
}  // namespace ff

STABLE_TORCH_LIBRARY_IMPL(fastforget, CPU, m) {
  m.impl("random_bits", TORCH_BOX(&ff::random_bits));
  m.impl("normal_", TORCH_BOX(&ff::normal_));
  m.impl("add_normal_", TORCH_BOX(&ff::add_normal_));
  m.impl("perturb_step_", TORCH_BOX(&ff::perturb_step_));
}
