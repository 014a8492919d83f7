// Membership-inference kernels: per-sample scores (one set per instruction set) and ROC statistics (plain integer work,
// compiled once). Torch-free; membership_ops.cpp checks the arguments and cuts the work.
#pragma once
#include <cstdint>

namespace ff {

constexpr int kScores = 6;

// One call of membership_scores. All pointers are dense; nothing outside [rows, classes] is read.
struct ScoreJob {
  const void* logits;     // [rows, classes]
  const int64_t* labels;  // [rows], each in [0, classes)
  int64_t rows, classes;  // classes >= 2
  double temperature;     // > 0, finite
  void* scores[kScores];  // [rows] each: loss, confidence, entropy, modified entropy, margin, logit confidence
  bool* correct;          // [rows]
};

// Work is handed out in tiles of this many rows, whatever the vector width, so the cut never splits a vector.
constexpr int64_t kScoreTileRows = 16;

struct MembershipTable {
  // Scores rows [begin, end), begin a multiple of kScoreTileRows. Indexed by Dtype: float32, bfloat16, float16,
  // float64. scratch: scratch_bytes(classes) bytes, 64-byte aligned, not shared between threads.
  void (*scores[4])(const ScoreJob& job, int64_t begin, int64_t end, void* scratch);
  int64_t (*scratch_bytes)(int64_t classes);
};

// The largest k with k / n <= fpr, compared in float64; -1 if there is none.
int64_t false_positives_allowed(double fpr, int64_t n);

// out[4 + 2 * fpr_count]: auc, balanced accuracy, advantage, best threshold, then the TPR at each FPR and its
// threshold. Score is float or double; both sides hold at least one score and no NaN. sort_side(0) and (1) may run in
// parallel.
template <class Score>
class RocStats {
 public:
  RocStats(const Score* member, int64_t members, const Score* nonmember, int64_t nonmembers);
  ~RocStats();
  RocStats(const RocStats&) = delete;
  RocStats& operator=(const RocStats&) = delete;

  void sort_side(int side);  // 0 = members, 1 = nonmembers
  void finish(const double* fprs, int64_t fpr_count, double* out) const;

 private:
  struct Sides;
  Sides* sides_;
};

}  // namespace ff
