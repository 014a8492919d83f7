// fastforget._host: what needs Python and no torch. Build facts, CPU levels, and the noise definition one value at a
// time, so that tests and other languages' ports have golden values that no vectorised kernel had a hand in.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <cstdlib>
#include <sstream>
#include <string>
#include <tuple>
#include <vector>

#include "normal.h"
#include "philox.h"

namespace py = pybind11;

namespace {

std::vector<std::string> words_of(const char* text) {
  std::istringstream in(text);
  std::vector<std::string> out;
  for (std::string item; in >> item;) out.push_back(item);
  return out;
}

// Weakest first; what FASTFORGET_CPU_ISA accepts. A level this build lacks (another architecture) is not named.
std::vector<std::string> cpu_levels() {
#if defined(__x86_64__)
  return {"baseline", "avx2", "avx512"};
#else
  return {"baseline"};
#endif
}

bool cpu_has([[maybe_unused]] const std::string& level) {
#if defined(__x86_64__)
  if (level == "avx512") return __builtin_cpu_supports("x86-64-v4");
  if (level == "avx2") return __builtin_cpu_supports("x86-64-v3");
#endif
  return true;
}

std::string detected() {
  std::string best = "baseline";
  for (const std::string& level : cpu_levels()) {
    if (cpu_has(level)) best = level;
  }
  return best;
}

// What FASTFORGET_CPU_ISA leaves of the levels: it is a cap, so asking for more than the CPU has gives what it has. The
// op library reads it once, when it is loaded; a name that is not known is ignored, there as here.
py::dict cpu() {
  const char* cap = std::getenv("FASTFORGET_CPU_ISA");
  const std::string wanted = cap ? cap : "";
  std::string in_force = detected();
  bool known = wanted.empty();
  for (const std::string& level : cpu_levels()) {
    if (level != wanted) continue;
    known = true;
    if (cpu_has(level)) in_force = level;
  }
  py::dict facts;
  facts["detected"] = detected();
  facts["in_force"] = in_force;
  facts["accepted"] = cpu_levels();
  facts["ignored"] = known ? py::object(py::none()) : py::object(py::str(wanted));
  facts["built"] = words_of(FF_CPU_LEVELS);
  return facts;
}

py::dict build() {
  py::dict facts;
  facts["compiler"] = __VERSION__;
  facts["cplusplus"] = static_cast<int64_t>(__cplusplus);
  facts["torch_target"] = FF_TORCH_TARGET;
  facts["cuda_archs"] = words_of(FF_CUDA_ARCHS);
  return facts;
}

ff::Words words_at(int64_t seed, int64_t stream, int64_t step, uint64_t block) {
  return ff::philox(static_cast<uint64_t>(seed), static_cast<uint32_t>(stream), static_cast<uint32_t>(step), block);
}

uint32_t philox_word(uint64_t index, int64_t seed, int64_t stream, int64_t step) {
  return ff::word(words_at(seed, stream, step, index / 4), static_cast<unsigned>(index % 4));
}

std::tuple<uint32_t, uint32_t, uint32_t, uint32_t> philox_block(uint64_t block, int64_t seed, int64_t stream,
                                                                int64_t step) {
  const ff::Words w = words_at(seed, stream, step, block);
  return {w.w0, w.w1, w.w2, w.w3};
}

template <class T>
T normal(uint64_t index, int64_t seed, int64_t stream, int64_t step) {
  const ff::Words w = words_at(seed, stream, step, index / 4);
  const bool second = index & 2;
  const ff::NormalPair<T> pair = ff::normal_pair<T>(second ? w.w2 : w.w0, second ? w.w3 : w.w1);
  return index & 1 ? pair.z1 : pair.z0;
}

}  // namespace

PYBIND11_MODULE(_host, m) {
  m.doc() = "Build facts, CPU levels, scalar golden values of fastforget's noise.";
  const auto seed = py::arg("seed");
  const auto stream = py::arg("stream") = 0;
  const auto step = py::arg("step") = 0;
  m.def("cpu", &cpu,
        "CPU level detected, in force under FASTFORGET_CPU_ISA, names it accepts, a name ignored, levels built.");
  m.def("build", &build, "Compiler, C++ standard, oldest torch served, GPU architectures compiled.");
  m.def("philox_word", &philox_word, py::arg("index"), py::kw_only(), seed, stream, step,
        "Word `index` (0, 1, 2, ...) of a noise stream.");
  m.def("philox_block", &philox_block, py::arg("block"), py::kw_only(), seed, stream, step,
        "The four words 4*block .. 4*block+3 of a noise stream.");
  m.def("normal", &normal<double>, py::arg("index"), py::kw_only(), seed, stream, step,
        "Standard normal `index` of a noise stream, computed in float64: the definition.");
  m.def("normal_f32", &normal<float>, py::arg("index"), py::kw_only(), seed, stream, step,
        "The same by the float32 arithmetic of the kernels, one value at a time.");
}
