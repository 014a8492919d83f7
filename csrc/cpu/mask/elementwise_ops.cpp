// dampen_, accumulate_importance_ and soft_threshold_ on CPU tensors: checks and the cut for torch's threads.
#include <atomic>

#include "common/lists.h"
#include "common/table.h"
#include "common/torch_glue.h"

namespace ff {
namespace {

struct DampenItem {
  char *param, *forget, *retain;
  int dtype;
};

void dampen_(const std::vector<Tensor>& params, const std::vector<Tensor>& forget, const std::vector<Tensor>& retain,
             const Tensor& count, double alpha, double lam) {
  constexpr const char* op = "dampen_";
  if (forget.size() != params.size() || retain.size() != params.size()) {
    fail("fastforget.", op, ": ", params.size(), " params, ", forget.size(), " forget_importance and ", retain.size(),
         " retain_importance tensors; the numbers must agree");
  }
  check_layout(count, ScalarType::Long, 1, op, "count");
  std::vector<DampenItem> items;
  items.reserve(params.size());
  FlatList elements(params.size());
  for (size_t i = 0; i < params.size(); ++i) {
    const Leader leader(params[i], op, "params");
    check_like(forget[i], leader, op, "forget_importance");
    check_like(retain[i], leader, op, "retain_importance");
    items.push_back({static_cast<char*>(params[i].data_ptr()), static_cast<char*>(forget[i].data_ptr()),
                     static_cast<char*>(retain[i].data_ptr()), leader.index});
    elements.add(leader.numel);
  }
  std::atomic<int64_t> selected{0};  // whole numbers: the order of the additions doesn't matter
  const MaskElementwiseTable& kernels = table().mask_elementwise;
  elements.parallel(kStreamGrain, [&](size_t i, int64_t begin, int64_t end) {
    const DampenItem& item = items[i];
    const int64_t offset = begin * dtype_size(item.dtype);
    selected.fetch_add(kernels.dampen[item.dtype](item.param + offset, item.forget + offset, item.retain + offset,
                                                  end - begin, alpha, lam),
                       std::memory_order_relaxed);
  });
  *static_cast<int64_t*>(count.data_ptr()) = selected.load();
}

struct ImportanceItem {
  char* importance;
  const char* grad;
  int64_t importance_size;
  int dtype;     // grad's
  bool widened;  // float32 importance of a 16-bit gradient
};

void accumulate_importance_(const std::vector<Tensor>& importances, const std::vector<Tensor>& grads, int64_t power,
                            double scale) {
  constexpr const char* op = "accumulate_importance_";
  if (grads.size() != importances.size()) {
    fail("fastforget.", op, ": ", importances.size(), " importances and ", grads.size(),
         " grads; the numbers must agree");
  }
  if (power != 1 && power != 2) fail("fastforget.", op, ": power is ", power, "; accepted: 1, 2");
  std::vector<ImportanceItem> items;
  items.reserve(grads.size());
  for (size_t i = 0; i < grads.size(); ++i) {
    const int dtype = float_dtype(grads[i], op, "grads");
    const int64_t n = grads[i].numel();
    const bool widened = dtype_size(dtype) == 2 && dtype_code(importances[i]) == dtype_code(ScalarType::Float);
    check_layout(grads[i], kFloatTypes[dtype], n, op, "grads");
    check_like(importances[i], Like(grads[i], widened ? ScalarType::Float : kFloatTypes[dtype]), op, "importances");
    items.push_back({static_cast<char*>(importances[i].data_ptr()), static_cast<const char*>(grads[i].data_ptr()),
                     widened ? 4 : dtype_size(dtype), dtype, widened});
  }
  const MaskElementwiseTable& kernels = table().mask_elementwise;
  FlatList(grads).parallel(kStreamGrain, [&](size_t i, int64_t begin, int64_t end) {
    const ImportanceItem& item = items[i];
    kernels.accumulate[item.dtype][item.widened ? 1 : 0](item.importance + begin * item.importance_size,
                                                         item.grad + begin * dtype_size(item.dtype), end - begin, power,
                                                         scale);
  });
}

void soft_threshold_(const std::vector<Tensor>& xs, const std::vector<double>& threshold, const Tensor& l1,
                     const Tensor& nnz) {
  constexpr const char* op = "soft_threshold_";
  constexpr int64_t kChunk = 16384;
  check_per_tensor(threshold, xs.size(), op, "threshold");
  check_layout(l1, ScalarType::Double, 1, op, "l1");
  check_layout(nnz, ScalarType::Long, 1, op, "nnz");
  struct Item {
    char* data;
    int dtype;
  };
  std::vector<Item> items;
  items.reserve(xs.size());
  int64_t total = 0;
  for (const Tensor& x : xs) {
    const int dtype = float_dtype(x, op, "xs");
    const int64_t n = x.numel();
    check_layout(x, kFloatTypes[dtype], n, op, "xs");
    items.push_back({static_cast<char*>(x.data_ptr()), dtype});
    total += n;
  }
  const std::vector<Chunk> chunks = fixed_chunks(xs, kChunk);
  std::vector<double> sums(chunks.size());
  std::atomic<int64_t> nonzero{0};  // whole numbers: the order of the additions doesn't matter
  const MaskElementwiseTable& kernels = table().mask_elementwise;
  const auto range = [&](int64_t begin, int64_t end) {
    int64_t nonzero_here = 0;
    for (int64_t c = begin; c < end; ++c) {
      const Chunk& chunk = chunks[static_cast<size_t>(c)];
      const Item& item = items[chunk.tensor];
      nonzero_here +=
          kernels.soft_threshold[item.dtype](item.data + chunk.begin * dtype_size(item.dtype), chunk.end - chunk.begin,
                                             per_tensor(threshold, chunk.tensor), &sums[static_cast<size_t>(c)]);
    }
    nonzero.fetch_add(nonzero_here, std::memory_order_relaxed);
  };
  const auto count = static_cast<int64_t>(chunks.size());
  if (total <= kStreamGrain) {
    range(0, count);
  } else {
    torch::stable::parallel_for(0, count, 1, range);
  }
  double sum = 0;
  for (double part : sums) sum += part;
  *static_cast<double*>(l1.data_ptr()) = sum;
  *static_cast<int64_t*>(nnz.data_ptr()) = nonzero;
}

}  // namespace
}  // namespace ff

STABLE_TORCH_LIBRARY_IMPL(fastforget, CPU, m) {
  m.impl("dampen_", TORCH_BOX(&ff::dampen_));
  m.impl("accumulate_importance_", TORCH_BOX(&ff::accumulate_importance_));
  m.impl("soft_threshold_", TORCH_BOX(&ff::soft_threshold_));
}
