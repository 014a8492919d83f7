// LiRA statistics and ratios over shadow models (lira_stats, lira_ratio, lira_loo, lira_update_): kernel table.
// Torch-free; membership_lira_ops.cpp checks the arguments and cuts the work.
#pragma once
#include <cstdint>

#include "common/dtypes.h"

namespace ff {

// Scores are [models, samples, queries] of float or double; side 0 is OUT, side 1 is IN.
struct LiraScores {
  const void* scores;
  const uint8_t* member;  // [models, samples], 0 or 1
  int64_t models, samples, queries;
};

struct LiraStats {  // each [2, samples, queries] but count, [2, samples]
  void *center, *variance;
  int64_t* count;
};

enum LiraMode : int { kOnline = 0, kOneSided = 1, kDensity = 2 };

struct LiraRule {
  int mode;
  double var_floor;
  int64_t min_count;
};

struct LiraRatio {
  const void* target;             // [targets, samples, queries]
  const void *center, *variance;  // [2, samples, queries]; the variance may be one number a side instead
  const int64_t* count;           // [2, samples]
  int64_t targets, samples, queries;
  bool one_variance;
  LiraRule rule;
  void* out;  // [targets, samples]
};

struct LiraLoo {
  LiraScores in;
  bool median;
  const void* variance;  // one number a side, or null: each example's own
  LiraRule rule;
  void* out;  // [models, samples]
};

struct LiraUpdate {
  const void* scores;    // [models, samples, queries]
  const int8_t* member;  // [models, samples]: 1 in, 0 out, anything else skips
  int64_t models, samples, queries;
  int64_t* count;     // [2, samples]
  double *mean, *m2;  // [2, samples, queries]
};

// Every kernel serves the samples [begin, end); a sample's result doesn't depend on that cut. Index 0: float, 1:
// double.
struct MembershipLiraTable {
  int64_t (*scratch_bytes)(int64_t models, bool median);  // 64-byte aligned, one a thread
  void (*stats[2])(const LiraScores& in, bool median, const LiraStats& out, int64_t begin, int64_t end, void* scratch);
  void (*ratio[2])(const LiraRatio& job, int64_t begin, int64_t end);
  void (*loo[2])(const LiraLoo& job, int64_t begin, int64_t end, void* scratch);
  void (*update[2])(const LiraUpdate& job, int64_t begin, int64_t end);
};

}  // namespace ff
