// membership_scores on CPU tensors: checks, the cut into tiles of rows, and nothing else.
#include <limits>

#include "common/scratch.h"
#include "common/table.h"
#include "common/torch_glue.h"

namespace ff {
namespace {

// Below this many logits a second thread costs more than it saves.
constexpr int64_t kGrainLogits = 4096;

void check_labels(const int64_t* labels, int64_t n, int64_t classes) {
  // The sign bit of label | (classes - 1 - label) tells both ends of the range; unsigned, because one end may wrap.
  uint64_t out_of_range = 0;
  for (int64_t i = 0; i < n; ++i) {
    const auto label = static_cast<uint64_t>(labels[i]);
    out_of_range |= label | (static_cast<uint64_t>(classes - 1) - label);
  }
  if (__builtin_expect((out_of_range >> 63) == 0, 1)) return;
  int64_t i = 0;
  while (labels[i] >= 0 && labels[i] < classes) ++i;
  fail("fastforget.membership_scores: labels[", i, "] is ", labels[i], "; accepted: 0 to ", classes - 1);
}

void membership_scores(const Tensor& logits, const Tensor& labels, double temperature, const Tensor& scores,
                       const Tensor& correct) {
  constexpr const char* kOp = "membership_scores";
  const int dtype = float_dtype(logits, kOp, "logits");
  if (logits.dim() != 2 || logits.size(1) < 2)
    fail("fastforget.", kOp, ": logits must be [rows, classes], classes >= 2");
  if (!(temperature > 0.0 && temperature <= std::numeric_limits<double>::max())) {
    fail("fastforget.", kOp, ": temperature is ", temperature, "; accepted: a finite number above 0");
  }
  const int64_t rows = logits.size(0), classes = logits.size(1);
  check_layout(logits, kFloatTypes[dtype], rows * classes, kOp, "logits");
  check_layout(labels, ScalarType::Long, rows, kOp, "labels");
  if (labels.dim() != 1) fail("fastforget.", kOp, ": labels has ", labels.dim(), " dimensions; expected [rows]");
  ScoreJob job{};
  job.logits = logits.data_ptr();
  job.labels = static_cast<const int64_t*>(labels.data_ptr());
  job.rows = rows;
  job.classes = classes;
  job.temperature = temperature;
  check_labels(job.labels, rows, classes);
  check_layout(scores, dtype == kFloat64 ? ScalarType::Double : ScalarType::Float, kScores * rows, kOp, "scores");
  check_layout(correct, ScalarType::Bool, rows, kOp, "correct");
  char* const first = static_cast<char*>(scores.data_ptr());
  const int64_t row_bytes = rows * (dtype == kFloat64 ? 8 : 4);
  for (int i = 0; i < kScores; ++i) job.scores[i] = first + i * row_bytes;
  job.correct = static_cast<bool*>(correct.data_ptr());
  const MembershipScoresTable& kernels = table().membership_scores;
  const int64_t bytes = kernels.scratch_bytes(job.classes);
  const int64_t tiles = (job.rows + kScoreTileRows - 1) / kScoreTileRows;
  const int64_t grain = 1 + kGrainLogits / (kScoreTileRows * job.classes);
  const auto range = [&](int64_t begin, int64_t end) {
    ScratchMemory scratch(bytes);
    const int64_t last = end * kScoreTileRows;
    kernels.scores[dtype](job, begin * kScoreTileRows, last < job.rows ? last : job.rows, scratch.get());
  };
  if (tiles <= grain) {
    range(0, tiles);
  } else {
    torch::stable::parallel_for(0, tiles, grain, range);
  }
}

}  // namespace
}  // namespace ff

STABLE_TORCH_LIBRARY_IMPL(fastforget, CPU, m) { m.impl("membership_scores", TORCH_BOX(&ff::membership_scores)); }
