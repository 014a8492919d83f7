// What every op refuses of its tensors, whatever it computes, for glue that takes them as they come.
#pragma once
#include <initializer_list>
#include <vector>

#include "common/apart.h"
#include "common/tangents.h"

namespace ff {

// A tensor or a list of them.
struct Argument {
  const Tensor* first;
  size_t count;
  const char* name;
  bool written, listed;
  bool whole = false;  // not worked on element by element
};

inline Argument changed(const Tensor& t, const char* name) { return {&t, 1, name, true, false}; }
inline Argument changed(const std::vector<Tensor>& list, const char* name) {
  return {list.data(), list.size(), name, true, true};
}
inline Argument given(const Tensor& t, const char* name) { return {&t, 1, name, false, false}; }
inline Argument given(const std::vector<Tensor>& list, const char* name) {
  return {list.data(), list.size(), name, false, true};
}
inline Argument whole(Argument argument) {
  argument.whole = true;
  return argument;
}

// `elementwise`: whether the op works element by element on all arguments but those that are whole.
inline void check_call(const char* op, bool elementwise, std::initializer_list<Argument> arguments) {
  const bool forward_mode = forward_mode_is_on();
  size_t tensors = 0;
  for (const Argument& argument : arguments) tensors += argument.count;
  Ranges ranges(op, tensors);
  for (const Argument& argument : arguments) {
    for (size_t i = 0; i < argument.count; ++i) {
      const Tensor& t = argument.first[i];
      if (forward_mode) check_tangent(op, t);
      const int64_t place = !elementwise || argument.whole ? Ranges::kAlone
                            : argument.listed              ? static_cast<int64_t>(i)
                                                           : Ranges::kSingle;
      if (argument.written) {
        ranges.write(t, argument.name, place);
      } else {
        ranges.read(t, argument.name, place);
      }
    }
  }
  ranges.check();
}

}  // namespace ff
