// lira_stats, lira_ratio, lira_loo and lira_update_ on CPU tensors: checks, the cut into ranges of samples, and nothing
// else.
#include "common/scratch.h"
#include "common/table.h"
#include "common/torch_glue.h"

namespace ff {
namespace {

// Below this many scores a second thread costs more than it saves.
constexpr int64_t kGrainScores = 16384;

struct Shape {
  int64_t models, samples, queries;
  ScalarType type;
  int index;  // in the tables
};

Shape score_shape(const Tensor& scores, const char* op, const char* name) {
  const bool wide = is_float64(scores, op, name);
  const ScalarType type = wide ? ScalarType::Double : ScalarType::Float;
  if (scores.dim() != 3 || scores.size(2) < 1) {
    fail("fastforget.", op, ": ", name, " must be [models, samples, queries], queries >= 1");
  }
  const Shape shape = {scores.size(0), scores.size(1), scores.size(2), type, wide};
  check_layout(scores, type, shape.models * shape.samples * shape.queries, op, name);
  return shape;
}

LiraScores checked_scores(const Tensor& scores, const Tensor& member, const Shape& s, const char* op) {
  check_layout(member, ScalarType::Bool, s.models * s.samples, op, "member");
  return {scores.data_ptr(), static_cast<const uint8_t*>(member.data_ptr()), s.models, s.samples, s.queries};
}

LiraRule checked_rule(int64_t mode, double var_floor, int64_t min_count, const char* op) {
  if (mode < 0 || mode > 2) fail("fastforget.", op, ": mode is ", mode, "; accepted: 0, 1, 2");
  return {static_cast<int>(mode), var_floor, min_count};
}

template <class Work>
void over_samples(int64_t samples, int64_t work_each, int64_t scratch_bytes, const Work& work) {
  const int64_t grain = 1 + kGrainScores / (work_each > 0 ? work_each : 1);
  torch::stable::parallel_for(0, samples, grain, [&](int64_t begin, int64_t end) {
    ScratchMemory scratch(scratch_bytes);
    work(begin, end, scratch.get());
  });
}

void lira_stats(Tensor scores, Tensor member, bool median, Tensor center, Tensor variance, Tensor count) {
  constexpr const char* kOp = "lira_stats";
  const Shape s = score_shape(scores, kOp, "scores");
  const LiraScores in = checked_scores(scores, member, s, kOp);
  check_layout(center, s.type, 2 * s.samples * s.queries, kOp, "center");
  check_layout(variance, s.type, 2 * s.samples * s.queries, kOp, "variance");
  check_layout(count, ScalarType::Long, 2 * s.samples, kOp, "count");
  const LiraStats out = {center.data_ptr(), variance.data_ptr(), static_cast<int64_t*>(count.data_ptr())};
  const MembershipLiraTable& kernels = table().membership_lira;
  const int64_t bytes = kernels.scratch_bytes(s.models, median);
  over_samples(s.samples, s.models * s.queries, bytes, [&](int64_t begin, int64_t end, void* scratch) {
    kernels.stats[s.index](in, median, out, begin, end, scratch);
  });
}

void lira_ratio(Tensor target, Tensor center, Tensor variance, Tensor count, int64_t mode, double var_floor,
                int64_t min_count, Tensor out) {
  constexpr const char* kOp = "lira_ratio";
  const Shape s = score_shape(target, kOp, "target");
  const int64_t each = 2 * s.samples * s.queries;
  check_layout(center, s.type, each, kOp, "center");
  const bool one_variance = variance.numel() != each;
  check_layout(variance, s.type, one_variance ? 2 : each, kOp, "variance");
  check_layout(count, ScalarType::Long, 2 * s.samples, kOp, "count");
  check_layout(out, s.type, s.models * s.samples, kOp, "out");
  const LiraRatio job = {target.data_ptr(),
                         center.data_ptr(),
                         variance.data_ptr(),
                         static_cast<const int64_t*>(count.data_ptr()),
                         s.models,
                         s.samples,
                         s.queries,
                         one_variance,
                         checked_rule(mode, var_floor, min_count, kOp),
                         out.data_ptr()};
  const auto kernel = table().membership_lira.ratio[s.index];
  // the statistics cost as much as some ten targets
  const int64_t grain = 1 + kGrainScores / ((10 + s.models) * s.queries);
  torch::stable::parallel_for(0, s.samples, grain, [&](int64_t begin, int64_t end) { kernel(job, begin, end); });
}

void lira_loo(Tensor scores, Tensor member, bool median, Tensor variance, int64_t mode, double var_floor,
              int64_t min_count, Tensor out) {
  constexpr const char* kOp = "lira_loo";
  const Shape s = score_shape(scores, kOp, "scores");
  const LiraScores in = checked_scores(scores, member, s, kOp);
  const bool given = variance.numel() != 0;
  check_layout(variance, s.type, given ? 2 : 0, kOp, "variance");
  check_layout(out, s.type, s.models * s.samples, kOp, "out");
  const LiraLoo job = {in, median, given ? variance.data_ptr() : nullptr, checked_rule(mode, var_floor, min_count, kOp),
                       out.data_ptr()};
  const MembershipLiraTable& kernels = table().membership_lira;
  const int64_t bytes = kernels.scratch_bytes(s.models, median);
  over_samples(s.samples, 4 * s.models * s.queries, bytes,
               [&](int64_t begin, int64_t end, void* scratch) { kernels.loo[s.index](job, begin, end, scratch); });
}

void lira_update_(Tensor scores, Tensor member, Tensor count, Tensor mean, Tensor m2) {
  constexpr const char* kOp = "lira_update_";
  const Shape s = score_shape(scores, kOp, "scores");
  if (dtype_code(member) != aoti_torch_dtype_int8() || member.numel() != s.models * s.samples ||
      !member.is_contiguous()) {
    fail("fastforget.", kOp, ": member must be contiguous int8 [models, samples]");
  }
  check_layout(count, ScalarType::Long, 2 * s.samples, kOp, "count");
  check_layout(mean, ScalarType::Double, 2 * s.samples * s.queries, kOp, "mean");
  check_layout(m2, ScalarType::Double, 2 * s.samples * s.queries, kOp, "m2");
  const LiraUpdate job = {scores.data_ptr(),
                          static_cast<const int8_t*>(member.data_ptr()),
                          s.models,
                          s.samples,
                          s.queries,
                          static_cast<int64_t*>(count.data_ptr()),
                          static_cast<double*>(mean.data_ptr()),
                          static_cast<double*>(m2.data_ptr())};
  const auto kernel = table().membership_lira.update[s.index];
  const int64_t grain = 1 + kGrainScores / ((4 + s.models) * s.queries);
  torch::stable::parallel_for(0, s.samples, grain, [&](int64_t begin, int64_t end) { kernel(job, begin, end); });
}

}  // namespace
}  // namespace ff

STABLE_TORCH_LIBRARY_IMPL(fastforget, CPU, m) {
  m.impl("lira_stats", TORCH_BOX(&ff::lira_stats));
  m.impl("lira_ratio", TORCH_BOX(&ff::lira_ratio));
  m.impl("lira_loo", TORCH_BOX(&ff::lira_loo));
  m.impl("lira_update_", TORCH_BOX(&ff::lira_update_));
}
