// error_max_loss and error_max_step_ on CPU tensors: checks, and the cut for torch's threads.
#include <cmath>

#include "common/lists.h"
#include "common/table.h"
#include "common/torch_glue.h"

namespace ff {
namespace {

void error_max_loss(const Tensor& logits, const Tensor& labels, const Tensor& loss, const Tensor& dlogits) {
  constexpr const char* op = "error_max_loss";
  if (logits.dim() != 2) fail("fastforget.", op, ": logits has ", logits.dim(), " dimensions; expected [B, K]");
  const int64_t batch = logits.size(0), classes = logits.size(1);
  const int dtype = float_dtype(logits, op, "logits");
  const ScalarType type = kFloatTypes[dtype];
  check_layout(logits, type, batch * classes, op, "logits");
  check_layout(dlogits, type, batch * classes, op, "dlogits");
  check_layout(labels, ScalarType::Long, batch, op, "labels");
  check_layout(loss, dtype == kFloat64 ? ScalarType::Double : ScalarType::Float, batch, op, "loss");
  const int64_t* label = static_cast<const int64_t*>(labels.data_ptr());
  for (int64_t b = 0; b < batch; ++b) {
    if (__builtin_expect(label[b] < 0 || label[b] >= classes, 0)) {
      fail("fastforget.", op, ": labels[", b, "] is ", label[b], "; accepted: 0 to ", classes - 1);
    }
  }
  const auto kernel = table().update.error_max_loss[dtype];
  const int64_t loss_size = dtype == kFloat64 ? 8 : 4;
  const int64_t grain = classes < kNoiseGrain ? kNoiseGrain / (classes > 0 ? classes : 1) : 1;
  torch::stable::parallel_for(0, batch, grain, [&](int64_t begin, int64_t end) {
    kernel(at(logits, begin * classes), label + begin, end - begin, classes, batch,
           static_cast<char*>(loss.data_ptr()) + begin * loss_size, at(dlogits, begin * classes));
  });
}

void error_max_step_(const Tensor& x, const Tensor& grad, const Tensor& exp_avg, const Tensor& exp_avg_sq,
                     const Tensor& sum_sq, int64_t step, double lr, double beta1, double beta2, double eps, double l2,
                     double clamp_min, double clamp_max) {
  constexpr const char* op = "error_max_step_";
  const Leader leader(x, op, "x");
  check_like(grad, leader, op, "grad");
  check_like(exp_avg, leader, op, "exp_avg");
  check_like(exp_avg_sq, leader, op, "exp_avg_sq");
  if (leader.dims < 1) fail("fastforget.", op, ": x has no batch dimension; expected [B, ...]");
  if (step < 1) fail("fastforget.", op, ": step is ", step, "; accepted: 1 or more");
  const int dtype = leader.index;
  check_layout(sum_sq, dtype == kFloat64 ? ScalarType::Double : ScalarType::Float, 1, op, "sum_sq");
  const int64_t n = leader.numel;
  const double batch = static_cast<double>(x.size(0));
  const double power = static_cast<double>(step);
  const AdamStep constants{
      batch > 0 ? 2.0 * l2 / batch : 0.0,      beta1,     beta2,    eps, lr / (1.0 - std::pow(beta1, power)),
      std::sqrt(1.0 - std::pow(beta2, power)), clamp_min, clamp_max};
  // Partial sums over chunks of a fixed size, added in order: the result can't depend on the number of threads.
  constexpr int64_t kChunk = 16384;
  const auto kernel = table().update.error_max_step[dtype];
  char* const base[4] = {static_cast<char*>(x.data_ptr()), static_cast<char*>(grad.data_ptr()),
                         static_cast<char*>(exp_avg.data_ptr()), static_cast<char*>(exp_avg_sq.data_ptr())};
  const int64_t size = dtype_size(dtype);
  const auto squares_of = [&](int64_t from) {
    const int64_t offset = from * size;
    return kernel(base[0] + offset, base[1] + offset, base[2] + offset, base[3] + offset,
                  n - from < kChunk ? n - from : kChunk, constants);
  };
  double total = 0;
  if (n <= kChunk) {
    if (n > 0) total = squares_of(0);
  } else {
    const int64_t chunks = (n + kChunk - 1) / kChunk;
    std::vector<double> squares(static_cast<size_t>(chunks));
    torch::stable::parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t chunk = begin; chunk < end; ++chunk)
        squares[static_cast<size_t>(chunk)] = squares_of(chunk * kChunk);
    });
    for (double part : squares) total += part;
  }
  if (dtype == kFloat64) {
    *static_cast<double*>(sum_sq.data_ptr()) = total;
  } else {
    *static_cast<float*>(sum_sq.data_ptr()) = static_cast<float>(total);
  }
}

}  // namespace

}  // namespace ff

STABLE_TORCH_LIBRARY_IMPL(fastforget, CPU, m) {
  m.impl("error_max_loss", TORCH_BOX(&ff::error_max_loss));
  m.impl("error_max_step_", TORCH_BOX(&ff::error_max_step_));
}
