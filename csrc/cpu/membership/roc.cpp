// The bootstrap of ROC statistics (roc_bootstrap). Compiled once per instruction set.
#include "cpu/membership/roc.h"

#include <string.h>

#include "common/lanes.h"
#include "common/table.h"

namespace ff::FF_ISA {
namespace {

// How often a position was drawn. A byte is enough: among n draws from n > 255 positions, the chance that one place is
// drawn 256 times is below 1/256!, and n <= 255 draws cannot overflow it.
using Times = uint8_t;

constexpr int kDrawBlocks = 64;
static_assert(kDrawBlocks % kLaneBlocks == 0);

// Counts the n draws of one side. The order of the draws does not matter, so whole groups of blocks stay in lane order.
FF_INLINE void draw(uint64_t seed, uint32_t stream, uint32_t step, int64_t n, Times* times) {
  memset(times, 0, static_cast<size_t>(n));
  alignas(64) uint32_t lanes[4 * kDrawBlocks], ordered[4 * kDrawBlocks];
  const auto size = static_cast<uint64_t>(n);
  for (int64_t begin = 0; begin < n; begin += 4 * kDrawBlocks) {
    const int64_t left = n - begin;
    const int count = left < 4 * kDrawBlocks ? static_cast<int>(left) : 4 * kDrawBlocks;
    uint32_t* words = lanes;
    for (int b = 0; b < (count + 3) / 4; b += kLaneBlocks) {
      uint32_t* w = lanes + 4 * b;
      philox_lanes(seed, stream, step, static_cast<uint64_t>(begin / 4 + b), w, w + kLaneBlocks, w + 2 * kLaneBlocks,
                   w + 3 * kLaneBlocks);
    }
    if (count < 4 * kDrawBlocks) {
      words = ordered;
      for (int b = 0; b < (count + 3) / 4; b += kLaneBlocks) {
        const uint32_t* w = lanes + 4 * b;
        memory_order(w, w + kLaneBlocks, w + 2 * kLaneBlocks, w + 3 * kLaneBlocks, ordered + 4 * b);
      }
    }
#pragma omp simd
    for (int i = 0; i < count; ++i) words[i] = static_cast<uint32_t>((words[i] * size) >> 32);
    for (int i = 0; i < count; ++i) ++times[words[i]];
  }
}

int64_t padded(int64_t bytes) { return (bytes + 63) / 64 * 64; }

int64_t scratch_bytes(int64_t members, int64_t nonmembers) {
  return padded(members) + padded(nonmembers) + padded(4 * (nonmembers + 1));
}

void resample(const BootstrapJob& job, uint32_t step, void* scratch, double* out) {
  const int64_t n1 = job.members, n0 = job.nonmembers;
  Times* const member = static_cast<Times*>(scratch);
  Times* const nonmember = member + padded(n1);
  // drawn[p]: draws of the nonmembers before position p
  uint32_t* const drawn = reinterpret_cast<uint32_t*>(nonmember + padded(n0));
  draw(job.seed, 1, step, n0, nonmember);
  uint32_t sum = 0;
  drawn[0] = 0;
  for (int64_t p = 0; p < n0; ++p) drawn[p + 1] = sum += nonmember[p];
  draw(job.seed, 0, step, n1, member);

  uint64_t twice_wins = 0;
#pragma omp simd reduction(+ : twice_wins)
  for (int64_t i = 0; i < n1; ++i) {
    const uint32_t under = drawn[job.below[i]] + drawn[job.upto[i]];
    twice_wins += static_cast<uint64_t>(member[i]) * under;
  }
  const double pairs = static_cast<double>(n1) * static_cast<double>(n0);
  out[0] = static_cast<double>(twice_wins) / (2.0 * pairs);

  for (int64_t rate = 0; rate < job.rates; ++rate) {
    const int64_t k = job.budgets[rate];
    int64_t above = n1;
    if (k < n0) {
      // the position that holds the (n0 - 1 - k)-th drawn score, counted from the smallest
      const auto wanted = static_cast<uint32_t>(n0 - 1 - k);
      int64_t low = 0, high = n0;  // drawn[low] <= wanted < drawn[high]
      while (high - low > 1) {
        const int64_t middle = low + (high - low) / 2;
        (drawn[middle] <= wanted ? low : high) = middle;
      }
      uint32_t counted = 0;
#pragma omp simd reduction(+ : counted)
      for (int64_t i = job.members_upto[low]; i < n1; ++i) counted += member[i];
      above = counted;
    }
    out[1 + rate] = static_cast<double>(above) / static_cast<double>(n1);
  }
}

}  // namespace

constinit const MembershipRocTable membership_roc_table = {resample, scratch_bytes};

}  // namespace ff::FF_ISA
