// CPU glue of the optimiser steps on unmasked coordinates: argument checks and cutting the work. Kernels:
// mask_optim.cpp.
#include <algorithm>
#include <cmath>

#include "common/lists.h"
#include "common/table.h"
#include "common/torch_glue.h"

namespace ff {
namespace {

void check_count(const std::vector<Tensor>& list, size_t params, const char* op, const char* name) {
  if (__builtin_expect(list.size() != params, 0)) {
    fail("fastforget.", op, ": ", list.size(), " ", name, " for ", params, " params; the numbers must agree");
  }
}

// The form of a mask follows from its dtype and shape; `factors`: whether one float32 a row is accepted. int8, which no
// form has, marks a parameter without a mask: a mask of another dtype with no elements is one of the wrong size.
OptimMask mask_form(const Tensor& mask, const Leader& p, size_t i, const char* op, bool factors) {
  const int32_t code = dtype_code(mask);
  const int64_t n = p.numel, given = mask.numel();
  if (code == dtype_code(ScalarType::Char) && given == 0) return {MaskForm::kAllOn, nullptr, 0};
  if (__builtin_expect(!mask.is_contiguous(), 0)) fail("fastforget.", op, ": masks[", i, "] is not contiguous");
  const void* data = mask.data_ptr();
  const int64_t dims = mask.dim();
  const int64_t* sizes = mask.sizes();
  const bool per_row = dims == 1 && p.dims > 0 && given == p.sizes[0];
  const int64_t inner = per_row && given > 0 ? n / given : 0;
  if (code == dtype_code(ScalarType::Bool)) {
    if (dims == p.dims && std::equal(sizes, sizes + dims, p.sizes)) return {MaskForm::kBytes, data, 0};
    if (per_row) return {MaskForm::kRows, data, inner};
  } else if (code == dtype_code(ScalarType::Byte)) {
    if (dims == 1 && given == (n + 7) / 8) return {MaskForm::kBits, data, 0};
  } else if (factors && code == dtype_code(ScalarType::Float)) {
    if (per_row) return {MaskForm::kFactors, data, inner};
  }
  fail("fastforget.", op, ": masks[", i, "] has dtype ", torch::headeronly::toString(mask.scalar_type()), " and ",
       given, " elements for a parameter of ", n,
       "; accepted: bool, of the parameter's shape or one a row; uint8, one ", "bit a coordinate",
       factors ? "; float32, one a row" : "", "; or int8 of no elements, all on");
}

template <class Item>
struct Typed {
  Item item;
  int dtype;
};

void masked_sgd_(const std::vector<Tensor>& params, const std::vector<Tensor>& grads, const std::vector<Tensor>& masks,
                 const std::vector<Tensor>& momentum_buffers, double lr, double momentum, double dampening,
                 double weight_decay, bool nesterov, bool maximize, bool first) {
  constexpr const char* op = "masked_sgd_";
  check_count(grads, params.size(), op, "grads");
  check_count(masks, params.size(), op, "masks");
  const bool buffers = !momentum_buffers.empty();
  if (buffers) check_count(momentum_buffers, params.size(), op, "momentum_buffers");
  std::vector<Typed<SgdItem>> items;
  items.reserve(params.size());
  FlatList elements(params.size());
  for (size_t i = 0; i < params.size(); ++i) {
    const Tensor& p = params[i];
    const Leader leader(p, op, "params");
    check_like(grads[i], leader, op, "grads");
    if (buffers) check_like(momentum_buffers[i], leader, op, "momentum_buffers");
    items.push_back({{p.data_ptr(), grads[i].data_ptr(), buffers ? momentum_buffers[i].data_ptr() : nullptr,
                      mask_form(masks[i], leader, i, op, true)},
                     leader.index});
    elements.add(leader.numel);
  }
  const SgdStep step{lr, momentum, dampening, weight_decay, nesterov, maximize, first};
  const MaskOptimTable& kernels = table().mask_optim;
  elements.parallel(kStreamGrain, [&](size_t i, int64_t begin, int64_t end) {
    kernels.sgd[items[i].dtype](items[i].item, begin, end, step);
  });
}

void masked_adam_(const std::vector<Tensor>& params, const std::vector<Tensor>& grads, const std::vector<Tensor>& masks,
                  const std::vector<Tensor>& exp_avgs, const std::vector<Tensor>& exp_avg_sqs, int64_t step, double lr,
                  double beta1, double beta2, double eps, double weight_decay, bool decoupled, bool maximize) {
  constexpr const char* op = "masked_adam_";
  check_count(grads, params.size(), op, "grads");
  check_count(masks, params.size(), op, "masks");
  check_count(exp_avgs, params.size(), op, "exp_avgs");
  check_count(exp_avg_sqs, params.size(), op, "exp_avg_sqs");
  if (step < 1) fail("fastforget.", op, ": step is ", step, "; accepted: 1 or more");
  std::vector<Typed<MaskedAdamItem>> items;
  items.reserve(params.size());
  FlatList elements(params.size());
  for (size_t i = 0; i < params.size(); ++i) {
    const Tensor& p = params[i];
    const Leader leader(p, op, "params");
    check_like(grads[i], leader, op, "grads");
    check_like(exp_avgs[i], leader, op, "exp_avgs");
    check_like(exp_avg_sqs[i], leader, op, "exp_avg_sqs");
    items.push_back({{p.data_ptr(), grads[i].data_ptr(), exp_avgs[i].data_ptr(), exp_avg_sqs[i].data_ptr(),
                      mask_form(masks[i], leader, i, op, false)},
                     leader.index});
    elements.add(leader.numel);
  }
  const double power = static_cast<double>(step);
  const MaskedAdamStep constants{
      lr / (1.0 - std::pow(beta1, power)), std::sqrt(1.0 - std::pow(beta2, power)),   beta1,   beta2, eps,
      decoupled ? 0.0 : weight_decay,      decoupled ? 1.0 - lr * weight_decay : 1.0, maximize};
  const MaskOptimTable& kernels = table().mask_optim;
  elements.parallel(kStreamGrain, [&](size_t i, int64_t begin, int64_t end) {
    kernels.adam[items[i].dtype](items[i].item, begin, end, constants);
  });
}

}  // namespace
}  // namespace ff

STABLE_TORCH_LIBRARY_IMPL(fastforget, CPU, m) {
  m.impl("masked_sgd_", TORCH_BOX(&ff::masked_sgd_));
  m.impl("masked_adam_", TORCH_BOX(&ff::masked_adam_));
}
