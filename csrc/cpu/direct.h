// The CPU library's end of direct calls (csrc/direct_call.h): an op over views becomes one entry of the list that the
// Python side reads when it starts.
#pragma once
#include <array>
#include <new>
#include <tuple>
#include <utility>
#include <vector>

#include "direct_call.h"
#include "view.h"

namespace ff {

// What an op is given, as its first parameter, to make the tensors that the call returns.
class Outputs {
 public:
  explicit Outputs(const DirectArguments& call) : call_(call) {}
  View scalar(ScalarType type) { return tensor(type, 0, nullptr); }
  View vector(ScalarType type, int64_t size) { return tensor(type, 1, &size); }
  View tensor(ScalarType type, int64_t dims, const int64_t* sizes) {
    const dlpack::Tensor* made = call_.make(call_.maker, described(type), static_cast<int32_t>(dims), sizes);
    if (made == nullptr) throw std::bad_alloc();
    return View(*made);
  }

 private:
  static dlpack::DataType described(ScalarType type) {
    switch (type) {
      case ScalarType::Float: return {dlpack::kFloat, 32, 1};
      case ScalarType::Double: return {dlpack::kFloat, 64, 1};
      case ScalarType::Long: return {dlpack::kInt, 64, 1};
      case ScalarType::Bool: return {dlpack::kBool, 8, 1};
      case ScalarType::Byte: return {dlpack::kUInt, 8, 1};
      default: fail("fastforget: no op returns dtype ", torch::headeronly::toString(type));
    }
  }

  const DirectArguments& call_;
};

// Takes the arguments of a call one after another.
struct Taking {
  DirectArguments left;
  Outputs& outputs;

  // The next list, of arguments that lie at `from`.
  template <class Value, class Given>
  std::vector<Value> list(const Given*& from) {
    const Given* first = from;
    from += *left.lengths++;
    return std::vector<Value>(first, from);
  }
};

template <class Parameter>
struct Taken;
template <>
struct Taken<Outputs&> {
  static constexpr char letter = 0;
  static Outputs& next(Taking& from) { return from.outputs; }
};
template <>
struct Taken<const View&> {
  static constexpr char letter = 't';
  static View next(Taking& from) { return View(*from.left.tensors++); }
};
template <>
struct Taken<const std::vector<View>&> {
  static constexpr char letter = 'l';
  static std::vector<View> next(Taking& from) { return from.list<View>(from.left.tensors); }
};
template <>
struct Taken<double> {
  static constexpr char letter = 'd';
  static double next(Taking& from) { return *from.left.doubles++; }
};
template <>
struct Taken<int64_t> {
  static constexpr char letter = 'i';
  static int64_t next(Taking& from) { return *from.left.integers++; }
};
template <>
struct Taken<bool> {
  static constexpr char letter = 'b';
  static bool next(Taking& from) { return *from.left.integers++ != 0; }
};
template <>
struct Taken<const std::vector<double>&> {
  static constexpr char letter = 'D';
  static std::vector<double> next(Taking& from) { return from.list<double>(from.left.doubles); }
};
template <>
struct Taken<const std::vector<int64_t>&> {
  static constexpr char letter = 'I';
  static std::vector<int64_t> next(Taking& from) { return from.list<int64_t>(from.left.integers); }
};

// `changed`: which of the parameters, Outputs not counted, are tensors or lists that the op writes to.
template <auto op, size_t... changed>
struct Direct;
template <class... Parameters, void (*op)(Parameters...), size_t... changed>
struct Direct<op, changed...> {
  static bool call(const DirectArguments& arguments) {
    try {
      Outputs outputs(arguments);
      Taking from{arguments, outputs};
      // in braces, so that the arguments are taken in order
      std::tuple<decltype(Taken<Parameters>::next(from))...> taken{Taken<Parameters>::next(from)...};
      std::apply(op, taken);
      return true;
    } catch (const std::exception&) {
      return false;  // the careful way finds the words
    }
  }

  static constexpr auto signature = [] {
    std::array<char, sizeof...(Parameters) + 1> letters{};
    size_t count = 0;
    for (const char letter : {Taken<Parameters>::letter...}) {
      if (letter != 0) letters[count++] = letter;
    }
    for (const size_t i : std::initializer_list<size_t>{changed...}) letters[i] -= 'a' - 'A';
    return letters;
  }();
};

struct DirectRegistration {
  explicit DirectRegistration(DirectOp op);
};

}  // namespace ff

#define FF_DIRECT_NAME_(line) direct_at_##line
#define FF_DIRECT_NAME(line)  FF_DIRECT_NAME_(line)
// FF_DIRECT("name", op, indices of the parameters that it changes)
#define FF_DIRECT(name, ...)                               \
  const ::ff::DirectRegistration FF_DIRECT_NAME(__LINE__)( \
      {name, ::ff::Direct<__VA_ARGS__>::signature.data(), &::ff::Direct<__VA_ARGS__>::call})
