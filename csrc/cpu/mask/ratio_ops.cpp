// ratio_mask on CPU tensors: checks, and the cut for torch's threads.
#include "common/apart.h"
#include "common/lists.h"
#include "common/table.h"
#include "common/tangents.h"
#include "common/torch_glue.h"

namespace ff {
namespace {

struct Item {
  const char *numerator, *denominator;
  uint8_t* mask;
  int dtype;
  bool packed;
};

void ratio_mask(const std::vector<Tensor>& numerators, const std::vector<Tensor>& denominators,
                const std::vector<Tensor>& masks, double threshold, double eps) {
  constexpr const char* op = "ratio_mask";
  constexpr int64_t kChunk = 16384;  // whole bytes of bits
  if (denominators.size() != numerators.size() || masks.size() != numerators.size()) {
    fail("fastforget.", op, ": ", numerators.size(), " numerators, ", denominators.size(), " denominators and ",
         masks.size(), " masks; the numbers must agree");
  }
  refuse_tangents(op, numerators, denominators, masks);
  std::vector<Item> items;
  items.reserve(numerators.size());
  Ranges ranges(op, 3 * numerators.size());
  int64_t total = 0;
  for (size_t i = 0; i < numerators.size(); ++i) {
    const Leader leader(numerators[i], op, "numerators");
    check_like(denominators[i], leader, op, "denominators");
    const int64_t n = leader.numel;
    const bool packed = dtype_code(masks[i]) == dtype_code(ScalarType::Byte);
    check_layout(masks[i], packed ? ScalarType::Byte : ScalarType::Bool, packed ? (n + 7) / 8 : n, op, "masks");
    items.push_back({static_cast<const char*>(numerators[i].data_ptr()),
                     static_cast<const char*>(denominators[i].data_ptr()), static_cast<uint8_t*>(masks[i].data_ptr()),
                     leader.index, packed});
    const int64_t bytes = n * dtype_size(leader.index);
    ranges.read(items[i].numerator, bytes, "numerators");
    ranges.read(items[i].denominator, bytes, "denominators");
    ranges.write(items[i].mask, masks[i].numel(), "masks");
    total += n;
  }
  ranges.check();
  const std::vector<Chunk> chunks = fixed_chunks(numerators, kChunk);
  const MaskRatioTable& kernels = table().mask_ratio;
  const auto range = [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      const Chunk& chunk = chunks[static_cast<size_t>(c)];
      const Item& item = items[chunk.tensor];
      const int64_t offset = chunk.begin * dtype_size(item.dtype);
      kernels.ratio[item.dtype][item.packed ? 1 : 0](item.numerator + offset, item.denominator + offset,
                                                     chunk.end - chunk.begin, threshold, eps,
                                                     item.mask + (item.packed ? chunk.begin / 8 : chunk.begin));
    }
  };
  const auto count = static_cast<int64_t>(chunks.size());
  if (total <= kStreamGrain) {
    range(0, count);
  } else {
    torch::stable::parallel_for(0, count, 1, range);
  }
}

}  // namespace
}  // namespace ff

STABLE_TORCH_LIBRARY_IMPL(fastforget, CPU, m) { m.impl("ratio_mask", TORCH_BOX(&ff::ratio_mask)); }
