// What a CPU op sees of a tensor: a plain value, made from the tensor of a dispatched call or from what DLPack says of
// one. It owns nothing; whoever calls the op keeps the tensor alive.
#pragma once
#include "dlpack.h"

#include <vector>

#include "torch_glue.h"

namespace ff {

class View {
 public:
  View(const Tensor& t)  // NOLINT: what a dispatched call has
      : data_(t.data_ptr()),
        sizes_(t.sizes()),
        dims_(t.dim()),
        numel_(t.numel()),
        code_(t.dtype_code()),
        contiguous_(t.is_contiguous()) {}
  explicit View(const dlpack::Tensor& t)
      : data_(static_cast<char*>(t.data) + t.byte_offset),
        sizes_(t.shape),
        dims_(t.ndim),
        numel_(1),
        code_(code_of(t.dtype)),
        contiguous_(true) {
    for (int64_t d = dims_ - 1; d >= 0; --d) {
      if (t.strides != nullptr && sizes_[d] != 1 && t.strides[d] != numel_) contiguous_ = false;
      numel_ *= sizes_[d];
    }
    if (numel_ == 0) contiguous_ = true;
  }

  void* data_ptr() const { return data_; }
  int64_t numel() const { return numel_; }
  int64_t dim() const { return dims_; }
  const int64_t* sizes() const { return sizes_; }
  int64_t size(int64_t dim) const { return sizes_[dim]; }
  bool is_contiguous() const { return contiguous_; }
  int32_t dtype_code() const { return code_; }
  size_t element_size() const { return aoti_torch_dtype_element_size(code_); }
  ScalarType scalar_type() const { return torch::stable::detail::to<ScalarType>(torch::stable::detail::from(code_)); }

 private:
  // As torch's C interface numbers dtypes; -1 for one that no op takes.
  static int32_t code_of(dlpack::DataType type) {
    if (type.lanes != 1) return -1;
    switch (type.code * 256 + type.bits) {
      case dlpack::kFloat * 256 + 32: return ff::dtype_code(ScalarType::Float);
      case dlpack::kFloat * 256 + 64: return ff::dtype_code(ScalarType::Double);
      case dlpack::kFloat * 256 + 16: return ff::dtype_code(ScalarType::Half);
      case dlpack::kBfloat * 256 + 16: return ff::dtype_code(ScalarType::BFloat16);
      case dlpack::kInt * 256 + 64: return ff::dtype_code(ScalarType::Long);
      case dlpack::kInt * 256 + 32: return ff::dtype_code(ScalarType::Int);
      case dlpack::kInt * 256 + 8: return ff::dtype_code(ScalarType::Char);
      case dlpack::kUInt * 256 + 8: return ff::dtype_code(ScalarType::Byte);
      case dlpack::kBool * 256 + 8: return ff::dtype_code(ScalarType::Bool);
      default: return -1;
    }
  }

  void* data_;
  const int64_t* sizes_;
  int64_t dims_, numel_;
  int32_t code_;
  bool contiguous_;
};

// How torch's dispatcher reaches an op that takes views: what it boxes are tensors.
template <class Parameter>
struct Dispatched {
  using type = Parameter;
  static Parameter viewed(Parameter value) { return value; }
};
template <class T>
struct Dispatched<const std::vector<T>&> {
  using type = const std::vector<T>&;
  static type viewed(type value) { return value; }
};
template <>
struct Dispatched<const View&> {
  using type = const Tensor&;
  static View viewed(type value) { return View(value); }
};
template <>
struct Dispatched<const std::vector<View>&> {
  using type = const std::vector<Tensor>&;
  static std::vector<View> viewed(type values) { return {values.begin(), values.end()}; }
};

template <auto op>
struct Boxed;
template <class... Parameters, void (*op)(Parameters...)>
struct Boxed<op> {
  static void call(typename Dispatched<Parameters>::type... values) { op(Dispatched<Parameters>::viewed(values)...); }
};

}  // namespace ff

#define FF_BOX(op) TORCH_BOX(&ff::Boxed<op>::call)
