// A tensor argument of an op. The members are those of torch::stable::Tensor that the kernels use. That class shares
// its handle, which costs an allocation and a deleter for every tensor of a list; this one owns the handle alone, and a
// list of a network's parameters is unpacked in two thirds of the time.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <dlfcn.h>

#include <cstdint>
#include <stdexcept>
#include <utility>
#include <vector>

namespace ff {

using torch::headeronly::ScalarType;

// The C interface reports failure by a code; it has no reason to give one for a tensor that exists.
inline void must(AOTITorchError code) {
  if (__builtin_expect(code != AOTI_TORCH_SUCCESS, 0))
    throw std::runtime_error("fastforget: torch refused a question about a tensor");
}

class Tensor {
 public:
  Tensor() noexcept : handle_(nullptr) {}  // to be assigned later
  explicit Tensor(AtenTensorHandle owned) noexcept : handle_(owned) {}
  Tensor(Tensor&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Tensor(const Tensor& other) : handle_(duplicate(other.handle_)) {}
  Tensor(const torch::stable::Tensor& other)
      : handle_(duplicate(other.get())) {}  // NOLINT: what torch's functions return
  Tensor& operator=(Tensor other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~Tensor() {
    if (handle_ != nullptr) static_cast<void>(aoti_torch_delete_tensor_object(handle_));
  }
  operator torch::stable::Tensor() const { return torch::stable::Tensor(duplicate(handle_)); }  // and what they take

  AtenTensorHandle get() const { return handle_; }
  void* data_ptr() const { return ask<void*>(aoti_torch_get_data_ptr); }
  int64_t numel() const { return ask<int64_t>(aoti_torch_get_numel); }
  int64_t dim() const { return ask<int64_t>(aoti_torch_get_dim); }
  int64_t size(int64_t dim) const {
    int64_t size;
    must(aoti_torch_get_size(handle_, dim, &size));
    return size;
  }
  const int64_t* sizes() const { return ask<int64_t*>(aoti_torch_get_sizes); }
  bool is_contiguous() const { return ask<bool>(aoti_torch_is_contiguous); }
  int32_t get_device_index() const { return ask<int32_t>(aoti_torch_get_device_index); }
  int32_t dtype_code() const { return ask<int32_t>(aoti_torch_get_dtype); }
  size_t element_size() const { return aoti_torch_dtype_element_size(dtype_code()); }
  ScalarType scalar_type() const {
    return torch::stable::detail::to<ScalarType>(torch::stable::detail::from(dtype_code()));
  }

 private:
  template <class T>
  T ask(AOTITorchError (*question)(AtenTensorHandle, T*)) const {
    T answer;
    must(question(handle_, &answer));
    return answer;
  }
  static AtenTensorHandle duplicate(AtenTensorHandle handle) {
    AtenTensorHandle copy = nullptr;
    must(aoti_torch_new_tensor_handle(handle, &copy));
    return copy;
  }

  AtenTensorHandle handle_;
};

// Holds Python's lock while a list of tensors is let go. Torch takes and drops that lock for every tensor whose last
// other owner is a Python object, and a dispatched op runs without it: for the parameters of a network that was a third
// of a call. Taken once, the rest is a counter. Nothing happens where no Python runs.
class PythonLock {
 public:
  PythonLock() : state_(functions().ensure == nullptr ? 0 : functions().ensure()) {}
  PythonLock(const PythonLock&) = delete;
  PythonLock& operator=(const PythonLock&) = delete;
  ~PythonLock() {
    if (functions().ensure != nullptr) functions().release(state_);
  }

 private:
  struct Functions {
    int (*ensure)() = nullptr;
    void (*release)(int) = nullptr;

    Functions() {
      const auto running = reinterpret_cast<int (*)()>(dlsym(RTLD_DEFAULT, "Py_IsInitialized"));
      if (running == nullptr || running() == 0) return;
      release = reinterpret_cast<void (*)(int)>(dlsym(RTLD_DEFAULT, "PyGILState_Release"));
      if (release != nullptr) ensure = reinterpret_cast<int (*)()>(dlsym(RTLD_DEFAULT, "PyGILState_Ensure"));
    }
  };
  static const Functions& functions() {
    static const Functions found;
    return found;
  }

  int state_;
};

// The list as TORCH_BOX keeps it while the op sees a const std::vector<Tensor>&.
class TensorList : public std::vector<Tensor> {
 public:
  explicit TensorList(std::vector<Tensor>&& tensors) noexcept : std::vector<Tensor>(std::move(tensors)) {}
  TensorList(TensorList&&) noexcept = default;
  TensorList& operator=(TensorList&&) = delete;
  ~TensorList() {
    constexpr size_t kWorthTheLock = 4;
    if (size() < kWorthTheLock) return;
    const PythonLock lock;
    clear();
  }
};

}  // namespace ff

// How TORCH_BOX hands them to an op.
template <>
struct torch::stable::detail::ToImpl<ff::Tensor> {
  static ff::Tensor call(StableIValue value, uint64_t, bool) {
    return ff::Tensor(torch::stable::detail::to<AtenTensorHandle>(value));
  }
};

template <>
struct torch::stable::detail::UnboxType<std::vector<ff::Tensor>> {
  using type = ff::TensorList;
};

template <>
struct torch::stable::detail::ToImpl<ff::TensorList> {
  static ff::TensorList call(StableIValue value, uint64_t, bool) {
    return ff::TensorList(torch::stable::detail::to<std::vector<ff::Tensor>>(value));
  }
};
