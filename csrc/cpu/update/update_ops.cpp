// CPU implementations of the ops: argument checks, cutting the work for torch's threads.
#include <atomic>
#include <cmath>

#include "common/lists.h"
#include "common/table.h"
#include "common/torch_glue.h"

namespace ff {
namespace {

// ---- update ---------------------------------------------------------------------------------------------------------

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

// ---- mask -----------------------------------------------------------------------------------------------------------

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
  const MaskTable& kernels = table().mask;
  elements.parallel(kStreamGrain, [&](size_t i, int64_t begin, int64_t end) {
    const DampenItem& item = items[i];
    const int64_t offset = begin * dtype_size(item.dtype);
    selected.fetch_add(kernels.dampen[item.dtype](item.param + offset, item.forget + offset, item.retain + offset,
                                                  end - begin, alpha, lam),
                       std::memory_order_relaxed);
  });
  *static_cast<int64_t*>(count.data_ptr()) = selected.load();
}

// For benchmarks: what the memory of this machine allows, measured in the same process. float32 tensors of one size.
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
  const MaskTable& kernels = table().mask;
  torch::stable::parallel_for(0, n, kStreamGrain, [&](int64_t begin, int64_t end) {
    const int64_t m = end - begin;
    switch (kind) {
      case 0: {
        volatile float keep = kernels.limit_read(p[0] + begin, m);
        static_cast<void>(keep);
        break;
      }
      case 1: kernels.limit_update(p[0] + begin, m); break;
      case 2: kernels.limit_axpy(p[0] + begin, p[1] + begin, m); break;
      case 3: kernels.limit_select(p[0] + begin, p[1] + begin, p[2] + begin, m); break;
      default: kernels.limit_adam(p[0] + begin, p[1] + begin, p[2] + begin, p[3] + begin, m); break;
    }
  });
}

}  // namespace

}  // namespace ff

STABLE_TORCH_LIBRARY_IMPL(fastforget, CPU, m) {
  m.impl("error_max_loss", TORCH_BOX(&ff::error_max_loss));
  m.impl("error_max_step_", TORCH_BOX(&ff::error_max_step_));
  m.impl("dampen_", TORCH_BOX(&ff::dampen_));
}

// Private: the memory limits.
STABLE_TORCH_LIBRARY_FRAGMENT(fastforget, m) { m.def("_limit(Tensor(a!)[] tensors, int kind) -> ()"); }

STABLE_TORCH_LIBRARY_IMPL(fastforget, CompositeExplicitAutograd, m) { m.impl("_limit", TORCH_BOX(&ff::limit)); }
