// Calls that don't go through torch's dispatcher: how the Python side hands an op's arguments to the CPU library. Torch
// takes 1.2 to 2.8 us for a small call, to box the arguments and to find one function by their device; half of that or
// less is needed. The ops are the same functions.
//
// Two shared libraries meet here that know each other by this header alone: fastforget/_host (Python, no torch) and
// libfastforget_cpu (torch, no Python).
#pragma once
#include "dlpack.h"

#include <cstddef>
#include <cstdint>

namespace ff {

inline constexpr int kDirectVersion = 1;  // of everything below

// The arguments of one call, by kind, each kind in the order of the op's parameters.
struct DirectArguments {
  const dlpack::Tensor* tensors;  // those of a list follow one another
  const size_t* lengths;          // of each list, of tensors or of numbers
  const double* doubles;
  const int64_t* integers;  // and truth values
  // Makes a contiguous tensor, its values not set, to be returned by the call in the order in which they are made; null
  // where there is no memory.
  const dlpack::Tensor* (*make)(void* maker, dlpack::DataType type, int32_t dims, const int64_t* sizes);
  void* maker;
};

// Signature, one letter a parameter: t a tensor, l a list of tensors, d a double, i an int64, b a bool, D and I lists
// of numbers; T and L are tensors that the op changes.
struct DirectOp {
  const char* name;
  const char* signature;
  bool (*call)(const DirectArguments& arguments);  // false: refused, and nothing has changed
};

struct DirectOps {
  int version;
  size_t count;
  const DirectOp* ops;
};

inline constexpr char kDirectSymbol[] = "fastforget_direct_ops";  // const DirectOps* ()

}  // namespace ff
