// _limit on CPU tensors: private, for benchmarks.
#include "common/lists.h"
#include "common/table.h"
#include "common/torch_glue.h"

namespace ff {
namespace {

// What the memory of this machine allows, measured in the same process. float32 tensors of one size.
// kind 0: read a. 1: read and write a. 2: read a, b, write a. 3: read a, b, c, write a (dampen_'s traffic).
// 4: read a, b, c, d, write a, c, d (error_max_step_'s traffic). Values stay as they are, up to a tiny increment.
void limit(const std::vector<Tensor>& tensors, int64_t kind) {
  constexpr size_t kTensors[] = {1, 1, 2, 3, 4};
  if (kind < 0 || kind > 4) fail("fastforget._limit: kind is ", kind, "; accepted: 0 to 4");
  if (tensors.size() != kTensors[kind]) {
    fail("fastforget._limit: kind ", kind, " takes ", kTensors[kind], " tensors, got ", tensors.size());
  }
  float* p[4] = {};
  const int64_t n = tensors[0].numel();
  for (size_t i = 0; i < tensors.size(); ++i) {
    check_layout(tensors[i], ScalarType::Float, n, "_limit", "tensors");
    p[i] = static_cast<float*>(tensors[i].data_ptr());
  }
  const LimitTable& kernels = table().limit;
  torch::stable::parallel_for(0, n, kStreamGrain, [&](int64_t begin, int64_t end) {
    const int64_t m = end - begin;
    switch (kind) {
      case 0: {
        volatile float keep = kernels.read(p[0] + begin, m);
        static_cast<void>(keep);
        break;
      }
      case 1: kernels.update(p[0] + begin, m); break;
      case 2: kernels.axpy(p[0] + begin, p[1] + begin, m); break;
      case 3: kernels.select(p[0] + begin, p[1] + begin, p[2] + begin, m); break;
      default: kernels.adam(p[0] + begin, p[1] + begin, p[2] + begin, p[3] + begin, m); break;
    }
  });
}

}  // namespace
}  // namespace ff

STABLE_TORCH_LIBRARY_FRAGMENT(fastforget, m) { m.def("_limit(Tensor(a!)[] tensors, int kind) -> ()"); }

STABLE_TORCH_LIBRARY_IMPL(fastforget, CompositeExplicitAutograd, m) { m.impl("_limit", TORCH_BOX(&ff::limit)); }
