// Philox words and Gaussian noise over a range of elements. Compiled once per instruction set.
//
// Values are made tile by tile in L1: words in lane order, then normals in lane order, then memory order. Three short
// loops beat one long one, which would need more registers than there are for the round keys and coefficients.
#include "common/lanes.h"
#include "common/normal.h"
#include "common/storage.h"
#include "common/table.h"

namespace ff::FF_ISA {
namespace {

constexpr int kTileBlocks = 256;
constexpr int kTile = 4 * kTileBlocks;

struct alignas(64) Words4 {
  uint32_t w[4][kTileBlocks];
};

// Whole vectors of blocks: more than asked for, never more than a tile.
FF_INLINE int round_up(int blocks) { return (blocks + kLaneBlocks - 1) / kLaneBlocks * kLaneBlocks; }

FF_INLINE void make_words(const NoiseRange& r, uint64_t block, int blocks, Words4& words) {
  for (int b = 0; b < blocks; b += kLaneBlocks) {
    philox_lanes(r.seed, r.stream, r.step, block + static_cast<uint64_t>(b), words.w[0] + b, words.w[1] + b,
                 words.w[2] + b, words.w[3] + b);
  }
}

template <class Lane>
FF_INLINE void in_memory_order(const Lane (&lanes)[4][kTileBlocks], int blocks, Lane* out) {
  for (int b = 0; b < blocks; b += kLaneBlocks) {
    memory_order(lanes[0] + b, lanes[1] + b, lanes[2] + b, lanes[3] + b, out + 4 * b);
  }
}

// Element 4*block + i of the stream to out[i], for i < 4*blocks.
FF_INLINE void make_values(const NoiseRange& r, uint64_t block, int blocks, uint32_t* out) {
  Words4 words;
  make_words(r, block, blocks, words);
  in_memory_order(words.w, blocks, out);
}

FF_INLINE void make_values(const NoiseRange& r, uint64_t block, int blocks, float* out) {
  Words4 words;
  alignas(64) float z[4][kTileBlocks];
  make_words(r, block, blocks, words);
  for (int pair = 0; pair < 4; pair += 2) {
    const uint32_t* even = words.w[pair];
    const uint32_t* odd = words.w[pair + 1];
    float* z0 = z[pair];
    float* z1 = z[pair + 1];
#pragma omp simd
    for (int b = 0; b < blocks; ++b) {
      const NormalPair<float> both = normal_pair_f32(even[b], odd[b]);
      z0[b] = both.z0;
      z1[b] = both.z1;
    }
  }
  in_memory_order(z, blocks, out);
}

FF_INLINE void make_values(const NoiseRange& r, uint64_t block, int blocks, double* out) {
  alignas(64) uint32_t words[kTile];
  make_values(r, block, blocks, words);
  for (int i = 0; i < 4 * blocks; i += 2) {
    const NormalPair<double> both = normal_pair_f64(words[i], words[i + 1]);
    out[i] = both.z0;
    out[i + 1] = both.z1;
  }
}

// Calls use(offset, values, count) for consecutive pieces of the range. A start inside a block costs its first words.
template <class Value, class Use>
FF_INLINE void for_each_tile(const NoiseRange& r, int64_t n, Use use) {
  alignas(64) Value values[kTile];
  uint64_t block = r.start / 4;
  int skip = static_cast<int>(r.start % 4);
  for (int64_t done = 0; done < n;) {
    const int64_t left = n - done;
    const int count = left < kTile - skip ? static_cast<int>(left) : kTile - skip;
    make_values(r, block, round_up((skip + count + 3) / 4), values);
    use(done, values + skip, count);
    done += count;
    block += kTileBlocks;
    skip = 0;
  }
}

void random_bits(uint32_t* out, int64_t n, const NoiseRange& range) {
  for_each_tile<uint32_t>(range, n, [=](int64_t at, const uint32_t* words, int count) {
    uint32_t* to = out + at;
#pragma omp simd
    for (int i = 0; i < count; ++i) to[i] = words[i];
  });
}

template <class S>
void normal(void* x, int64_t n, double mean_, double std_, const NoiseRange& range) {
  using C = Compute<S>;
  const C mean = static_cast<C>(mean_), std = static_cast<C>(std_);
  for_each_tile<C>(range, n, [=](int64_t at, const C* z, int count) {
    S* to = static_cast<S*>(x) + at;
#pragma omp simd
    for (int i = 0; i < count; ++i) to[i] = narrow<S>(fused(std, z[i], mean));
  });
}

// x += -lr * grad + std * z. A term that isn't there is never read; its pointer only has to be one.
template <class S, bool kGrad, bool kElements>
void perturb(void* x_, const void* grad_, const void* std_elements_, int64_t n, double lr_, double std_,
             const NoiseRange& range) {
  using C = Compute<S>;
  const C minus_lr = static_cast<C>(-lr_), std = static_cast<C>(std_);
  S* x = static_cast<S*>(x_);
  const S* grad = static_cast<const S*>(grad_);
  const S* std_elements = static_cast<const S*>(std_elements_);
  for_each_tile<C>(range, n, [=](int64_t at, const C* z, int count) {
    S* to = x + at;
    const S* g = grad + at;
    const S* s = std_elements + at;
#pragma omp simd
    for (int i = 0; i < count; ++i) {
      const C base = kGrad ? fused(minus_lr, widen(g[i]), widen(to[i])) : widen(to[i]);
      to[i] = narrow<S>(fused(kElements ? widen(s[i]) : std, z[i], base));
    }
  });
}

}  // namespace

#define FF_PERTURB(grad, elements)                                                                      \
  {perturb<float, grad, elements>, perturb<BFloat16, grad, elements>, perturb<Float16, grad, elements>, \
   perturb<double, grad, elements>}
constinit const NoiseTable noise_table = {
    random_bits,
    {normal<float>, normal<BFloat16>, normal<Float16>, normal<double>},
    {FF_PERTURB(false, false), FF_PERTURB(true, false), FF_PERTURB(false, true), FF_PERTURB(true, true)},
};
#undef FF_PERTURB

}  // namespace ff::FF_ISA
