// The Python side of direct calls (csrc/direct_call.h): what is asked of a call's arguments, and how they are handed
// over.
//
// A direct call is refused, without a word, wherever torch might want to see it (a mode, a profiler, tracing, autograd,
// a subclass of tensor) or where an argument is not of the plainest kind: the caller then goes the way that torch sees,
// which also finds the words for what is wrong. So this file raises nothing that the user caused.
#include "host/direct.h"

#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <memory_resource>
#include <new>
#include <vector>

#include "direct_call.h"

namespace ff {
namespace {

using dlpack::Exchange;
using dlpack::Managed;

// What a process has one of; set by direct_ops().
struct Torch {
  const Exchange* exchange;
  PyTypeObject *tensor, *parameter;
  PyGetSetDef* requires_grad;  // of torch's tensors, asked without an attribute lookup
  PyObject* grad_enabled;
  PyObject* is_neg;
  PyObject* increment_version;
  std::vector<PyObject*> watching;  // each says whether torch wants to see every call now
};
Torch torch_side;

bool is_list(PyObject* object) { return PyList_CheckExact(object) || PyTuple_CheckExact(object); }

bool is_true(PyObject* answer) {  // takes the reference; an error counts as true
  if (answer == nullptr) {
    PyErr_Clear();
    return true;
  }
  const bool yes = PyObject_IsTrue(answer) != 0;
  Py_DECREF(answer);
  return yes;
}

// ---- what a call returns --------------------------------------------------------------------------------------------

void free_made(Managed* managed) { std::free(managed); }

class Maker {
 public:
  Maker() { made_.reserve(8); }
  ~Maker() {
    for (Managed* managed : made_) std::free(managed);
  }

  // In one block: what torch is told, sizes and strides, and the values from a cache line's boundary on. From malloc,
  // which keeps small blocks at hand; aligned_alloc doesn't.
  static const dlpack::Tensor* make(void* maker, dlpack::DataType type, int32_t dims, const int64_t* sizes) {
    constexpr size_t kLine = 64;
    int64_t elements = 1;
    for (int32_t d = 0; d < dims; ++d) elements *= sizes[d];
    const size_t head = sizeof(Managed) + 2 * static_cast<size_t>(dims) * sizeof(int64_t);
    void* memory = std::malloc(head + kLine + static_cast<size_t>(elements) * (type.bits / 8u));
    if (memory == nullptr) return nullptr;
    Managed* managed = new (memory) Managed{};
    auto* shape = reinterpret_cast<int64_t*>(managed + 1);
    int64_t stride = 1;
    for (int32_t d = dims - 1; d >= 0; --d) {
      shape[d] = sizes[d];
      shape[dims + d] = stride;
      stride *= sizes[d] > 0 ? sizes[d] : 1;
    }
    const auto end = reinterpret_cast<uintptr_t>(memory) + head;
    managed->version = torch_side.exchange->version;
    managed->deleter = free_made;
    managed->tensor = {reinterpret_cast<void*>((end + kLine - 1) / kLine * kLine),
                       {dlpack::kCpu, 0},
                       dims,
                       type,
                       shape,
                       shape + dims,
                       0};
    static_cast<Maker*>(maker)->made_.push_back(managed);
    return &managed->tensor;
  }

  // True where nothing was made, the tensor alone, or a tuple of several; a new reference.
  PyObject* released() {
    if (made_.empty()) Py_RETURN_TRUE;
    PyObject* several = made_.size() == 1 ? nullptr : PyTuple_New(static_cast<Py_ssize_t>(made_.size()));
    if (made_.size() > 1 && several == nullptr) return nullptr;
    for (size_t i = 0; i < made_.size(); ++i) {
      void* object = nullptr;
      const bool failed = torch_side.exchange->object_from_managed(made_[i], &object) != 0;
      made_[i] = nullptr;  // torch has it
      if (failed) {
        Py_XDECREF(several);
        return nullptr;
      }
      if (several == nullptr) return static_cast<PyObject*>(object);
      PyTuple_SET_ITEM(several, static_cast<Py_ssize_t>(i), static_cast<PyObject*>(object));
    }
    return several;
  }

 private:
  std::array<std::byte, 128> near_;  // for the few that most calls make
  std::pmr::monotonic_buffer_resource memory_{near_.data(), near_.size()};
  std::pmr::vector<Managed*> made_{&memory_};
};

// ---- what a call is given -------------------------------------------------------------------------------------------

class Call {
 public:
  explicit Call(const DirectOp& op) : op_(op) {}

  // Whether every argument is what the op may be given.
  bool takes(PyObject* const* arguments, Py_ssize_t count) {
    if (static_cast<size_t>(count) != std::strlen(op_.signature)) return false;
    for (Py_ssize_t i = 0; i < count; ++i) {
      if (!take(op_.signature[i], arguments[i])) {
        PyErr_Clear();
        return false;
      }
    }
    if (!singles_.empty() && any_negated()) {
      PyErr_Clear();
      return false;
    }
    return true;
  }

  PyObject* run() {
    const DirectArguments arguments{tensors_.data(),  lengths_.data(), doubles_.data(),
                                    integers_.data(), Maker::make,     &maker_};
    constexpr int64_t kWorthTheLock = 16384;  // elements: a few microseconds of work
    bool done;
    if (elements_ < kWorthTheLock) {
      done = op_.call(arguments);
    } else {
      if (!keep_lists()) return nullptr;
      PyThreadState* state = PyEval_SaveThread();
      done = op_.call(arguments);
      PyEval_RestoreThread(state);
    }
    if (!done) Py_RETURN_NONE;
    return tell_versions() ? maker_.released() : nullptr;
  }

  ~Call() {
    for (PyObject* tuple : kept_) Py_DECREF(tuple);
  }

 private:
  bool take_tensor(PyObject* object) {
    if (Py_TYPE(object) != torch_side.tensor && Py_TYPE(object) != torch_side.parameter) return false;
    dlpack::Tensor& view = tensors_.emplace_back();
    if (torch_side.exchange->tensor_from_object(object, &view) != 0) return false;
    if (view.device.type != dlpack::kCpu) return false;
    int64_t elements = 1;
    for (int32_t d = 0; d < view.ndim; ++d) elements *= view.shape[d];
    elements_ += elements;
    if (elements == 1) singles_.push_back(object);
    return !grad_enabled_ || !is_true(torch_side.requires_grad->get(object, torch_side.requires_grad->closure));
  }

  bool take_double(PyObject* object) {
    if (!PyFloat_Check(object) && !PyLong_Check(object)) return false;
    doubles_.push_back(PyFloat_AsDouble(object));
    return PyErr_Occurred() == nullptr;
  }

  bool take_integer(PyObject* object) {
    if (!PyLong_CheckExact(object)) return false;
    integers_.push_back(PyLong_AsLongLong(object));
    return PyErr_Occurred() == nullptr;
  }

  // Each of a list or tuple, or the one thing that is given in the place of a list.
  template <class Take>
  bool take_list(PyObject* object, const Take& take) {
    if (!is_list(object)) {
      lengths_.push_back(1);
      return take(object);
    }
    const Py_ssize_t count = PySequence_Fast_GET_SIZE(object);
    lengths_.push_back(static_cast<size_t>(count));
    for (Py_ssize_t i = 0; i < count; ++i) {
      if (!take(PySequence_Fast_GET_ITEM(object, i))) return false;
    }
    return true;
  }

  bool take_tensors(PyObject* object) {
    if (is_list(object)) tensors_.reserve(tensors_.size() + static_cast<size_t>(PySequence_Fast_GET_SIZE(object)));
    if (PyList_CheckExact(object)) lists_.push_back(object);
    return take_list(object, [this](PyObject* tensor) { return take_tensor(tensor); });
  }

  bool take(char letter, PyObject* object) {
    switch (letter) {
      case 'T': changed_.push_back(object); [[fallthrough]];
      case 't': return take_tensor(object);
      case 'L': (is_list(object) ? changed_lists_ : changed_).push_back(object); [[fallthrough]];
      case 'l': return take_tensors(object);
      case 'd': return take_double(object);
      case 'i': return take_integer(object);
      case 'b': integers_.push_back(object == Py_True); return PyBool_Check(object);
      case 'D': return take_list(object, [this](PyObject* number) { return take_double(number); });
      case 'I': return take_list(object, [this](PyObject* number) { return take_integer(number); });
      default: return false;
    }
  }

  // DLPack doesn't show torch's bit for lazy negation. Only views of complex tensors have it, and those are contiguous
  // only where they have one element.
  bool any_negated() {
    if (!keep_lists()) return true;  // torch lets go of the lock while it answers
    for (PyObject* tensor : singles_) {
      if (is_true(PyObject_CallOneArg(torch_side.is_neg, tensor))) return true;
    }
    return false;
  }

  // Where Python's lock is let go of, another thread could empty a list and free what was in it; the arguments
  // themselves are the caller's to keep.
  bool keep_lists() {
    if (!kept_.empty()) return true;
    for (PyObject* list : lists_) {
      PyObject* tuple = PyList_AsTuple(list);
      if (tuple == nullptr) return false;
      kept_.push_back(tuple);
      std::replace(changed_lists_.begin(), changed_lists_.end(), list, tuple);
    }
    return true;
  }

  // Tells autograd what has changed.
  bool tell_versions() {
    for (PyObject* list : changed_lists_) {
      if (!told(list)) return false;
    }
    if (changed_.empty()) return true;
    PyObject* tuple = PyTuple_New(static_cast<Py_ssize_t>(changed_.size()));
    if (tuple == nullptr) return false;
    for (size_t i = 0; i < changed_.size(); ++i) {
      Py_INCREF(changed_[i]);
      PyTuple_SET_ITEM(tuple, static_cast<Py_ssize_t>(i), changed_[i]);
    }
    const bool all = told(tuple);
    Py_DECREF(tuple);
    return all;
  }

  static bool told(PyObject* sequence) {
    PyObject* answer = PyObject_CallOneArg(torch_side.increment_version, sequence);
    Py_XDECREF(answer);
    return answer != nullptr;
  }

  const DirectOp& op_;
  std::array<std::byte, 2048> near_;  // most calls need no more
  std::pmr::monotonic_buffer_resource memory_{near_.data(), near_.size()};
  std::pmr::vector<dlpack::Tensor> tensors_{&memory_};
  std::pmr::vector<size_t> lengths_{&memory_};
  std::pmr::vector<double> doubles_{&memory_};
  std::pmr::vector<int64_t> integers_{&memory_};
  std::pmr::vector<PyObject*> lists_{&memory_}, changed_lists_{&memory_}, changed_{&memory_}, singles_{&memory_};
  std::vector<PyObject*> kept_;
  Maker maker_;
  int64_t elements_ = 0;
  bool grad_enabled_ = is_true(PyObject_CallNoArgs(torch_side.grad_enabled));
};

constexpr char kOpName[] = "fastforget.direct_op";

PyObject* call_op(PyObject* self, PyObject* const* arguments, Py_ssize_t count) {
  const auto* op = static_cast<const DirectOp*>(PyCapsule_GetPointer(self, kOpName));
  if (op == nullptr) return nullptr;
  for (PyObject* watching : torch_side.watching) {
    if (is_true(PyObject_CallNoArgs(watching))) Py_RETURN_NONE;
  }
  try {
    Call call(*op);
    if (!call.takes(arguments, count)) Py_RETURN_NONE;
    return call.run();
  } catch (const std::bad_alloc&) {
    return PyErr_NoMemory();
  }
}

}  // namespace

PyObject* direct_ops(PyObject*, PyObject* arguments) {
  const char* library;
  PyObject *capsule, *tensor, *parameter, *requires_grad, *watching;
  Torch side{};
  if (!PyArg_ParseTuple(arguments, "sOOOOOOOO!", &library, &capsule, &tensor, &parameter, &requires_grad,
                        &side.grad_enabled, &side.is_neg, &side.increment_version, &PyTuple_Type, &watching)) {
    return nullptr;
  }
  constexpr const char* kExchangeName = "dlpack_exchange_api";
  if (!PyCapsule_IsValid(capsule, kExchangeName)) {
    return PyErr_Format(PyExc_ImportError, "torch's DLPack exchange is not of the kind expected");
  }
  side.exchange = static_cast<const Exchange*>(PyCapsule_GetPointer(capsule, kExchangeName));
  if (side.exchange->version.major != 1 || side.exchange->tensor_from_object == nullptr) {
    return PyErr_Format(PyExc_ImportError, "DLPack exchange of version %u", side.exchange->version.major);
  }
  if (!PyType_Check(tensor) || !PyType_Check(parameter) || Py_TYPE(requires_grad) != &PyGetSetDescr_Type) {
    return PyErr_Format(PyExc_ImportError, "torch's tensors are not of the kind expected");
  }
  side.tensor = reinterpret_cast<PyTypeObject*>(tensor);
  side.parameter = reinterpret_cast<PyTypeObject*>(parameter);
  side.requires_grad = reinterpret_cast<PyGetSetDescrObject*>(requires_grad)->d_getset;
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(watching); ++i) {
    side.watching.push_back(PyTuple_GET_ITEM(watching, i));
  }

  void* loaded = dlopen(library, RTLD_LAZY | RTLD_LOCAL);
  auto* const find =
      loaded == nullptr ? nullptr : reinterpret_cast<const DirectOps* (*)()>(dlsym(loaded, kDirectSymbol));
  if (find == nullptr) return PyErr_Format(PyExc_ImportError, "%s has no direct ops", library);
  const DirectOps& ops = *find();
  if (ops.version != kDirectVersion) return PyErr_Format(PyExc_ImportError, "%s is of another build", library);

  // Kept for as long as the process runs.
  for (PyObject* object : {tensor, parameter, requires_grad, side.grad_enabled, side.is_neg, side.increment_version}) {
    Py_INCREF(object);
  }
  for (PyObject* object : side.watching) Py_INCREF(object);
  torch_side = side;
  static PyMethodDef method = {"direct_op", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(call_op)),
                               METH_FASTCALL,
                               "One op, called directly: what it returns, True, or None where it is refused."};
  PyObject* found = PyDict_New();
  for (size_t i = 0; found != nullptr && i < ops.count; ++i) {
    PyObject* self = PyCapsule_New(const_cast<DirectOp*>(&ops.ops[i]), kOpName, nullptr);
    PyObject* function = self == nullptr ? nullptr : PyCFunction_New(&method, self);
    Py_XDECREF(self);
    if (function == nullptr || PyDict_SetItemString(found, ops.ops[i].name, function) != 0) Py_CLEAR(found);
    Py_XDECREF(function);
  }
  return found;
}

}  // namespace ff
