// Whether what an op writes lies apart from everything else that it was given, and whether it was given a tensor that
// carries a tangent. Both end in a refusal: kernels read and write in blocks and by several threads, so that tensors
// which share memory would give whatever the order happens to be, and no op has a rule for forward mode.
#pragma once
#include <algorithm>
#include <array>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <vector>

#include "common/torch_glue.h"

namespace ff {

// The memory of an op's tensors. Two ranges may share bytes if both are read; or if they are the same bytes in the same
// place of two lists, read and written element by element, as in x += x. (torch's own ops accept the same.)
class Ranges {
 public:
  // `tensors`: as many as will be added, at most.
  Ranges(const char* op, size_t tensors) : op_(op), few_(tensors <= kFew) {
    if (few_) return;
    room_.lists = 0;
    room_.read.clear();
  }

  static constexpr int32_t kAlone = -1;   // of a tensor that may not even be the same as another one
  static constexpr int32_t kSingle = -2;  // of one outside a list, worked on element by element

  // `place`: in its list, or kSingle, for what is worked on element by element.
  void write(const void* data, int64_t bytes, const char* name, int64_t place = kAlone) {
    add(data, bytes, name, place, true);
  }
  void read(const void* data, int64_t bytes, const char* name, int64_t place = kAlone) {
    add(data, bytes, name, place, false);
  }
  void write(const Tensor& t, const char* name, int64_t place = kAlone) {
    write(t.data_ptr(), bytes_of(t), name, place);
  }
  void read(const Tensor& t, const char* name, int64_t place = kAlone) { read(t.data_ptr(), bytes_of(t), name, place); }

  void check() {
    if (few_) {
      check_pairs();
    } else {
      check_many();
    }
  }

 private:
  struct Range {
    uintptr_t begin, end;
    const char* name;
    int32_t place;
    bool written;
  };
  // Of long lists, kept from call to call: taking so much memory and giving it back would cost more than the
  // comparisons.
  struct Room {
    std::array<std::vector<Range>, 4> written;  // a list each
    std::array<const char*, 4> names;
    size_t lists;
    std::vector<Range> read, sorted, other;
    std::vector<size_t> runs, merged;
  };
  static constexpr size_t kFew = 10;  // that are compared each with each

  static int64_t bytes_of(const Tensor& t) { return t.numel() * static_cast<int64_t>(t.element_size()); }

  void add(const void* data, int64_t bytes, const char* name, int64_t place, bool written) {
    if (bytes == 0) return;
    const auto begin = reinterpret_cast<uintptr_t>(data);
    const Range range = {begin, begin + static_cast<uintptr_t>(bytes), name, static_cast<int32_t>(place), written};
    if (few_) {
      pairs_[count_++] = range;
    } else {
      (written ? written_list(name) : room_.read).push_back(range);
    }
  }

  std::vector<Range>& written_list(const char* name) {
    size_t list = 0;
    while (list < room_.lists && room_.names[list] != name) ++list;
    if (list == room_.lists && list < room_.written.size()) {
      room_.names[list] = name;
      room_.written[list].clear();
      ++room_.lists;
    }
    return room_.written[std::min(list, room_.written.size() - 1)];
  }

  static bool collide(const Range& a, const Range& b) {
    if (a.begin >= b.end || b.begin >= a.end) return false;
    const bool same = a.begin == b.begin && a.end == b.end && a.place == b.place && a.place != kAlone;
    return !same || (a.written && b.written);
  }

  void check_pairs() const {
    for (size_t i = 1; i < count_; ++i) {
      for (size_t j = 0; j < i; ++j) {
        const Range &a = pairs_[j], &b = pairs_[i];
        if (__builtin_expect((a.written || b.written) && collide(a, b), 0)) refuse(a, b);
      }
    }
  }

  // What is written in order of its addresses; then each range that is read beside the written one that begins last
  // before its end. What is written lies apart, so no other can reach into the range unless this one does.
  void check_many() {
    sort();
    const std::vector<Range>& written = room_.sorted;
    for (size_t i = 1; i < written.size(); ++i) {
      if (__builtin_expect(written[i - 1].end > written[i].begin, 0)) refuse(written[i - 1], written[i]);
    }
    size_t before = 0;  // of those written, how many begin before the end of the range
    for (const Range& range : room_.read) {
      const auto fits = [&](size_t at) {
        return (at == 0 || written[at - 1].begin < range.end) &&
               (at == written.size() || written[at].begin >= range.end);
      };
      if (!fits(
              before)) {  // lists lie in order, mostly: neighbours are apart from what is written, or a step further on
        if (before < written.size() && fits(before + 1)) {
          ++before;
        } else {
          const auto first = std::partition_point(written.begin(), written.end(),
                                                  [&](const Range& other) { return other.begin < range.end; });
          before = static_cast<size_t>(first - written.begin());
        }
      }
      if (before > 0 && __builtin_expect(collide(written[before - 1], range), 0)) refuse(written[before - 1], range);
    }
  }

  // What is written, by the addresses; from runs that are in order, of which lists of tensors made one after another
  // have few.
  void sort() {
    std::vector<Range>&sorted = room_.sorted, &other = room_.other;
    sorted.clear();
    for (size_t i = 0; i < room_.lists; ++i) {
      sorted.insert(sorted.end(), room_.written[i].begin(), room_.written[i].end());
    }
    const auto before = [](const Range& a, const Range& b) { return a.begin < b.begin; };
    std::vector<size_t>&runs = room_.runs, &merged = room_.merged;
    runs.assign(1, 0);
    for (size_t i = 1; i < sorted.size(); ++i) {
      if (before(sorted[i], sorted[i - 1])) runs.push_back(i);
    }
    runs.push_back(sorted.size());
    other.resize(sorted.size());
    while (runs.size() > 2) {
      merged.assign(1, 0);
      for (size_t i = 0; i + 1 < runs.size(); i += 2) {
        const size_t middle = runs[i + 1], end = runs[std::min(i + 2, runs.size() - 1)];
        const auto at = [&](size_t k) { return sorted.begin() + static_cast<std::ptrdiff_t>(k); };
        std::merge(at(runs[i]), at(middle), at(middle), at(end), other.begin() + static_cast<std::ptrdiff_t>(runs[i]),
                   before);
        merged.push_back(end);
      }
      sorted.swap(other);
      runs.swap(merged);
    }
  }

  [[noreturn]] __attribute__((noinline, cold)) void refuse(const Range& a, const Range& b) const {
    const Range &to = a.written ? a : b, &other = a.written ? b : a;
    std::ostringstream words;
    words << to.name;
    if (to.place >= 0) words << "[" << to.place << "]";
    words << ", which is changed, shares memory with " << other.name;
    if (other.place >= 0) words << "[" << other.place << "]";
    fail("fastforget.", op_, ": ", words.str(),
         "; accepted are tensors that lie apart, or one that is read and changed element by element. Use .clone(), and "
         "give a tensor once in a list");
  }

  const char* op_;
  const bool few_;
  size_t count_ = 0;
  std::array<Range, kFew> pairs_;
  static inline thread_local Room room_;
};

}  // namespace ff
