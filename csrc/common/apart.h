// Whether what an op writes lies apart from everything else that it was given, and whether it was given a tensor that
// carries a tangent. Both end in a refusal: kernels read and write in blocks and by several threads, so that tensors
// which share memory would give whatever the order happens to be, and no op has a rule for forward mode.
#pragma once
#include <algorithm>
#include <array>
#include <cstdint>
#include <numeric>
#include <sstream>
#include <vector>

#include "common/torch_glue.h"

namespace ff {

// The memory of an op's tensors. Two ranges may share bytes if both are read; or if they are the same bytes in the same
// place of two lists, read and written element by element, as in x += x. (torch's own ops accept the same.)
class Ranges {
 public:
  // `tensors`: as many as will be added, at most.
  Ranges(const char* op, size_t tensors) : op_(op), room_(tensors <= kFew ? nullptr : &kept_room()) {
    if (room_ == nullptr) return;
    room_->written.clear();
    room_->read.clear();
    room_->written.reserve(tensors);
    room_->read.reserve(tensors);
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
    if (room_ == nullptr) {
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
  // comparisons. So are the places that were found: the next call mostly has the same tensors, as an optimiser's steps.
  struct Room {
    std::vector<Range> written, read, sorted;
    std::vector<size_t> order;   // of what is written, by the addresses
    std::vector<size_t> before;  // of each range that is read, how many of those begin before its end
  };
  static Room& kept_room() {
    static thread_local Room room;
    return room;
  }
  static constexpr size_t kFew = 10;  // that are compared each with each

  static int64_t bytes_of(const Tensor& t) { return t.numel() * static_cast<int64_t>(t.element_size()); }

  void add(const void* data, int64_t bytes, const char* name, int64_t place, bool written) {
    if (bytes == 0) return;
    const auto begin = reinterpret_cast<uintptr_t>(data);
    const Range range = {begin, begin + static_cast<uintptr_t>(bytes), name, static_cast<int32_t>(place), written};
    if (room_ == nullptr) {
      pairs_[count_++] = range;
    } else {
      (written ? room_->written : room_->read).push_back(range);
    }
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
    if (!sorted_as_before()) sort();
    const std::vector<Range>& written = room_->sorted;
    for (size_t i = 1; i < written.size(); ++i) {
      if (__builtin_expect(written[i - 1].end > written[i].begin, 0)) refuse(written[i - 1], written[i]);
    }
    const size_t count = written.size();
    room_->before.resize(room_->read.size());
    for (size_t i = 0; i < room_->read.size(); ++i) {
      const Range& range = room_->read[i];
      size_t& before = room_->before[i];
      const bool fits = before <= count && (before == 0 || written[before - 1].begin < range.end) &&
                        (before == count || written[before].begin >= range.end);
      if (__builtin_expect(!fits, 0)) {
        const auto first = std::partition_point(written.begin(), written.end(),
                                                [&](const Range& other) { return other.begin < range.end; });
        before = static_cast<size_t>(first - written.begin());
      }
      if (before > 0 && __builtin_expect(collide(written[before - 1], range), 0)) refuse(written[before - 1], range);
    }
  }

  // Whether what is written, in the order of the call before, lies by its addresses.
  bool sorted_as_before() {
    const std::vector<Range>& written = room_->written;
    if (room_->order.size() != written.size()) return false;
    room_->sorted.clear();
    uintptr_t last = 0;
    bool ascends = true;
    for (const size_t i : room_->order) {
      ascends &= last <= written[i].begin;
      last = written[i].begin;
      room_->sorted.push_back(written[i]);
    }
    return ascends;
  }

  __attribute__((noinline)) void sort() {
    const std::vector<Range>& written = room_->written;
    std::vector<size_t>& order = room_->order;
    order.resize(written.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return written[a].begin < written[b].begin; });
    room_->sorted.clear();
    for (const size_t i : order) room_->sorted.push_back(written[i]);
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
  Room* const room_;  // null for a few
  size_t count_ = 0;
  std::array<Range, kFew> pairs_;
};

}  // namespace ff
