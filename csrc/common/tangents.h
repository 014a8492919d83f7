// Refuses tensors that carry a tangent: an op in place would leave it as it was, silently wrong. Torch's own fallback
// for ops without a rule says nothing in forward mode.
#pragma once
#include <dlfcn.h>

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "common/torch_glue.h"

namespace ff {

// Whether any dual level is open, on any thread. The stable interface can't tell; torch's own list of levels can. Where
// a later torch doesn't export it, nobody is refused here (the public functions still refuse).
inline bool forward_mode_is_on() {
  using Level = std::shared_ptr<void> (*)(uint64_t);
  static const auto level =
      reinterpret_cast<Level>(dlsym(RTLD_DEFAULT, "_ZN5torch8autograd14ForwardADLevel14try_get_by_idxEm"));
  return level != nullptr && level(0) != nullptr;
}

__attribute__((noinline, cold)) inline bool has_tangent(const Tensor& t) {
  std::array<StableIValue, 2> stack = {torch::stable::detail::from(static_cast<torch::stable::Tensor>(t)),
                                       torch::stable::detail::from(int64_t{0})};
  must(aoti_torch_call_dispatcher("aten::_unpack_dual", "", stack.data()));
  const Tensor primal(torch::stable::detail::to<AtenTensorHandle>(stack[0]));
  const Tensor tangent(torch::stable::detail::to<AtenTensorHandle>(stack[1]));
  bool defined = false;
  must(aoti_torch_is_defined(tangent.get(), &defined));
  return defined;
}

__attribute__((noinline, cold)) inline void check_tangent(const char* op, const Tensor& t) {
  if (!has_tangent(t)) return;
  fail("fastforget.", op,
       " can't run in forward mode (torch.func.jvp, torch.autograd.forward_ad): a tensor has a tangent, and the op has "
       "no "
       "rule for it. Pass x.detach(), or call it outside");
}

__attribute__((noinline, cold)) inline void check_tangent(const char* op, const std::vector<Tensor>& list) {
  for (const Tensor& t : list) check_tangent(op, t);
}

// All tensors of a call, alone or in lists.
template <class... Tensors>
void refuse_tangents(const char* op, const Tensors&... tensors) {
  if (__builtin_expect(forward_mode_is_on(), 0)) (check_tangent(op, tensors), ...);
}

}  // namespace ff
