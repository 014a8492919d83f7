// The list of ops that can be called directly, as the Python side finds it (csrc/direct_call.h).
#include "cpu/direct.h"

namespace ff {
namespace {

std::vector<DirectOp>& registered() {
  static std::vector<DirectOp> ops;
  return ops;
}

}  // namespace

DirectRegistration::DirectRegistration(DirectOp op) { registered().push_back(op); }

}  // namespace ff

// The name that kDirectSymbol has.
extern "C" __attribute__((visibility("default"))) const ff::DirectOps* fastforget_direct_ops() {
  static const ff::DirectOps ops{ff::kDirectVersion, ff::registered().size(), ff::registered().data()};
  return &ops;
}
