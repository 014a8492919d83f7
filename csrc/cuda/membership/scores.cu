// Six membership scores of every row of logits, on CUDA, from one read of the row wherever it fits: a thread per row up
// to 32 classes, a warp up to 1024, a block above.
#include "common/launch.cuh"
#include "common/rows.cuh"

namespace ff::cuda {
namespace {

template <class T>
struct ScoreArgs {
  const T* logits;        // [rows, classes]
  const int64_t* labels;  // [rows]
  Compute<T>* scores;     // [6, rows]
  bool* correct;          // [rows]
  int64_t rows;
  int classes;
  Compute<T> temperature;
};

template <class T>
__device__ __forceinline__ void write_scores(const ScoreArgs<T>& a, int64_t row, const Scores<Compute<T>>& s,
                                             bool correct) {
  a.scores[row] = s.loss;
  a.scores[a.rows + row] = s.confidence;
  a.scores[2 * a.rows + row] = s.entropy;
  a.scores[3 * a.rows + row] = s.modified_entropy;
  a.scores[4 * a.rows + row] = s.margin;
  a.scores[5 * a.rows + row] = s.logit_confidence;
  a.correct[row] = correct;
}

// `label` is in range.
template <class C, class Row>
__device__ __forceinline__ Scores<C> score_row(Row& row, const Top<C>& top, int label, C label_z) {
  const C reference = tail_reference(top);
  Tail<C> sums = {C(0), C(0)};
  row.each([&](C& z, int k) {
    const C e = tail_term(z, k, label, top, reference);
    push(sums, e, z, top);
    if constexpr (Row::kKeeps) z = e;
  });
  sums.sum = Group<Row::kSize>::reduce(sums.sum, Sum{});
  sums.weighted = Group<Row::kSize>::reduce(sums.weighted, Sum{});
  const RowSummary<C> summary = summarize(top, sums, label, label_z);
  C elsewhere = C(0);
  row.each([&](C& z, int k) {
    const C p = summary.scale * (Row::kKeeps ? z : tail_term(z, k, label, top, reference));
    elsewhere = fused(p, minus_log1m(p), elsewhere);
  });
  elsewhere = Group<Row::kSize>::reduce(elsewhere, Sum{});
  return finish_scores(top, sums, summary, elsewhere, label, label_z);
}

// All threads of the row's group call this; the first one writes.
template <class T, class Row>
__device__ __forceinline__ void score_and_write(const ScoreArgs<T>& a, int64_t at, Row& row, bool writes) {
  using C = Compute<T>;
  const int64_t label = a.labels[at];
  const Top<C> top = find_top<C>(row);
  const bool defined = label >= 0 && label < a.classes && has_distribution(top);
  Scores<C> scores = undefined_scores<C>();
  if (defined) {
    C label_z = widen(a.logits[at * a.classes + label]);
    if (a.temperature != C(1)) label_z /= a.temperature;
    scores = score_row<C>(row, top, static_cast<int>(label), label_z);
  }
  if (writes) write_scores(a, at, scores, defined && label == top.at);
}

template <class T>
__global__ void __launch_bounds__(kTileRows)
    few_classes_kernel(const __grid_constant__ ScoreArgs<T> a, unsigned reciprocal, bool aligned) {
  __shared__ Compute<T> tile[kTileSize];
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * kTileRows; first < a.rows;
       first += static_cast<int64_t>(gridDim.x) * kTileRows) {
    const int rows = static_cast<int>(smaller<int64_t>(kTileRows, a.rows - first));
    __syncthreads();  // the previous tile's rows are done
    load_tile<T>(tile, a.logits + first * a.classes, rows, a.classes, reciprocal, a.temperature, aligned);
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < rows) {
      TileRow<Compute<T>> row{tile + threadIdx.x * kTileStride, a.classes};
      score_and_write(a, first + threadIdx.x, row, true);
    }
  }
}

template <class T, class Row>
__global__ void __launch_bounds__(kRowThreads<Row>) scores_kernel(const __grid_constant__ ScoreArgs<T> a) {
  constexpr int kGroups = kRowThreads<Row> / Row::kSize;
  for (int64_t at = static_cast<int64_t>(blockIdx.x) * kGroups + threadIdx.x / Row::kSize; at < a.rows;
       at += static_cast<int64_t>(gridDim.x) * kGroups) {
    Row row(a.logits + at * a.classes, a.classes, a.temperature);
    score_and_write(a, at, row, threadIdx.x % Row::kSize == 0);
  }
}

template <class Row, class T>
void launch_rows(const DeviceScope& scope, const ScoreArgs<T>& a) {
  constexpr int kGroups = kRowThreads<Row> / Row::kSize;
  launch(scope, scores_kernel<T, Row>, scope.blocks(ceil_div(a.rows, kGroups), kRowThreads<Row>), kRowThreads<Row>, a);
}

template <class T>
void run_scores(const DeviceScope& scope, const ScoreArgs<T>& a) {
  using C = Compute<T>;
  constexpr int kBlock = 256;
  if (a.classes <= kFewClasses) {
    launch(scope, few_classes_kernel<T>, scope.blocks(ceil_div(a.rows, kTileRows), kTileRows), kTileRows, a,
           tile_reciprocal(a.classes), aligned16(a.logits));
  } else if constexpr (std::is_same_v<T, double>) {
    // float64 is for checks; keeping its rows in registers would only multiply code
    launch_rows<StreamRow<T, kBlock>>(scope, a);
  } else if (a.classes <= 4 * kWarp) {
    launch_rows<RegisterRow<C, kWarp, 4>>(scope, a);
  } else if (a.classes <= 16 * kWarp) {
    launch_rows<RegisterRow<C, kWarp, 16>>(scope, a);
  } else if (a.classes <= 32 * kWarp) {
    launch_rows<RegisterRow<C, kWarp, 32>>(scope, a);
  } else if (a.classes <= 32 * kBlock) {
    launch_rows<RegisterRow<C, kBlock, 32>>(scope, a);
  } else {
    launch_rows<StreamRow<T, kBlock>>(scope, a);
  }
}

void membership_scores(Tensor logits, Tensor labels, double temperature, Tensor scores, Tensor correct) {
  constexpr const char* kOp = "membership_scores";
  float_dtype(logits, kOp, "logits");
  FF_CHECK(logits.dim() == 2, "membership_scores: logits has ", logits.dim(), " dimensions; expected [rows, classes]");
  const int64_t rows = logits.size(0), classes = logits.size(1);
  FF_CHECK(classes >= 2 && classes <= INT32_MAX, "membership_scores: logits has ", classes, " classes; accepted: 2 to ",
           INT32_MAX);
  const bool wide = logits.scalar_type() == ScalarType::Double;
  check_layout(logits, logits.scalar_type(), rows * classes, kOp, "logits");
  check_layout(labels, ScalarType::Long, rows, kOp, "labels");
  check_layout(scores, wide ? ScalarType::Double : ScalarType::Float, 6 * rows, kOp, "scores");
  check_layout(correct, ScalarType::Bool, rows, kOp, "correct");
  if (rows == 0) return;
  const DeviceScope scope(logits);
  with_storage(logits.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    run_scores<T>(scope, {data<const T>(logits), data<const int64_t>(labels), data<Compute<T>>(scores),
                          data<bool>(correct), rows, static_cast<int>(classes), static_cast<Compute<T>>(temperature)});
  });
}

}  // namespace
}  // namespace ff::cuda

FF_REGISTER(m) { m.impl("membership_scores", TORCH_BOX(&ff::cuda::membership_scores)); }
