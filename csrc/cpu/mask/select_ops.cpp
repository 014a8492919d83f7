// saliency_mask on CPU tensors: checks, the search for the threshold, the cut of the passes for torch's threads.
//
// A sample of 4 n^(2/3) keys proposes a range of keys, the bracket, that holds the threshold and, where neighbours have
// nothing in common, 1.5 n^(2/3) keys at most (6 n^(2/3) where they are equal). One pass over the list writes the mask
// as if the middle of the bracket (of bits, its upper end) were the threshold, counts what lies above the bracket and
// collects what lies within, the candidates, with their places; the threshold is found among those, and they are set
// right one by one, in the list's order.
//
// Where the sample is misleading (its bracket misses the threshold, or holds too many equal values), passes that only
// count divide the range that must hold the threshold by 2048 each, until it holds few enough or is a single key; then
// comes the pass that writes. Where too many elements tie with the threshold, that pass counts the ties of each chunk,
// and the chunks whose ties are on are written once more. So whatever the values are: at most 1 + ceil(bits / 11) + 1
// reads of the list (5 for 32-bit keys, 8 for 64-bit ones), one more for such ties; and memory for 8 n^(2/3)
// candidates.
#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <mutex>

#include "common/lists.h"
#include "common/table.h"
#include "common/torch_glue.h"
#include "cpu/mask/select_rank.h"

namespace ff {
namespace {

constexpr int64_t kAll = 1024;                    // up to here all keys are candidates
constexpr int64_t kRun = 16;                      // neighbours that the sample takes at once: a cache line of float32
constexpr int64_t kApart = 4;                     // of so many runs one gives a key to the coarse bracket
constexpr double kSample = 4.0, kCapacity = 8.0;  // in n^(2/3) keys; the sample must find room among candidates
constexpr double kDeviations = 3.0, kCoarseDeviations = 3.5;

struct Item {
  const char* x;
  uint8_t* mask;
  int64_t numel;
  int dtype;
  bool packed;
};

template <class Key>
class Search {
 public:
  Search(const std::vector<Item>& items, const std::vector<Tensor>& xs)
      : kernels_(table().mask_select.kernels<Key>()), items_(items), chunks_(fixed_chunks(xs, kSelectChunk)) {
    for (const Tensor& x : xs) total_ += x.numel();
    two_thirds_ = std::pow(static_cast<double>(total_), 2.0 / 3.0);
    capacity_ = std::max(kAll, static_cast<int64_t>(kCapacity * two_thirds_));
    keys_.reset(new Key[static_cast<size_t>(capacity_)]);
    places_.reset(new uint16_t[static_cast<size_t>(capacity_)]);
    candidates_.resize(chunks_.size());
  }

  // Writes the masks; returns the k-th largest key.
  Key choose(int64_t k) {
    Bracket<Key> bracket = proposed(k);
    for (;;) {
      sift(bracket);
      if (bracket.above >= k) {
        bracket = {bracket.high, KeyOrder<Key>::kEnd, 0, bracket.above};
      } else if (bracket.above + bracket.within < k) {
        const int64_t above = bracket.above + bracket.within;
        bracket = {0, bracket.low, above, total_ - above};
      } else if (bracket.within <= capacity_) {
        const Threshold<Key> found = select(keys_.get(), bracket, k);
        correct(found.key, k - found.greater, bracket);
        return found.key;
      } else if (bracket.high - bracket.low == 1) {
        turn_on_equals(bracket.low, k - bracket.above);
        return bracket.low;
      }
      while (bracket.within > capacity_ && bracket.high - bracket.low > 1) bracket = counted(bracket, k);
    }
  }

 private:
  // The keys of a chunk that lie within the bracket: where they begin in keys_ and places_, and how many there are.
  struct Candidates {
    int64_t begin, count;
  };

  // Neighbours that the sample reads.
  struct Piece {
    const char* x;
    int64_t count;
    int dtype;
  };

  // Calls work(chunk, item, x, n, mask) for each chunk.
  template <class Work>
  void each(const Work& work) const {
    const auto range = [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) {
        const Chunk& chunk = chunks_[static_cast<size_t>(c)];
        const Item& item = items_[chunk.tensor];
        work(static_cast<size_t>(c), item, at(item, chunk), chunk.end - chunk.begin, mask_of(item, chunk));
      }
    };
    const auto count = static_cast<int64_t>(chunks_.size());
    if (total_ <= kStreamGrain) {
      range(0, count);
    } else {
      torch::stable::parallel_for(0, count, 1, range);
    }
  }

  // What a mask is written by. Of a single key its end: the mask is written without it.
  static SiftLimits<Key> limits(const Bracket<Key>& bracket) {
    return {bracket.low, bracket.high - (bracket.high - bracket.low) / 2, bracket.high};
  }

  int64_t length(size_t chunk) const { return chunks_[chunk].end - chunks_[chunk].begin; }
  static const char* at(const Item& item, const Chunk& chunk) { return item.x + chunk.begin * dtype_size(item.dtype); }
  static uint8_t* mask_of(const Item& item, const Chunk& chunk) {
    return item.mask + (item.packed ? chunk.begin / 8 : chunk.begin);
  }

  // The keys of runs of kRun neighbours, one run at a random place in each of as many equal shares of the list (evenly
  // spaced places could fall in step with the rows of a weight). A run costs the cache miss that a single key costs,
  // and the misses overlap. They lie where the candidates will: fresh memory would cost more than reading them does.
  const Key* sample(int64_t runs) const {
    std::vector<Piece> pieces;
    pieces.reserve(static_cast<size_t>(runs) + chunks_.size());
    const double share = static_cast<double>(total_ - kRun) / static_cast<double>(runs);
    size_t c = 0;
    int64_t before = 0;
    uint32_t random = 1;
    for (int64_t run = 0; run < runs; ++run) {
      random = random * 1664525u + 1013904223u;
      const double place = (static_cast<double>(run) + static_cast<double>(random) * 0x1p-32) * share;
      int64_t start = static_cast<int64_t>(place) - before;
      for (; start >= length(c); ++c) {
        before += length(c);
        start -= length(c);
      }
      for (int64_t left = kRun, in = static_cast<int64_t>(c); left > 0; ++in, start = 0) {
        const Chunk& chunk = chunks_[static_cast<size_t>(in)];
        const Item& item = items_[chunk.tensor];
        const int64_t count = std::min(left, chunk.end - chunk.begin - start);
        const char* x = at(item, chunk) + start * dtype_size(item.dtype);
        __builtin_prefetch(x);
        pieces.push_back({x, count, item.dtype});
        left -= count;
      }
    }
    Key* to = keys_.get();
    for (const Piece& piece : pieces) {
      kernels_.keys[piece.dtype](piece.x, piece.count, to);
      to += piece.count;
    }
    return keys_.get();
  }

  // A range of keys that holds the k-th largest unless the sample is far from the whole. How far its ranks may be off
  // depends on how alike neighbours are, which the counts of its runs above some limit tell. A coarse bracket, from
  // keys that are far apart, gives that limit and leaves few keys to search.
  Bracket<Key> proposed(int64_t k) const {
    const Bracket<Key> whole{0, KeyOrder<Key>::kEnd, 0, 0};
    if (total_ <= kAll) return whole;
    const double portion = static_cast<double>(k) / static_cast<double>(total_);
    const auto runs = static_cast<int64_t>(kSample * two_thirds_ / kRun);
    const int64_t size = runs * kRun;
    const Key* const keys = sample(runs);

    std::vector<Key> apart;
    for (int64_t run = 0; run < runs; run += kApart) apart.push_back(keys[run * kRun]);
    const auto count = static_cast<int64_t>(apart.size());
    const double deviation = std::sqrt(static_cast<double>(count) * portion * (1.0 - portion));
    const Bracket<Key> coarse = around(apart.data(), {whole.low, whole.high, 0, count},
                                       portion * static_cast<double>(count), kCoarseDeviations * deviation);
    if (coarse.high - coarse.low == 1) return coarse;

    std::vector<uint8_t> bits(static_cast<size_t>(size / 8));
    std::vector<Key> searched;
    Bracket<Key> found{coarse.low, coarse.high, 0, 0};
    for (int64_t from = 0; from < size; from += kSelectChunk) {
      uint16_t places[kSelectChunk + kPlacesSlack];
      constexpr int dtype = sizeof(Key) == 4 ? kFloat32 : kFloat64;  // the bits of keys are numbers of these keys again
      const Sifted here = kernels_.sift[dtype](&keys[from], std::min(kSelectChunk, size - from), limits(coarse), true,
                                               &bits[static_cast<size_t>(from / 8)], places);
      searched.resize(static_cast<size_t>(found.within + here.within));
      kernels_.pick[dtype](&keys[from], places, here.within, searched.data() + found.within);
      found.above += here.above;
      found.within += here.within;
    }
    const double rank = portion * static_cast<double>(size);
    const double variance = rank * (1.0 - portion) * alike(bits.data(), runs, found.above);
    const Bracket<Key> bracket = around(searched.data(), found, rank, kDeviations * std::sqrt(variance));
    return {bracket.low, bracket.high, 0, 0};
  }

  // How much more the runs' counts of what lies above vary than they would if neighbours had nothing in common, 1 at
  // least.
  static double alike(const uint8_t* bits, int64_t runs, int64_t above) {
    static_assert(kRun == 16);  // two bytes
    int64_t squares = 0;
    for (int64_t run = 0; run < runs; ++run) {
      const int64_t count = __builtin_popcount(static_cast<unsigned>(bits[2 * run] | bits[2 * run + 1] << 8));
      squares += count * count;
    }
    const auto sum = static_cast<double>(above), all = static_cast<double>(runs);
    const double independent = sum * (1.0 - sum / (all * kRun));
    return independent > 0.0 ? std::max(1.0, (static_cast<double>(squares) - sum * sum / all) / independent) : 1.0;
  }

  // One pass: writes the masks, counts the keys above and within the bracket and, while they find room, collects the
  // latter.
  void sift(Bracket<Key>& bracket) {
    const SiftLimits<Key> at = limits(bracket);
    std::atomic<int64_t> above{0}, within{0};
    each([&](size_t c, const Item& item, const char* x, int64_t n, uint8_t* mask) {
      uint16_t places[kSelectChunk + kPlacesSlack];
      const bool room = within.load(std::memory_order_relaxed) <= capacity_;
      const Sifted found = kernels_.sift[item.dtype](x, n, at, item.packed, mask, room ? places : nullptr);
      above.fetch_add(found.above, std::memory_order_relaxed);
      const int64_t begin = within.fetch_add(found.within, std::memory_order_relaxed);
      candidates_[c] = {begin, found.within};
      if (room && begin + found.within <= capacity_) {
        std::copy(places, places + found.within, places_.get() + begin);
        kernels_.pick[item.dtype](x, places, found.within, keys_.get() + begin);
      }
    });
    bracket.above = above;
    bracket.within = within;
  }

  // Of the collected, those above this key and the first `equals` that are equal to it are on.
  void correct(Key key, int64_t equals, const Bracket<Key>& bracket) const {
    const Key guess = limits(bracket).guess;
    for (size_t c = 0; c < chunks_.size(); ++c) {
      const Item& item = items_[chunks_[c].tensor];
      uint8_t* mask = mask_of(item, chunks_[c]);
      const Key* keys = keys_.get() + candidates_[c].begin;
      const uint16_t* places = places_.get() + candidates_[c].begin;
      for (int64_t j = 0; j < candidates_[c].count; ++j) {
        const bool equal = keys[j] == key;
        const int on = (keys[j] > key) | (equal & (equals > 0));
        equals -= equal;
        if (item.packed) {
          mask[places[j] / 8] = static_cast<uint8_t>(mask[places[j] / 8] | on << (places[j] % 8));
        } else if (on != (keys[j] >= guess)) {
          mask[places[j]] = static_cast<uint8_t>(on);
        }
      }
    }
  }

  // The same where the bracket is this key alone and its elements are counted but not collected.
  void turn_on_equals(Key key, int64_t equals) const {
    std::vector<int64_t> on(chunks_.size());
    for (size_t c = 0; c < chunks_.size(); ++c) {
      on[c] = std::min(equals, candidates_[c].count);
      equals -= on[c];
    }
    each([&](size_t c, const Item& item, const char* x, int64_t n, uint8_t* mask) {
      if (on[c] == 0) return;
      if (on[c] == candidates_[c].count) {
        kernels_.sift[item.dtype](x, n, {key, key, key}, item.packed, mask, nullptr);
      } else {
        kernels_.first[item.dtype](x, n, key, on[c], item.packed, mask);
      }
    });
  }

  Bracket<Key> counted(const Bracket<Key>& bracket, int64_t k) const {
    const int shift = digit_shift(bracket.high - bracket.low, kSelectDigitBits);
    std::vector<int64_t> counts(kSelectDigits);
    std::mutex adding;
    each([&](size_t, const Item& item, const char* x, int64_t n, uint8_t*) {
      int64_t here[kSelectDigits] = {};
      kernels_.histogram[item.dtype](x, n, bracket.low, bracket.high, shift, here);
      const std::lock_guard<std::mutex> guard(adding);
      for (int64_t digit = 0; digit < kSelectDigits; ++digit) counts[static_cast<size_t>(digit)] += here[digit];
    });
    return narrowed(bracket, counts, shift, k);
  }

  const SelectKernels<Key>& kernels_;
  const std::vector<Item>& items_;
  const std::vector<Chunk> chunks_;
  int64_t total_ = 0, capacity_ = 0;
  double two_thirds_ = 0.0;  // n^(2/3)
  std::unique_ptr<Key[]> keys_;
  std::unique_ptr<uint16_t[]> places_;
  std::vector<Candidates> candidates_;
};

template <class Key>
double select_and_write(const std::vector<Item>& items, const std::vector<Tensor>& xs, int64_t k) {
  const Key found = Search<Key>(items, xs).choose(k);
  if (found == KeyOrder<Key>::kNan) return std::numeric_limits<double>::quiet_NaN();
  if constexpr (sizeof(Key) == 4) {
    return std::bit_cast<float>(found);
  } else {
    return std::bit_cast<double>(found);
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
