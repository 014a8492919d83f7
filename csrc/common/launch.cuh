// Host side of the CUDA kernels: error check, the tensor's device and stream, dtype switch, launches. LibTorch stable
// ABI only, and nothing from libtorch_cuda, so that the library also loads where torch is CPU-only.
#pragma once
#include <cuda_runtime.h>
#include <algorithm>
#include <cstdint>
#include <utility>

#include "common/device.cuh"
#include "common/torch_glue.h"

// Overridable so that the tests can register the same sources elsewhere, on an emulated device.
#ifndef FF_NAMESPACE
#define FF_NAMESPACE fastforget
#endif
#ifndef FF_DISPATCH_KEY
#define FF_DISPATCH_KEY CUDA
#endif
#define FF_REGISTER(library) STABLE_TORCH_LIBRARY_IMPL(FF_NAMESPACE, FF_DISPATCH_KEY, library)

// Lives in libtorch_cuda. Weak: absent under CPU-only torch, where no CUDA tensor can reach these ops.
extern "C" __attribute__((weak)) int32_t aoti_torch_get_current_cuda_stream(int32_t device, void** stream);

#define FF_CUDA_CHECK(call)                                                                                           \
  do {                                                                                                                \
    const cudaError_t error = (call);                                                                                 \
    if (error != cudaSuccess) {                                                                                       \
      ::ff::fail("fastforget: CUDA error ", cudaGetErrorName(error), ": ", cudaGetErrorString(error), " in ", #call); \
    }                                                                                                                 \
  } while (0)

namespace ff::cuda {

constexpr int kThreads = 256;

// Makes the tensor's device current for the scope and knows torch's current stream on it.
class DeviceScope {
 public:
  explicit DeviceScope(const Tensor& tensor) : device_(tensor.get_device_index()) {
    if (aoti_torch_get_current_cuda_stream == nullptr) {
      fail("fastforget: this torch was built without CUDA, so there is no stream to run on");
    }
    FF_CUDA_CHECK(cudaGetDevice(&previous_));
    if (previous_ != device_) FF_CUDA_CHECK(cudaSetDevice(device_));
    void* stream = nullptr;
    if (aoti_torch_get_current_cuda_stream(device_, &stream) != 0) {
      fail("fastforget: torch gave no current stream for CUDA device ", device_);
    }
    stream_ = static_cast<cudaStream_t>(stream);
    FF_CUDA_CHECK(cudaDeviceGetAttribute(&multiprocessors_, cudaDevAttrMultiProcessorCount, device_));
  }
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;
  ~DeviceScope() {
    if (previous_ != device_) static_cast<void>(cudaSetDevice(previous_));
  }

  cudaStream_t stream() const { return stream_; }
  unsigned multiprocessors() const { return static_cast<unsigned>(multiprocessors_); }

  // As many blocks as the work fills, but no more than a few waves: the kernels stride over the rest.
  unsigned blocks(int64_t wanted, int threads = kThreads) const {
    const int64_t resident = int64_t{2048} / threads * multiprocessors_;
    return static_cast<unsigned>(std::max<int64_t>(1, std::min(wanted, 4 * resident)));
  }

  // At most `each` blocks a multiprocessor, for kernels whose blocks keep a summary of all that they see.
  unsigned resident_blocks(int64_t wanted, int each) const {
    return static_cast<unsigned>(std::max<int64_t>(1, std::min<int64_t>(wanted, int64_t{each} * multiprocessors_)));
  }

 private:
  int device_ = 0;
  int previous_ = 0;
  int multiprocessors_ = 1;
  cudaStream_t stream_ = nullptr;
};

template <class... Parameters, class... Arguments>
void launch(const DeviceScope& scope, void (*kernel)(Parameters...), unsigned blocks, int threads,
            Arguments&&... arguments) {
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.stream = scope.stream();
  FF_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...));
}

inline int64_t ceil_div(int64_t a, int64_t b) { return a / b + (a % b != 0); }

template <class... Pointers>
bool aligned16(const Pointers*... pointers) {
  return ((reinterpret_cast<uintptr_t>(pointers) % 16 == 0) && ...);
}

template <class T>
T* data(const Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

// Uninitialised memory from torch's allocator, on the tensor's device: ordered with the current stream, and allowed
// while a graph is captured.
inline Tensor scratch(const Tensor& like, int64_t bytes) {
  const int64_t size[] = {bytes};
  return torch::stable::new_empty(like, {size, 1}, ScalarType::Byte);
}

template <class T>
struct TypeTag {
  using type = T;
};

// Calls `body` with a tag of the storage type.
template <class Body>
void with_storage(ScalarType dtype, Body&& body) {
  switch (dtype) {
    case ScalarType::Float: return body(TypeTag<float>{});
    case ScalarType::Double: return body(TypeTag<double>{});
    case ScalarType::Half: return body(TypeTag<__half>{});
    case ScalarType::BFloat16: return body(TypeTag<__nv_bfloat16>{});
    default: fail("fastforget: dtype ", torch::headeronly::toString(dtype), " is not supported");
  }
}

constexpr ScalarType kStorageTypes[] = {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half, ScalarType::Double};

// Collects items into a table and hands each full one to `run(table, chunks)`.
template <class Item>
class ListBatch {
 public:
  template <class Run>
  void add(const Item& item, int64_t chunks, const Run& run) {
    if (chunks == 0) return;
    if (table_.count == ListTable<Item>::kCapacity) flush(run);
    const int64_t before = table_.count == 0 ? 0 : table_.chunk_end[table_.count - 1];
    table_.items[table_.count] = item;
    table_.chunk_end[table_.count] = before + chunks;
    ++table_.count;
  }

  template <class Run>
  void flush(const Run& run) {
    if (table_.count == 0) return;
    run(table_, table_.chunk_end[table_.count - 1]);
    table_.count = 0;
  }

 private:
  ListTable<Item> table_ = {};
};

}  // namespace ff::cuda
