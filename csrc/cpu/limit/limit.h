// The memory's limit, for benchmarks: float32 kernels that touch each byte once and compute next to nothing. Kernel
// table.
#pragma once
#include <cstdint>

namespace ff {

struct LimitTable {
  float (*read)(const float* a, int64_t n);                               // 1 read
  void (*update)(float* a, int64_t n);                                    // 1 read, 1 write in place
  void (*axpy)(float* a, const float* b, int64_t n);                      // 2 reads, 1 write
  void (*select)(float* a, const float* b, const float* c, int64_t n);    // 3 reads, 1 write
  void (*adam)(float* a, const float* b, float* c, float* d, int64_t n);  // 4 reads, 3 writes
};

}  // namespace ff
