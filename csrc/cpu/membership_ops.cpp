// membership_scores and roc_stats on CPU tensors: checks, the cut into tiles of rows, and nothing else.
#include <limits>
#include <memory>
#include <new>
#include <tuple>
#include <utility>

#include "cpu/outputs.h"
#include "cpu/table.h"
#include "torch_glue.h"

namespace ff {
namespace {

// Below this many logits a second thread costs more than it saves.
constexpr int64_t kGrainLogits = 4096;
constexpr int64_t kGrainScores = 8192;

constexpr std::align_val_t kCacheLine{64};
struct FreeScratch {
  void operator()(void* p) const { ::operator delete(p, kCacheLine); }
};
using Scratch = std::unique_ptr<void, FreeScratch>;

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

// The checks that both overloads share; leaves the outputs out of the job.
ScoreJob score_job(const Tensor& logits, const Tensor& labels, double temperature, int dtype) {
  constexpr const char* kOp = "membership_scores";
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
  return job;
}

void run_scores(const ScoreJob& job, int dtype) {
  const MembershipTable& kernels = table().membership;
  const int64_t bytes = kernels.scratch_bytes(job.classes);
  const int64_t tiles = (job.rows + kScoreTileRows - 1) / kScoreTileRows;
  const int64_t grain = 1 + kGrainLogits / (kScoreTileRows * job.classes);
  torch::stable::parallel_for(0, tiles, grain, [&](int64_t begin, int64_t end) {
    const Scratch scratch(::operator new(static_cast<size_t>(bytes), kCacheLine));
    const int64_t last = end * kScoreTileRows;
    kernels.scores[dtype](job, begin * kScoreTileRows, last < job.rows ? last : job.rows, scratch.get());
  });
}

ScalarType score_type(int dtype) { return dtype == kFloat64 ? ScalarType::Double : ScalarType::Float; }

void membership_scores(const Tensor& logits, const Tensor& labels, double temperature, const Tensor& scores,
                       const Tensor& correct) {
  constexpr const char* kOp = "membership_scores";
  const int dtype = float_dtype(logits, kOp, "logits");
  ScoreJob job = score_job(logits, labels, temperature, dtype);
  check_layout(scores, score_type(dtype), kScores * job.rows, kOp, "scores");
  check_layout(correct, ScalarType::Bool, job.rows, kOp, "correct");
  char* const first = static_cast<char*>(scores.data_ptr());
  const int64_t row_bytes = job.rows * (dtype == kFloat64 ? 8 : 4);
  for (int i = 0; i < kScores; ++i) job.scores[i] = first + i * row_bytes;
  job.correct = static_cast<bool*>(correct.data_ptr());
  run_scores(job, dtype);
}

std::tuple<Returned, Returned, Returned, Returned, Returned, Returned, Returned> membership_scores_made(
    const Tensor& logits, const Tensor& labels, double temperature) {
  const int dtype = float_dtype(logits, "membership_scores", "logits");
  ScoreJob job = score_job(logits, labels, temperature, dtype);
  Tensor scores[kScores];
  for (int i = 0; i < kScores; ++i) {
    scores[i] = new_cpu_tensor(score_type(dtype), {job.rows});
    job.scores[i] = scores[i].data_ptr();
  }
  Tensor correct = new_cpu_tensor(ScalarType::Bool, {job.rows});
  job.correct = static_cast<bool*>(correct.data_ptr());
  run_scores(job, dtype);
  const auto out = [](Tensor& made) { return Returned(std::move(made)); };
  return {out(scores[0]), out(scores[1]), out(scores[2]), out(scores[3]), out(scores[4]), out(scores[5]), out(correct)};
}

template <class Score>
void run_roc_stats(const Tensor& member, const Tensor& nonmember, const std::vector<double>& fprs, double* out) {
  const int64_t n1 = member.numel(), n0 = nonmember.numel();
  RocStats<Score> stats(static_cast<const Score*>(member.data_ptr()), n1,
                        static_cast<const Score*>(nonmember.data_ptr()), n0);
  const auto sort = [&](int64_t begin, int64_t end) {
    for (int64_t side = begin; side < end; ++side) stats.sort_side(static_cast<int>(side));
  };
  if (n1 + n0 < kGrainScores) {
    sort(0, 2);
  } else {
    torch::stable::parallel_for(0, 2, 1, sort);
  }
  stats.finish(fprs.data(), static_cast<int64_t>(fprs.size()), out);
}

void roc_stats(Tensor member, Tensor nonmember, std::vector<double> fprs, Tensor out) {
  constexpr const char* kOp = "roc_stats";
  const ScalarType type = member.scalar_type();
  if (type != ScalarType::Float && type != ScalarType::Double) {
    fail("fastforget.", kOp, ": member has dtype ", torch::headeronly::toString(type), "; accepted: float32, float64");
  }
  check_layout(member, type, member.numel(), kOp, "member");
  check_layout(nonmember, type, nonmember.numel(), kOp, "nonmember");
  check_layout(out, ScalarType::Double, 4 + 2 * static_cast<int64_t>(fprs.size()), kOp, "out");
  if (member.numel() == 0 || nonmember.numel() == 0) fail("fastforget.", kOp, ": each side needs at least one score");
  double* result = static_cast<double*>(out.data_ptr());
  if (type == ScalarType::Float) {
    run_roc_stats<float>(member, nonmember, fprs, result);
  } else {
    run_roc_stats<double>(member, nonmember, fprs, result);
  }
}

}  // namespace
}  // namespace ff

STABLE_TORCH_LIBRARY_IMPL(fastforget, CPU, m) {
  m.impl("membership_scores", TORCH_BOX(&ff::membership_scores));
  m.impl("membership_scores.made", TORCH_BOX(&ff::membership_scores_made));
  m.impl("roc_stats", TORCH_BOX(&ff::roc_stats));
}
