// Outputs that a CPU op makes itself: what the overloads `made` return. Torch's Python takes longer to make an empty
// tensor and to hand it to an op than a small op takes, and a third of that to receive one.
#pragma once
#include <initializer_list>

#include "torch_glue.h"

namespace ff {

// A dense tensor of no or one dimension, its values not set.
inline Tensor new_cpu_tensor(ScalarType type, std::initializer_list<int64_t> sizes) {
  constexpr int64_t kStride = 1;
  AtenTensorHandle made;
  must(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.begin(), &kStride, dtype_code(type),
                                aoti_torch_device_type_cpu(), 0, &made));
  return Tensor(made);
}

// A tensor on its way out of an op; torch takes it over. The classes that own one would be copied by TORCH_BOX.
struct Returned {
  AtenTensorHandle handle;

  explicit Returned(Tensor&& made) noexcept : handle(made.release()) {}
};

}  // namespace ff

template <>
struct torch::stable::detail::FromImpl<ff::Returned> {
  static StableIValue call(const ff::Returned& value, uint64_t version, bool internal) {
    return FromImpl<AtenTensorHandle>::call(value.handle, version, internal);
  }
};
