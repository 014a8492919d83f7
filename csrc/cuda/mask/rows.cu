// Mean magnitude and sum of squares of each neuron's weights (dim 0) or of each channel's activations (dim 1) on CUDA.
// A tensor is [outer, rows, inner], and every element is read once. Two ways to share it out, chosen by shape:
//   pieces  a row is cut into pieces of at most 16 KB, each summed by a warp or, where rows are short, by a part of
//   one; columns where a row is scattered in runs too short for coalesced reads, threads own columns of the flat
//   memory.
// Both leave partial sums in float64, in places that depend on the shape alone, and a last kernel adds them in order.
#include "cuda/mask/rows_kernels.cuh"

namespace ff::cuda {
namespace {

// The smallest power of two up to a warp that holds `count`.
int lanes_for(int64_t count) {
  int lanes = 1;
  while (lanes < kWarp && lanes < count) lanes *= 2;
  return lanes;
}

// What one tensor needs: either of the first two, and the last if partial sums remain.
struct Plan {
  bool columns;
  PiecesItem pieces;
  ColumnsItem flat;
  FinalItem final;
  int64_t partials;  // 0 where rows are finished at once
};

template <class T>
Plan plan_rows(const Tensor& x, int64_t dim, const Tensor& mean_abs, const Tensor& sum_sq) {
  constexpr int64_t kSize = Pack<T>::kSize;
  int64_t outer = 1, inner = 1;
  for (int64_t d = 0; d < x.dim(); ++d) {
    if (d != dim) (d < dim ? outer : inner) *= x.size(d);
  }
  const int64_t rows = x.size(dim), width = rows * inner;
  Plan plan = {};
  FinalItem& last = plan.final;
  last.mean_abs = mean_abs.data_ptr();
  last.sum_sq = sum_sq.data_ptr();
  last.elements = static_cast<double>(outer) * static_cast<double>(inner);
  last.rows = rows;
  const bool empty = outer == 0 || inner == 0;
  const bool short_runs = inner * static_cast<int64_t>(sizeof(T)) < 64 || (inner % kSize != 0 && outer >= 64);
  plan.columns = !empty && outer > 1 && inner < kPiece<T> && short_runs;
  if (plan.columns) {
    ColumnsItem& item = plan.flat;
    // a tile of one line's columns is a pack for each lane of a warp
    const int64_t fold = width % kSize == 0 && width >= kWarp * kSize
                             ? 1
                             : kSize * std::max<int64_t>(1, kWarp * kSize / (width * kSize));
    item.x = x.data_ptr();
    item.size = outer * width;
    item.width = fold * width;
    item.tiles = ceil_div(item.width, kWarp * kSize);
    item.inverse_tiles = inverse_of(item.tiles);
    item.aligned = aligned16(item.x);
    const int64_t splits = ceil_div(ceil_div(item.size, item.width), kSplit);
    plan.partials = splits * item.width;
    last.count = splits * fold * inner;
    last.run = inner;
    last.stride = width;
  } else {
    PiecesItem& item = plan.pieces;
    item.x = x.data_ptr();
    item.mean_abs = last.mean_abs;
    item.sum_sq = last.sum_sq;
    item.rows = rows;
    item.inner = inner;
    item.outer = outer;
    item.slices = ceil_div(inner, kPiece<T>);
    item.group = empty || item.slices > 1 ? 1 : static_cast<int>(std::min(outer, kPiece<T> / inner));
    item.reciprocal = inner > 1 ? static_cast<unsigned>(ceil_div(int64_t{1} << 32, inner)) : 0;
    item.pieces = empty ? 1 : std::max<int64_t>(item.slices, 1) * ceil_div(outer, item.group);
    item.inverse_pieces = inverse_of(item.pieces);
    item.inverse_slices = inverse_of(item.slices);
    item.whole = aligned16(item.x) && inner % kSize == 0;
    item.lanes = lanes_for(item.slices > 1 ? kWarp : ceil_div(item.group * inner, item.whole ? kSize : 1));
    plan.partials = item.pieces > 1 ? rows * item.pieces : 0;
    last.count = item.pieces;
    last.run = item.pieces;
  }
  last.inverse_run = inverse_of(last.run);
  last.lanes = lanes_for(last.count);
  return plan;
}

template <class T>
void run_rows(const DeviceScope& scope, ScalarType dtype, const std::vector<Tensor>& xs, int64_t dim,
              const std::vector<Tensor>& mean_abs, const std::vector<Tensor>& sum_sq) {
  using C = Compute<T>;
  std::vector<Plan> plans;
  int64_t partials = 0;
  for (size_t i = 0; i < xs.size(); ++i) {
    if (xs[i].scalar_type() != dtype || xs[i].size(dim) == 0) continue;
    plans.push_back(plan_rows<T>(xs[i], dim, mean_abs[i], sum_sq[i]));
    partials += plans.back().partials;
  }
  if (plans.empty()) return;
  const Tensor memory = scratch(xs[0], std::max<int64_t>(1, partials) * int64_t{sizeof(Sums)});
  Sums* next = data<Sums>(memory);
  ListBatch<PiecesItem> pieces;
  ListBatch<ColumnsItem> columns;
  ListBatch<FinalItem> finals;
  const auto run_pieces = [&](const ListTable<PiecesItem>& table, int64_t chunks) {
    launch(scope, pieces_kernel<T>, scope.blocks(chunks), kThreads, table);
  };
  const auto run_columns = [&](const ListTable<ColumnsItem>& table, int64_t chunks) {
    launch(scope, columns_kernel<T>, scope.blocks(chunks), kThreads, table);
  };
  const auto run_finals = [&](const ListTable<FinalItem>& table, int64_t chunks) {
    launch(scope, rows_kernel<C>, scope.blocks(chunks), kThreads, table);
  };
  for (Plan& plan : plans) {
    plan.pieces.partial = plan.flat.partial = next;
    plan.final.partial = next;
    next += plan.partials;
    if (plan.columns) {
      columns.add(plan.flat, ceil_div(ceil_div(plan.flat.size, plan.flat.width), kSplit) * plan.flat.tiles,
                  run_columns);
    } else {
      pieces.add(plan.pieces, ceil_div(plan.pieces.rows * plan.pieces.pieces, kThreads / plan.pieces.lanes),
                 run_pieces);
    }
  }
  pieces.flush(run_pieces);
  columns.flush(run_columns);
  for (const Plan& plan : plans) {
    if (plan.partials > 0) finals.add(plan.final, ceil_div(plan.final.rows, kThreads / plan.final.lanes), run_finals);
  }
  finals.flush(run_finals);
}

void neuron_stats(std::vector<Tensor> xs, int64_t dim, std::vector<Tensor> mean_abs, std::vector<Tensor> sum_sq) {
  constexpr const char* kOp = "neuron_stats";
  FF_CHECK(mean_abs.size() == xs.size() && sum_sq.size() == xs.size(), "neuron_stats: ", xs.size(), " xs, ",
           mean_abs.size(), " mean_abs and ", sum_sq.size(), " sum_sq; give as many of each");
  for (size_t i = 0; i < xs.size(); ++i) {
    float_dtype(xs[i], kOp, "xs");
    const ScalarType dtype = xs[i].scalar_type();
    const ScalarType wide = dtype == ScalarType::Double ? dtype : ScalarType::Float;
    FF_CHECK(dim >= 0 && dim < xs[i].dim(), "neuron_stats: dim is ", dim, ", and xs has a tensor of ", xs[i].dim(),
             " dimensions");
    check_layout(xs[i], dtype, xs[i].numel(), kOp, "xs");
    check_layout(mean_abs[i], wide, xs[i].size(dim), kOp, "mean_abs");
    check_layout(sum_sq[i], wide, xs[i].size(dim), kOp, "sum_sq");
  }
  if (xs.empty()) return;
  const DeviceScope scope(xs[0]);
  for (const ScalarType dtype : kStorageTypes) {
    with_storage(dtype,
                 [&](auto tag) { run_rows<typename decltype(tag)::type>(scope, dtype, xs, dim, mean_abs, sum_sq); });
  }
}

}  // namespace
}  // namespace ff::cuda

FF_REGISTER(m) { m.impl("neuron_stats", TORCH_BOX(&ff::cuda::neuron_stats)); }
