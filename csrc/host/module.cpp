// fastforget._host: the noise definition one value at a time, so that tests and ports to other languages have golden
// values that no vectorised kernel had a hand in. It knows no torch, and nothing imports it at run time.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <tuple>

#include "common/normal.h"
#include "common/philox.h"

namespace py = pybind11;

namespace {

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
  m.doc() = "Scalar golden values of fastforget's noise.";
  const auto seed = py::arg("seed");
  const auto stream = py::arg("stream") = 0;
  const auto step = py::arg("step") = 0;
  m.def("philox_word", &philox_word, py::arg("index"), py::kw_only(), seed, stream, step,
        "Word `index` (0, 1, 2, ...) of a noise stream.");
  m.def("philox_block", &philox_block, py::arg("block"), py::kw_only(), seed, stream, step,
        "The four words 4*block .. 4*block+3 of a noise stream.");
  m.def("normal", &normal<double>, py::arg("index"), py::kw_only(), seed, stream, step,
        "Standard normal `index` of a noise stream, computed in float64: the definition.");
  m.def("normal_f32", &normal<float>, py::arg("index"), py::kw_only(), seed, stream, step,
        "The same by the float32 arithmetic of the kernels, one value at a time.");
}
