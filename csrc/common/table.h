// The CPU kernels as function pointers, one set per instruction set, and the choice among them.
//
// noise.cpp, update.cpp, mask.cpp and membership.cpp are compiled once per instruction set with -DFF_ISA=<name> and put
// everything into namespace ff::<name>; each defines the constant of its family declared below. Kernels work on a
// range of raw pointers and know neither threads nor torch: ops.cpp cuts the work and checks the arguments.
//
// This header stays free of inline functions of the standard library: a copy compiled for AVX-512 could be the one the
// linker keeps for every level.
#pragma once
#include <cstdint>

#include "common/dtypes.h"
#include "cpu/mask/optim.h"
#include "cpu/mask/rows.h"
#include "cpu/mask/select.h"
#include "cpu/membership/scores.h"
#include "cpu/membership/lira.h"
#include "cpu/membership/rmia.h"

namespace ff {

// ---- noise ----------------------------------------------------------------------------------------------------------

// Which words: element i of the range is global element `start + i` of this stream.
struct NoiseRange {
  uint64_t seed;
  uint32_t stream, step;
  uint64_t start;
};

struct NoiseTable {
  void (*random_bits)(uint32_t* out, int64_t n, const NoiseRange& range);
  // x = mean + std * z
  void (*normal[kDtypes])(void* x, int64_t n, double mean, double std, const NoiseRange& range);
  // x += -lr * grad + std * z: with neither tensor (no gradient, std a number), the gradient, std as a tensor, both.
  // What a kernel has no use for is not read.
  using Perturb = void(void* x, const void* grad, const void* std_elements, int64_t n, double lr, double std,
                       const NoiseRange& range);
  enum { kPlain, kGrad, kElements, kGradAndElements, kPerturbs };
  Perturb* perturb[kPerturbs][kDtypes];
};

// ---- update ---------------------------------------------------------------------------------------------------------

// Constants of one error_max_step_, computed once in double.
struct AdamStep {
  double l2_gradient;  // 2 * l2 / B
  double beta1, beta2;
  double eps;
  double step_size;   // lr / (1 - beta1^step)
  double sqrt_bias2;  // sqrt(1 - beta2^step)
  double clamp_min, clamp_max;
};

struct UpdateTable {
  // Rows of logits[n, classes]; `batch` is the B of the batch mean. loss: float32 (float64 for float64 logits).
  void (*error_max_loss[kDtypes])(const void* logits, const int64_t* labels, int64_t n, int64_t classes, int64_t batch,
                                  void* loss, void* dlogits);
  // Returns the sum of x^2 before the step over the n elements.
  double (*error_max_step[kDtypes])(void* x, const void* grad, void* exp_avg, void* exp_avg_sq, int64_t n,
                                    const AdamStep& step);
};

// ---- mask -----------------------------------------------------------------------------------------------------------

struct MaskTable {
  // Returns how many of the n elements were selected.
  int64_t (*dampen[kDtypes])(void* param, const void* forget, const void* retain, int64_t n, double alpha, double lam);
  // importance += scale * |grad|^power, power 1 or 2. Indexed by grad's dtype and whether importance is float32 where
  // grad has 16 bits (otherwise it has grad's dtype).
  void (*accumulate[kDtypes][2])(void* importance, const void* grad, int64_t n, int64_t power, double scale);
  // Of the stored values: adds the magnitudes to l1, returns how many are not zero.
  int64_t (*soft_threshold[kDtypes])(void* x, int64_t n, double threshold, double* l1);
  // Memory limits for benchmarks: float32 kernels that touch each byte once and compute next to nothing.
  float (*limit_read)(const float* a, int64_t n);                               // 1 read
  void (*limit_update)(float* a, int64_t n);                                    // 1 read, 1 write in place
  void (*limit_axpy)(float* a, const float* b, int64_t n);                      // 2 reads, 1 write
  void (*limit_select)(float* a, const float* b, const float* c, int64_t n);    // 3 reads, 1 write
  void (*limit_adam)(float* a, const float* b, float* c, float* d, int64_t n);  // 4 reads, 3 writes
};

// ---- the choice -----------------------------------------------------------------------------------------------------

struct Table {
  int level;  // 2 = baseline, 3 = avx2, 4 = avx512
  const NoiseTable& noise;
  const UpdateTable& update;
  const MaskTable& mask;
  const MaskRowsTable& mask_rows;
  const MaskSelectTable& mask_select;
  const MaskOptimTable& mask_optim;
  const MembershipTable& membership;
  const MembershipLiraTable& membership_lira;
  const MembershipRankTable& membership_rank;
};

#define FF_DECLARE_LEVEL(isa)                             \
  namespace isa {                                         \
  extern const NoiseTable noise_table;                    \
  extern const UpdateTable update_table;                  \
  extern const MaskTable mask_table;                      \
  extern const MaskRowsTable mask_rows_table;             \
  extern const MaskSelectTable mask_select_table;         \
  extern const MaskOptimTable mask_optim_table;           \
  extern const MembershipTable membership_table;          \
  extern const MembershipLiraTable membership_lira_table; \
  extern const MembershipRankTable membership_rank_table; \
  }
FF_DECLARE_LEVEL(baseline)
#if defined(__x86_64__)
FF_DECLARE_LEVEL(avx2)
FF_DECLARE_LEVEL(avx512)
#endif
#undef FF_DECLARE_LEVEL

// The kernels in force: the best this CPU has, unless FASTFORGET_CPU_ISA or _cpu_isa() asked for less.
const Table& table();

}  // namespace ff
