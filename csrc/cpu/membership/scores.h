// Membership scores of every row of logits (membership_scores): kernel table. Torch-free; scores_ops.cpp checks the
// arguments and cuts the work.
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

struct MembershipScoresTable {
  // Scores rows [begin, end), begin a multiple of kScoreTileRows. Indexed by Dtype: float32, bfloat16, float16,
  // float64. scratch: scratch_bytes(classes) bytes, 64-byte aligned, not shared between threads.
  void (*scores[4])(const ScoreJob& job, int64_t begin, int64_t end, void* scratch);
  int64_t (*scratch_bytes)(int64_t classes);
};

}  // namespace ff
