// The bootstrap of ROC statistics (roc_bootstrap): kernel table. Torch-free; roc_ops.cpp checks the arguments, sorts
// and cuts the work. roc_stats needs no kernel: sorting and one walk over integers, in roc_ops.cpp.
#pragma once
#include <cstdint>

namespace ff {

struct BootstrapJob {
  int64_t members, nonmembers;  // each below 2^31
  const int32_t* below;         // [members] nonmembers below each member, both sorted
  const int32_t* upto;          // [members] nonmembers at or below it
  const int32_t* members_upto;  // [nonmembers] members at or below each nonmember
  const int64_t* budgets;       // [rates] false positives allowed
  int64_t rates;
  uint64_t seed;
};

struct MembershipRocTable {
  // One resample: out[0] = AUC, out[1 + i] = TPR at the i-th budget.
  void (*resample)(const BootstrapJob& job, uint32_t step, void* scratch, double* out);
  int64_t (*scratch_bytes)(int64_t members, int64_t nonmembers);
};

}  // namespace ff
