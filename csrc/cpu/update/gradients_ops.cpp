// gradient_products on CPU tensors: checks, and the cut for torch's threads.
#include "common/apart.h"
#include "common/lists.h"
#include "common/table.h"
#include "common/tangents.h"
#include "common/torch_glue.h"

namespace ff {
namespace {

struct Item {
  const char *a, *b;
  int dtype;
};

void gradient_products(const std::vector<Tensor>& a, const std::vector<Tensor>& b, const Tensor& out) {
  constexpr const char* op = "gradient_products";
  constexpr int64_t kChunk = 16384, kSums = 3;
  if (a.size() != b.size()) {
    fail("fastforget.", op, ": ", a.size(), " tensors in a and ", b.size(), " in b; the numbers must agree");
  }
  check_layout(out, ScalarType::Double, kSums, op, "out");
  refuse_tangents(op, a, b, out);
  std::vector<Item> items;
  items.reserve(a.size());
  Ranges ranges(op, 2 * a.size() + 1);
  ranges.write(out, "out");
  int64_t total = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const Leader leader(a[i], op, "a");
    check_like(b[i], leader, op, "b");
    items.push_back(
        {static_cast<const char*>(a[i].data_ptr()), static_cast<const char*>(b[i].data_ptr()), leader.index});
    const int64_t bytes = leader.numel * dtype_size(leader.index);
    ranges.read(items[i].a, bytes, "a");
    ranges.read(items[i].b, bytes, "b");
    total += leader.numel;
  }
  ranges.check();
  // Partial sums over chunks of a fixed size, added in order: the result can't depend on the number of threads.
  const std::vector<Chunk> chunks = fixed_chunks(a, kChunk);
  std::vector<double> sums(chunks.size() * kSums);
  const auto& products = table().update_gradients.products;
  const auto range = [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      const Chunk& chunk = chunks[static_cast<size_t>(c)];
      const Item& item = items[chunk.tensor];
      const int64_t offset = chunk.begin * dtype_size(item.dtype);
      products[item.dtype](item.a + offset, item.b + offset, chunk.end - chunk.begin,
                           &sums[static_cast<size_t>(c * kSums)]);
    }
  };
  const auto count = static_cast<int64_t>(chunks.size());
  if (total <= kStreamGrain) {
    range(0, count);
  } else {
    torch::stable::parallel_for(0, count, 1, range);
  }
  double* const to = static_cast<double*>(out.data_ptr());
  for (int64_t k = 0; k < kSums; ++k) to[k] = 0.0;
  for (size_t i = 0; i < sums.size(); ++i) to[i % kSums] += sums[i];
}

}  // namespace
}  // namespace ff

STABLE_TORCH_LIBRARY_IMPL(fastforget, CPU, m) { m.impl("gradient_products", TORCH_BOX(&ff::gradient_products)); }
