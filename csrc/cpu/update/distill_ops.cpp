// distill_loss on CPU tensors: checks, and the cut for torch's threads.
#include <cmath>

#include "common/apart.h"
#include "common/lists.h"
#include "common/table.h"
#include "common/tangents.h"
#include "common/torch_glue.h"

namespace ff {
namespace {

void distill_loss(const Tensor& logits, const Tensor& teacher, const Tensor& drop, double temperature,
                  const Tensor& loss, const Tensor& dlogits) {
  constexpr const char* op = "distill_loss";
  if (logits.dim() != 2) fail("fastforget.", op, ": logits has ", logits.dim(), " dimensions; expected [B, K]");
  const int64_t batch = logits.size(0), classes = logits.size(1);
  const int dtype = float_dtype(logits, op, "logits");
  check_layout(logits, kFloatTypes[dtype], batch * classes, op, "logits");
  const Like like(logits, kFloatTypes[dtype]);
  check_like(teacher, like, op, "teacher");
  check_like(dlogits, like, op, "dlogits");
  const bool by_row = dtype_code(drop) == dtype_code(ScalarType::Long);
  const int64_t left_out = by_row ? batch : drop.numel() == 0 ? 0 : classes;
  check_layout(drop, by_row ? ScalarType::Long : ScalarType::Bool, left_out, op, "drop");
  if (drop.dim() != 1) fail("fastforget.", op, ": drop has ", drop.dim(), " dimensions; expected [B], [K] or [0]");
  check_layout(loss, dtype == kFloat64 ? ScalarType::Double : ScalarType::Float, batch, op, "loss");
  if (!(temperature > 0 && std::isfinite(temperature))) {
    fail("fastforget.", op, ": temperature is ", temperature, "; accepted: a finite number above 0");
  }
  refuse_tangents(op, logits, teacher, drop, loss, dlogits);
  Ranges ranges(op, 5);
  ranges.read(logits, "logits");
  ranges.read(teacher, "teacher");
  ranges.read(drop, "drop");
  ranges.write(loss, "loss");
  ranges.write(dlogits, "dlogits");
  ranges.check();
  const Dropped dropped = {by_row ? static_cast<const int64_t*>(drop.data_ptr()) : nullptr,
                           by_row || left_out == 0 ? nullptr : static_cast<const uint8_t*>(drop.data_ptr())};
  for (int64_t b = 0; by_row && b < batch; ++b) {
    const int64_t label = dropped.labels[b];
    if (__builtin_expect(label < -1 || label >= classes, 0)) {
      fail("fastforget.", op, ": drop[", b, "] is ", label, "; accepted: -1 (none) to ", classes - 1);
    }
  }
  const auto kernel = table().update_distill.distill_loss[dtype];
  const int64_t loss_size = dtype == kFloat64 ? 8 : 4;
  const int64_t grain = classes < kNoiseGrain ? kNoiseGrain / (classes > 0 ? classes : 1) : 1;
  torch::stable::parallel_for(0, batch, grain, [&](int64_t begin, int64_t end) {
    const Dropped here = {by_row ? dropped.labels + begin : nullptr, dropped.classes};
    kernel(at(logits, begin * classes), at(teacher, begin * classes), here, end - begin, classes, batch, temperature,
           static_cast<char*>(loss.data_ptr()) + begin * loss_size, at(dlogits, begin * classes));
  });
}

}  // namespace
}  // namespace ff

STABLE_TORCH_LIBRARY_IMPL(fastforget, CPU, m) { m.impl("distill_loss", TORCH_BOX(&ff::distill_loss)); }
