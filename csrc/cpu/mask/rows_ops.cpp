// neuron_stats on CPU tensors: checks, and the cut of a list into work for torch's threads.
//
// A tensor is [outer, rows, inner]. The outer indices are cut into groups and long rows into pieces, by rules that know
// the shape alone; each (group, piece, row) has its own partial sums, added in order at the end. So no result depends
// on the thread count, however the rows are dealt out.
#include <algorithm>
#include <limits>

#include "common/lists.h"
#include "common/table.h"
#include "common/torch_glue.h"

namespace ff {
namespace {

constexpr int64_t kPiece = 65536;          // elements of a row
constexpr int64_t kGroup = 262144;         // elements of a group of outer indices, at least
constexpr int64_t kGroups = 64;            // groups, at most: bounds the memory of the partial sums
constexpr int64_t kShortRow = 16;          // always summed across rows
constexpr int64_t kShortStackedRow = 128;  // summed across rows where there are enough outer indices to stack

struct Item {
  const void* x;
  int dtype;
  RowsShape shape;
  int64_t groups, pieces;
  bool columns;
  int64_t partial;  // where its partial sums begin: [groups][pieces][2][rows]
  void *mean_abs, *sum_sq;
};

struct Unit {
  size_t item;
  int64_t group, piece, row0, row1;
};

void plan(Item& item) {
  const RowsShape& s = item.shape;
  const int64_t n = s.outer * s.rows * s.inner;
  item.groups = std::clamp<int64_t>(n / kGroup, 1, std::max<int64_t>(1, std::min(s.outer, kGroups)));
  item.columns = s.inner < kShortRow || (s.inner <= kShortStackedRow && s.outer / item.groups >= 8);
  item.pieces = item.columns ? 1 : std::max<int64_t>(1, (s.inner + kPiece - 1) / kPiece);
}

void add_units(const Item& item, size_t index, std::vector<Unit>& units) {
  const RowsShape& s = item.shape;
  const int64_t piece = std::min(s.inner, kPiece), row_work = std::max<int64_t>(1, s.outer / item.groups * piece);
  // With several groups a unit takes all rows, so that it reads memory in one go, unless that leaves threads idle.
  const int64_t size = item.groups > 1 ? 2 * kGroup : kStreamGrain;
  const int64_t rows = std::max<int64_t>(1, size / row_work);
  for (int64_t group = 0; group < item.groups; ++group) {
    for (int64_t p = 0; p < item.pieces; ++p) {
      for (int64_t row = 0; row < s.rows; row += rows) {
        units.push_back({index, group, p, row, std::min(row + rows, s.rows)});
      }
    }
  }
}

void run_unit(const MaskRowsTable& kernels, const Item& item, const Unit& unit, double* partials) {
  const RowsShape& s = item.shape;
  double* magnitudes = partials + item.partial + 2 * s.rows * (unit.group * item.pieces + unit.piece);
  double* squares = magnitudes + s.rows;
  const int64_t outer0 = unit.group * s.outer / item.groups, outer1 = (unit.group + 1) * s.outer / item.groups;
  if (item.columns) {
    kernels.columns[item.dtype](item.x, s, outer0, outer1, unit.row0, unit.row1, magnitudes, squares);
  } else {
    const int64_t from = unit.piece * kPiece, to = std::min(from + kPiece, s.inner);
    kernels.segments[item.dtype](item.x, s, outer0, outer1, unit.row0, unit.row1, from, to, magnitudes, squares);
  }
}

template <class Out>
void finish(const Item& item, double* partials) {
  const RowsShape& s = item.shape;
  const double count = static_cast<double>(s.outer * s.inner);
  double* sums = partials + item.partial;  // of the first part; the others join it in order
  for (int64_t part = 1; part < item.groups * item.pieces; ++part) {
    for (int64_t r = 0; r < 2 * s.rows; ++r) sums[r] += sums[2 * s.rows * part + r];
  }
  Out* mean_abs = static_cast<Out*>(item.mean_abs);
  Out* sum_sq = static_cast<Out*>(item.sum_sq);
  for (int64_t r = 0; r < s.rows; ++r) mean_abs[r] = static_cast<Out>(sums[r] / count);  // NaN for an empty row
  for (int64_t r = 0; r < s.rows; ++r) sum_sq[r] = static_cast<Out>(sums[s.rows + r]);
}

ScalarType out_type(const Item& item) { return item.dtype == kFloat64 ? ScalarType::Double : ScalarType::Float; }

// `x` without a place for its sums and its results.
Item checked_item(const Tensor& x, size_t i, int64_t dim) {
  constexpr const char* op = "neuron_stats";
  const int dtype = float_dtype(x, op, "xs");
  const int64_t rank = x.dim(), d = dim < 0 ? dim + rank : dim;
  if (d < 0 || d >= rank) fail("fastforget.", op, ": dim is ", dim, ", but xs[", i, "] has ", rank, " dimensions");
  const int64_t* sizes = x.sizes();
  RowsShape shape{1, sizes[d], 1};
  for (int64_t j = 0; j < d; ++j) shape.outer *= sizes[j];
  for (int64_t j = d + 1; j < rank; ++j) shape.inner *= sizes[j];
  check_layout(x, kFloatTypes[dtype], x.numel(), op, "xs");
  Item item{x.data_ptr(), dtype, shape, 0, 0, false, 0, nullptr, nullptr};
  plan(item);
  return item;
}

void run(std::vector<Item>& items) {
  int64_t total = 0, partial = 0;
  std::vector<Unit> units;
  for (size_t i = 0; i < items.size(); ++i) {
    const RowsShape& s = items[i].shape;
    const int64_t n = s.outer * s.rows * s.inner;
    items[i].partial = partial;
    partial += 2 * s.rows * items[i].groups * items[i].pieces;
    total += n;
    if (n > 0) add_units(items[i], i, units);
  }
  std::vector<double> partials(static_cast<size_t>(partial));
  const MaskRowsTable& kernels = table().mask_rows;
  const auto range = [&](int64_t begin, int64_t end) {
    for (int64_t u = begin; u < end; ++u) {
      const Unit& unit = units[static_cast<size_t>(u)];
      run_unit(kernels, items[unit.item], unit, partials.data());
    }
  };
  if (total <= kStreamGrain) {
    range(0, static_cast<int64_t>(units.size()));
  } else {
    torch::stable::parallel_for(0, static_cast<int64_t>(units.size()), 1, range);
  }
  for (const Item& item : items) {
    if (item.dtype == kFloat64) {
      finish<double>(item, partials.data());
    } else {
      finish<float>(item, partials.data());
    }
  }
}

void neuron_stats(const std::vector<Tensor>& xs, int64_t dim, const std::vector<Tensor>& mean_abs,
                  const std::vector<Tensor>& sum_sq) {
  constexpr const char* op = "neuron_stats";
  if (mean_abs.size() != xs.size() || sum_sq.size() != xs.size()) {
    fail("fastforget.", op, ": ", xs.size(), " xs, ", mean_abs.size(), " mean_abs and ", sum_sq.size(),
         " sum_sq; the numbers must agree");
  }
  std::vector<Item> items;
  items.reserve(xs.size());
  for (size_t i = 0; i < xs.size(); ++i) {
    Item item = checked_item(xs[i], i, dim);
    check_layout(mean_abs[i], out_type(item), item.shape.rows, op, "mean_abs");
    check_layout(sum_sq[i], out_type(item), item.shape.rows, op, "sum_sq");
    item.mean_abs = mean_abs[i].data_ptr();
    item.sum_sq = sum_sq[i].data_ptr();
    items.push_back(item);
  }
  run(items);
}

}  // namespace
}  // namespace ff

STABLE_TORCH_LIBRARY_IMPL(fastforget, CPU, m) { m.impl("neuron_stats", TORCH_BOX(&ff::neuron_stats)); }
