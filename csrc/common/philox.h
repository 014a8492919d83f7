// Philox4x32-10 (Salmon et al., SC'11): a counter-based generator, so word i of a stream is a pure function of
// (seed, stream, step, i). Torch-free; compiles for the host and, under nvcc, for the device.
#pragma once
#include <cstdint>

// `static`: the CPU kernels are compiled once per instruction set, and a shared out-of-line copy built for AVX-512
// must never be the one the linker keeps for everybody.
#if defined(__CUDACC__)
#define FF_HD static __host__ __device__ __forceinline__
#else
#define FF_HD static inline __attribute__((always_inline))
#endif

namespace ff {

constexpr uint32_t kPhiloxMul0 = 0xD2511F53u;
constexpr uint32_t kPhiloxMul1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxKey0 = 0x9E3779B9u;
constexpr uint32_t kPhiloxKey1 = 0xBB67AE85u;
constexpr int kPhiloxRounds = 10;

struct Words {
  uint32_t w0, w1, w2, w3;
};

FF_HD uint64_t wide_product(uint32_t a, uint32_t b) {
#if defined(__CUDA_ARCH__)
  // Written in C++, nvcc 13 makes it a 64-bit product and adds its (zero) upper half in each of the twenty places.
  uint64_t product;
  asm("mul.wide.u32 %0, %1, %2;" : "=l"(product) : "r"(a), "r"(b));
  return product;
#else
  return static_cast<uint64_t>(a) * b;
#endif
}

// The four words of global elements 4*block .. 4*block+3.
FF_HD Words philox(uint64_t seed, uint32_t stream, uint32_t step, uint64_t block) {
  uint32_t c0 = static_cast<uint32_t>(block), c1 = static_cast<uint32_t>(block >> 32), c2 = stream, c3 = step;
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
#if defined(__CUDA_ARCH__)
#pragma unroll
#endif
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const uint64_t p = wide_product(c0, kPhiloxMul0);
    const uint64_t q = wide_product(c2, kPhiloxMul1);
    c0 = static_cast<uint32_t>(q >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(q);
    c2 = static_cast<uint32_t>(p >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(p);
    k0 += kPhiloxKey0;
    k1 += kPhiloxKey1;
  }
  return {c0, c1, c2, c3};
}

// Word `lane` (0..3); written without an indexed array, which a GPU would put in local memory.
FF_HD uint32_t word(const Words& w, unsigned lane) {
  const uint32_t low = (lane & 1u) ? w.w1 : w.w0;
  const uint32_t high = (lane & 1u) ? w.w3 : w.w2;
  return (lane & 2u) ? high : low;
}

}  // namespace ff
