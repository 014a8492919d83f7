// The part of DLPack's C interface, version 1.3, that direct calls use (https://dmlc.github.io/dlpack): data layouts
// that every framework keeps. Torch's copy can't be included in code for its stable ABI.
#pragma once
#include <cstdint>

namespace ff::dlpack {

enum : uint8_t { kInt = 0, kUInt = 1, kFloat = 2, kBfloat = 4, kBool = 6 };  // DLDataTypeCode
enum : int32_t { kCpu = 1 };                                                 // DLDeviceType

struct DataType {
  uint8_t code, bits;
  uint16_t lanes;
};

struct Device {
  int32_t type, id;
};

struct Tensor {
  void* data;
  Device device;
  int32_t ndim;
  DataType dtype;
  int64_t* shape;
  int64_t* strides;
  uint64_t byte_offset;
};

struct Version {
  uint32_t major, minor;
};

struct Managed {  // DLManagedTensorVersioned
  Version version;
  void* context;
  void (*deleter)(Managed* self);
  uint64_t flags;
  Tensor tensor;
};

// What torch.Tensor.__dlpack_c_exchange_api__ points to. Functions return 0, or -1 with a Python exception set.
struct Exchange {
  Version version;
  Exchange* older;
  int (*allocate)(Tensor* like, Managed** out, void* context, void (*error)(void*, const char*, const char*));
  int (*managed_from_object)(void* object, Managed** out);
  int (*object_from_managed)(Managed* tensor, void** out);  // takes the tensor over
  int (*tensor_from_object)(void* object, Tensor* out);     // a view, while the object lives
  int (*current_stream)(int32_t device_type, int32_t device, void** out);
};

}  // namespace ff::dlpack
