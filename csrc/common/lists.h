// Lists of tensors as one range of work, shared by the glue of every family.
#pragma once
#include "common/torch_glue.h"

namespace ff {

// Work worth a thread, in elements.
inline constexpr int64_t kNoiseGrain = 8192;
inline constexpr int64_t kStreamGrain = 32768;

// A list as one range of elements: `ends[i]` is where tensor i ends in it. Cutting that range gives every thread its
// share whatever the sizes are; no result depends on where the cuts fall.
struct FlatList {
  std::vector<int64_t> ends;

  explicit FlatList(size_t tensors) { ends.reserve(tensors); }  // to be filled by add()
  explicit FlatList(const std::vector<Tensor>& tensors) : FlatList(tensors.size()) {
    for (const Tensor& t : tensors) add(t.numel());
  }

  void add(int64_t numel) { ends.push_back((ends.empty() ? 0 : ends.back()) + numel); }

  // Calls work(tensor, begin, end) on pieces that cover every tensor once.
  template <class Work>
  void parallel(int64_t grain, const Work& work) const {
    const int64_t total = ends.empty() ? 0 : ends.back();
    const auto range = [&](int64_t from, int64_t to) {
      size_t i = 0;
      for (size_t high = ends.size(); i < high;) {  // the first tensor that ends after `from`
        const size_t middle = (i + high) / 2;
        if (ends[middle] <= from) {
          i = middle + 1;
        } else {
          high = middle;
        }
      }
      for (; from < to; ++i) {
        const int64_t begin = i == 0 ? 0 : ends[i - 1];
        const int64_t stop = ends[i] < to ? ends[i] : to;
        if (from < stop) work(i, from - begin, stop - begin);
        from = stop;
      }
    };
    if (total <= grain) {
      range(0, total);
    } else {
      torch::stable::parallel_for(0, total, grain, range);
    }
  }
};

// A piece of one tensor of a list.
struct Chunk {
  size_t tensor;
  int64_t begin, end;
};

// A list cut into pieces of at most `size` elements, in order. The cut depends on the shapes alone, so results that are
// put together piece by piece don't depend on the thread count.
inline std::vector<Chunk> fixed_chunks(const std::vector<Tensor>& tensors, int64_t size) {
  std::vector<Chunk> chunks;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const int64_t n = tensors[i].numel();
    for (int64_t begin = 0; begin < n; begin += size) chunks.push_back({i, begin, n - begin < size ? n : begin + size});
  }
  return chunks;
}

inline void* at(const Tensor& t, int64_t element) {
  return static_cast<char*>(t.data_ptr()) + element * static_cast<int64_t>(t.element_size());
}

}  // namespace ff
