// saliency_mask on CPU tensors: checks, the search for the threshold, the cut of the passes for torch's threads.
//
// The search narrows a range of keys down. A sample proposes one that holds the threshold and about n^(2/3) keys; one
// pass counts what lies above it and collects what lies within, and the answer is found among those. Where the sample
// misled (a bracket beside the threshold, or crowded by equal values), passes that only count divide the range by 2048
// each. So whatever the values are: at most 1 + ceil(bits / 11) + 1 reads of the list before the mask is written (5 for
// 32-bit keys, 8 for 64-bit ones) and memory for n / 16 keys, 16384 at least.
#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <mutex>

#include "cpu/lists.h"
#include "cpu/table.h"
#include "torch_glue.h"

namespace ff {
namespace {

constexpr int64_t kChunk = 65536;  // a multiple of 8, so that a chunk of packed bits begins with a byte
constexpr int64_t kCollectTile = 4096;
constexpr int64_t kSmall = 16384;  // up to here all keys are collected at once
constexpr double kDeviations = 3.5;

struct Item {
  const char* x;
  uint8_t* mask;
  int64_t numel;
  int dtype;
  bool packed;
};

// The k-th largest key, and how many keys are larger and equal.
template <class Key>
struct Threshold {
  Key key;
  int64_t greater, equal;
};

// Keys in [low, high): `within` of them, and `above` are at or above high.
template <class Key>
struct Bracket {
  Key low, high;
  int64_t above, within;
};

int digit_shift(uint64_t span) {
  const int bits = 64 - __builtin_clzll((span - 1) | 1);
  return bits > kSelectDigitBits ? bits - kSelectDigitBits : 0;
}

// The part of the bracket that holds the k-th largest key, by the counts of its 2048 parts.
template <class Key>
Bracket<Key> narrowed(const Bracket<Key>& bracket, const int64_t* counts, int shift, int64_t k) {
  int64_t above = bracket.above, digit = kSelectDigits - 1;
  while (above + counts[digit] < k) above += counts[digit--];
  const Key low = bracket.low + (static_cast<Key>(digit) << shift);
  const Key width = std::min(static_cast<Key>(Key(1) << shift), static_cast<Key>(bracket.high - low));
  return {low, low + width, above, counts[digit]};
}

// All keys of the bracket are at hand.
template <class Key>
Threshold<Key> select(Key* keys, Bracket<Key> bracket, int64_t k) {
  int64_t counts[kSelectDigits];
  int64_t n = bracket.within;
  while (bracket.high - bracket.low > 1 && n > 64) {
    const int shift = digit_shift(bracket.high - bracket.low);
    std::fill(counts, counts + kSelectDigits, 0);
    for (int64_t i = 0; i < n; ++i) ++counts[(keys[i] - bracket.low) >> shift];
    bracket = narrowed(bracket, counts, shift, k);
    int64_t kept = 0;
    for (int64_t i = 0; i < n; ++i) {
      const Key key = keys[i];
      keys[kept] = key;
      kept += static_cast<Key>(key - bracket.low) < static_cast<Key>(bracket.high - bracket.low);
    }
    n = kept;
  }
  std::sort(keys, keys + n, std::greater<Key>());
  const Key key = keys[k - bracket.above - 1];
  const auto same = std::equal_range(keys, keys + n, key, std::greater<Key>());
  return {key, bracket.above + (same.first - keys), same.second - same.first};
}

template <class Key>
class Search {
 public:
  Search(const std::vector<Item>& items, const std::vector<Tensor>& xs)
      : kernels_(table().mask_select.kernels<Key>()), items_(items), chunks_(fixed_chunks(xs, kChunk)) {
    for (const Tensor& x : xs) total_ += x.numel();
    capacity_ = total_ <= kSmall ? total_ : std::max(kSmall, total_ / 16);
    keys_.reset(new Key[static_cast<size_t>(capacity_)]);
  }

  Threshold<Key> find(int64_t k) const {
    Bracket<Key> bracket = total_ <= kSmall ? whole() : proposed(k);
    bool collected = collect(bracket);
    if (bracket.above >= k) {
      bracket = {bracket.high, KeyOrder<Key>::kEnd, 0, bracket.above};
      collected = false;
    } else if (bracket.above + bracket.within < k) {
      const int64_t above = bracket.above + bracket.within;
      bracket = {0, bracket.low, above, total_ - above};
      collected = false;
    }
    while (!collected && bracket.high - bracket.low > 1) {
      if (bracket.within <= capacity_) {
        collected = collect(bracket);
      } else {
        bracket = counted(bracket, k);
      }
    }
    if (collected) return select(keys_.get(), bracket, k);
    return {bracket.low, bracket.above, bracket.within};
  }

  void write(const Threshold<Key>& threshold, int64_t k) const {
    using Signed = typename KeyOrder<Key>::Signed;
    const auto floor = static_cast<Signed>(threshold.key) - 1;
    const int64_t chosen = k - threshold.greater;
    const bool split = chosen != threshold.equal;  // some of the equal ones are on, the earliest
    std::vector<int64_t> tied(split ? chunks_.size() : 0);
    each([&](size_t c, const Item& item, const char* x, int64_t n, uint8_t* out) {
      const int64_t ties = kernels_.mask[item.dtype](x, n, floor, split, item.packed, out);
      if (split) tied[c] = ties;
    });
    if (!split) return;
    std::vector<int64_t> kept(chunks_.size());
    int64_t left = chosen;
    for (size_t c = 0; c < chunks_.size(); ++c) {
      kept[c] = std::min(left, tied[c]);
      left -= kept[c];
    }
    each([&](size_t c, const Item& item, const char* x, int64_t n, uint8_t* out) {
      if (kept[c] == tied[c]) return;
      kernels_.mask[item.dtype](x, n, floor + 1, false, item.packed, out);
      kernels_.first[item.dtype](x, n, threshold.key, kept[c], item.packed, out);
    });
  }

 private:
  Bracket<Key> whole() const { return {0, KeyOrder<Key>::kEnd, 0, 0}; }

  // Calls work(chunk, item, x, n, mask) for each chunk.
  template <class Work>
  void each(const Work& work) const {
    const auto range = [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) {
        const Chunk& chunk = chunks_[static_cast<size_t>(c)];
        const Item& item = items_[chunk.tensor];
        work(static_cast<size_t>(c), item, item.x + chunk.begin * dtype_size(item.dtype), chunk.end - chunk.begin,
             item.mask + (item.packed ? chunk.begin / 8 : chunk.begin));
      }
    };
    const auto count = static_cast<int64_t>(chunks_.size());
    if (total_ <= kStreamGrain) {
      range(0, count);
    } else {
      torch::stable::parallel_for(0, count, 1, range);
    }
  }

  // A range of keys that holds the k-th largest unless the sample is far from the whole. One random place in each of
  // the sample's equal shares of the list: evenly spaced places could fall in step with the rows of a weight.
  Bracket<Key> proposed(int64_t k) const {
    const double cube_root = std::cbrt(static_cast<double>(total_));
    const auto size = static_cast<int64_t>(cube_root * cube_root);
    const double share = static_cast<double>(total_) / static_cast<double>(size);
    std::vector<Key> sample(static_cast<size_t>(size));
    size_t at = 0;
    int64_t before = 0;
    uint32_t random = 1;
    for (int64_t j = 0; j < size; ++j) {
      random = random * 1664525u + 1013904223u;
      const double place = (static_cast<double>(j) + static_cast<double>(random) * 0x1p-32) * share;
      const int64_t index = std::min(static_cast<int64_t>(place), total_ - 1);
      while (index - before >= items_[at].numel) before += items_[at++].numel;
      const Item& item = items_[at];
      sample[static_cast<size_t>(j)] = kernels_.key_at[item.dtype](item.x, index - before);
    }
    const double portion = static_cast<double>(k) / static_cast<double>(total_);
    const double rank = portion * static_cast<double>(size);
    const double margin = kDeviations * std::sqrt(rank * (1.0 - portion)) + 4.0;
    const auto from_top = static_cast<int64_t>(std::floor(rank - margin));
    const auto to = static_cast<int64_t>(std::ceil(rank + margin));
    Bracket<Key> bracket = whole();
    auto rest = sample.begin();
    if (to < size) {
      const auto low = sample.end() - 1 - to;
      std::nth_element(rest, low, sample.end());
      bracket.low = *low;
      rest = low;
    }
    if (from_top >= 0) {
      const auto high = sample.end() - 1 - from_top;
      std::nth_element(rest, high, sample.end());
      bracket.high = *high + 1;
    }
    return bracket;
  }

  // Counts the keys of the bracket and those above it; whether keys_ now holds all of the former.
  bool collect(Bracket<Key>& bracket) const {
    std::atomic<int64_t> above{0}, within{0};
    each([&](size_t, const Item& item, const char* x, int64_t n, uint8_t*) {
      Key found[kCollectTile + kCollectSlack];
      int64_t over = 0;
      for (int64_t from = 0; from < n; from += kCollectTile) {
        int64_t over_here = 0;
        const int64_t count =
            kernels_.collect[item.dtype](x + from * dtype_size(item.dtype), std::min(kCollectTile, n - from),
                                         bracket.low, bracket.high, found, &over_here);
        over += over_here;
        if (count == 0) continue;
        const int64_t place = within.fetch_add(count, std::memory_order_relaxed);
        if (place + count <= capacity_) {
          std::memcpy(keys_.get() + place, found, static_cast<size_t>(count) * sizeof(Key));
        }
      }
      above.fetch_add(over, std::memory_order_relaxed);
    });
    bracket.above = above;
    bracket.within = within;
    return bracket.within <= capacity_;
  }

  Bracket<Key> counted(const Bracket<Key>& bracket, int64_t k) const {
    const int shift = digit_shift(bracket.high - bracket.low);
    std::vector<int64_t> counts(kSelectDigits);
    std::mutex adding;
    each([&](size_t, const Item& item, const char* x, int64_t n, uint8_t*) {
      int64_t here[kSelectDigits] = {};
      kernels_.histogram[item.dtype](x, n, bracket.low, bracket.high, shift, here);
      const std::lock_guard<std::mutex> guard(adding);
      for (int64_t digit = 0; digit < kSelectDigits; ++digit) counts[static_cast<size_t>(digit)] += here[digit];
    });
    return narrowed(bracket, counts.data(), shift, k);
  }

  const SelectKernels<Key>& kernels_;
  const std::vector<Item>& items_;
  const std::vector<Chunk> chunks_;
  int64_t total_ = 0, capacity_ = 0;
  std::unique_ptr<Key[]> keys_;
};

template <class Key>
double select_and_write(const std::vector<Item>& items, const std::vector<Tensor>& xs, int64_t k) {
  const Search<Key> search(items, xs);
  const Threshold<Key> found = search.find(k);
  search.write(found, k);
  if (found.key == KeyOrder<Key>::kNan) return std::numeric_limits<double>::quiet_NaN();
  if constexpr (sizeof(Key) == 4) {
    return std::bit_cast<float>(found.key);
  } else {
    return std::bit_cast<double>(found.key);
  }
}

void saliency_mask(const std::vector<Tensor>& xs, int64_t k, const std::vector<Tensor>& masks,
                   const Tensor& threshold) {
  constexpr const char* op = "saliency_mask";
  if (masks.size() != xs.size()) {
    fail("fastforget.", op, ": ", xs.size(), " xs and ", masks.size(), " masks; the numbers must agree");
  }
  std::vector<Item> items;
  items.reserve(xs.size());
  int64_t total = 0;
  bool wide = false;
  for (size_t i = 0; i < xs.size(); ++i) {
    const int dtype = float_dtype(xs[i], op, "xs");
    const int64_t n = xs[i].numel();
    const bool packed = dtype_code(masks[i]) == dtype_code(ScalarType::Byte);
    check_layout(xs[i], kFloatTypes[dtype], n, op, "xs");
    check_layout(masks[i], packed ? ScalarType::Byte : ScalarType::Bool, packed ? (n + 7) / 8 : n, op, "masks");
    items.push_back(
        {static_cast<const char*>(xs[i].data_ptr()), static_cast<uint8_t*>(masks[i].data_ptr()), n, dtype, packed});
    total += n;
    wide = wide || dtype == kFloat64;
  }
  check_layout(threshold, wide ? ScalarType::Double : ScalarType::Float, 1, op, "threshold");
  if (k < 0 || k > total) fail("fastforget.", op, ": k is ", k, "; accepted: 0 to ", total, ", the number of elements");
  double value = std::numeric_limits<double>::infinity();
  if (k == 0) {
    for (const Item& item : items) {
      if (item.numel == 0) continue;  // an empty tensor may have no memory at all
      std::memset(item.mask, 0, static_cast<size_t>(item.packed ? (item.numel + 7) / 8 : item.numel));
    }
  } else {
    value = wide ? select_and_write<uint64_t>(items, xs, k) : select_and_write<uint32_t>(items, xs, k);
  }
  if (wide) {
    *static_cast<double*>(threshold.data_ptr()) = value;
  } else {
    *static_cast<float*>(threshold.data_ptr()) = static_cast<float>(value);
  }
}

}  // namespace
}  // namespace ff

STABLE_TORCH_LIBRARY_IMPL(fastforget, CPU, m) { m.impl("saliency_mask", TORCH_BOX(&ff::saliency_mask)); }
