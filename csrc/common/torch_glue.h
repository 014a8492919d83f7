// Small helpers over torch's stable ABI, shared by the CPU and the CUDA glue. Ops get preallocated tensors; the public
// Python functions check for a reader's sake, these checks keep a direct call of torch.ops from touching foreign
// memory.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <vector>

#include "common/tensor.h"

namespace ff {

// Raises RuntimeError with this text alone: torch's own macro prepends a source path of the build machine.
template <class... Parts>
[[noreturn]] __attribute__((noinline, cold)) void fail(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw std::runtime_error(text.str());
}

// The first part of the text must be a literal, "op: what is wrong".
#define FF_CHECK(condition, ...)             \
  do {                                       \
    if (__builtin_expect(!(condition), 0)) { \
      ::ff::fail("fastforget." __VA_ARGS__); \
    }                                        \
  } while (0)

// Position of a dtype in kernel tables (float32, bfloat16, float16, float64), -1 for any other.
inline int dtype_index(ScalarType type) {
  switch (type) {
    case ScalarType::Float: return 0;
    case ScalarType::BFloat16: return 1;
    case ScalarType::Half: return 2;
    case ScalarType::Double: return 3;
    default: return -1;
  }
}

constexpr ScalarType kFloatTypes[4] = {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half, ScalarType::Double};

constexpr int64_t dtype_size(int index) { return index == 0 ? 4 : index == 3 ? 8 : 2; }

// dtype_code: the dtype as torch's C interface numbers it. scalar_type() asks that interface for one number after
// another until one fits, which for a list of parameters would be most of the call's time.
inline int32_t dtype_code(const Tensor& t) { return t.dtype_code(); }

inline int32_t dtype_code(ScalarType type) {
  static const int32_t codes[] = {aoti_torch_dtype_float32(), aoti_torch_dtype_bfloat16(), aoti_torch_dtype_float16(),
                                  aoti_torch_dtype_float64(), aoti_torch_dtype_int32(),    aoti_torch_dtype_int64(),
                                  aoti_torch_dtype_bool(),    aoti_torch_dtype_uint8(),    aoti_torch_dtype_int8()};
  switch (type) {
    case ScalarType::Float: return codes[0];
    case ScalarType::BFloat16: return codes[1];
    case ScalarType::Half: return codes[2];
    case ScalarType::Double: return codes[3];
    case ScalarType::Int: return codes[4];
    case ScalarType::Long: return codes[5];
    case ScalarType::Bool: return codes[6];
    case ScalarType::Byte: return codes[7];
    case ScalarType::Char: return codes[8];
    default: fail("fastforget: no op takes dtype ", torch::headeronly::toString(type));
  }
}

// Torch sends a call to a GPU as soon as one of its tensors is there; a kernel must not follow the pointers of the
// others into the memory of another device. A call reaches the CPU only if all its tensors are there.
inline void check_device([[maybe_unused]] const Tensor& t, [[maybe_unused]] const char* op,
                         [[maybe_unused]] const char* name) {
#ifdef __CUDACC__
  int32_t device;
  must(aoti_torch_get_device_type(t.get(), &device));
  if (device != aoti_torch_device_type_cuda()) {
    fail("fastforget.", op, ": ", name, " is not on a GPU, but another tensor of the call is");
  }
#endif
}

inline int float_dtype(const Tensor& t, const char* op, const char* name) {
  check_device(t, op, name);
  const int32_t code = dtype_code(t);
  for (int index = 0; index < 4; ++index) {
    if (code == dtype_code(kFloatTypes[index])) return index;
  }
  fail("fastforget.", op, ": ", name, " has dtype ", torch::headeronly::toString(t.scalar_type()),
       "; accepted: float32, bfloat16, float16, float64");
}

// Of scores, whose kernels know float32 (false) and float64 alone.
inline bool is_float64(const Tensor& t, const char* op, const char* name) {
  const ScalarType type = t.scalar_type();
  if (type != ScalarType::Float && type != ScalarType::Double) {
    fail("fastforget.", op, ": ", name, " has dtype ", torch::headeronly::toString(type),
         "; accepted: float32, float64");
  }
  return type == ScalarType::Double;
}

// `name` must be contiguous and have `numel` elements of `type`.
inline void check_layout(const Tensor& t, ScalarType type, int64_t numel, const char* op, const char* name) {
  check_device(t, op, name);
  if (__builtin_expect(dtype_code(t) != dtype_code(type), 0)) {
    fail("fastforget.", op, ": ", name, " has dtype ", torch::headeronly::toString(t.scalar_type()), "; expected ",
         torch::headeronly::toString(type));
  }
  if (__builtin_expect(t.numel() != numel, 0)) {
    fail("fastforget.", op, ": ", name, " has ", t.numel(), " elements; expected ", numel);
  }
  if (__builtin_expect(!t.is_contiguous(), 0)) fail("fastforget.", op, ": ", name, " is not contiguous");
}

// What the tensors beside another one must share with it. Asked once, because a list asks for hundreds.
struct Like {
  int32_t dtype;
  int64_t dims;
  const int64_t* sizes;

  Like(const Tensor& t, ScalarType type) : dtype(dtype_code(type)), dims(t.dim()), sizes(t.sizes()) {}
};

// A tensor that partners follow: it must have a floating dtype and be contiguous.
struct Leader : Like {
  int index;  // of its dtype in kernel tables
  int64_t numel;

  Leader(const Tensor& t, const char* op, const char* name) : Leader(t, float_dtype(t, op, name)) {
    if (__builtin_expect(!t.is_contiguous(), 0)) fail("fastforget.", op, ": ", name, " is not contiguous");
  }

 private:
  Leader(const Tensor& t, int dtype) : Like(t, kFloatTypes[dtype]), index(dtype), numel(t.numel()) {}
};

// `name` must be contiguous, with the dtype and the shape of its partner.
inline void check_like(const Tensor& t, const Like& like, const char* op, const char* name) {
  check_device(t, op, name);
  const bool alike =
      dtype_code(t) == like.dtype && t.dim() == like.dims && std::equal(like.sizes, like.sizes + like.dims, t.sizes());
  if (__builtin_expect(!alike, 0)) fail("fastforget.", op, ": ", name, " differs in dtype or shape from its partner");
  if (__builtin_expect(!t.is_contiguous(), 0)) fail("fastforget.", op, ": ", name, " is not contiguous");
}

// mean, std and start hold one value for every tensor of a list, or one each.
template <class T>
T per_tensor(const std::vector<T>& values, size_t i) {
  return values.size() == 1 ? values[0] : values[i];
}

template <class T>
void check_per_tensor(const std::vector<T>& values, size_t tensors, const char* op, const char* name) {
  if (__builtin_expect(values.size() != 1 && values.size() != tensors, 0)) {
    fail("fastforget.", op, ": ", name, " has ", values.size(), " values for ", tensors, " tensors; give 1 or ",
         tensors);
  }
}

// An optional list of tensors: empty, or one for each tensor of the op's first list.
template <class T>
void check_none_or_each(const std::vector<T>& list, size_t tensors, const char* op, const char* name) {
  if (__builtin_expect(!list.empty() && list.size() != tensors, 0)) {
    fail("fastforget.", op, ": ", name, " has ", list.size(), " tensors for ", tensors, "; give none or ", tensors);
  }
}

}  // namespace ff
