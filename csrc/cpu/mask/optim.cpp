// Optimiser steps on unmasked coordinates (masked_sgd_, masked_adam_). Compiled once per instruction set.
//
// Rows that are off are skipped unread. Masks of single coordinates are widened to lanes of the compute type's size in
// a block that stays in L1, and the new values are selected by them: plain loops, bound by memory, for every form of
// mask.
#include "common/floats.h"
#include "common/normal.h"
#include "common/storage.h"
#include "common/table.h"
#include "cpu/mask/optim_walk.h"

namespace ff::FF_ISA {
namespace {

// Selection by bits, because a compiler may turn conditions shared by several stores into a branch, and then the loop
// isn't a vector loop any more.
FF_INLINE float pick(int32_t on, float yes, float no) {
  const uint32_t lane = static_cast<uint32_t>(on);
  return bits_float((float_bits(yes) & lane) | (float_bits(no) & ~lane));
}
FF_INLINE double pick(int64_t on, double yes, double no) {
  int64_t a, b;
  __builtin_memcpy(&a, &yes, sizeof a);
  __builtin_memcpy(&b, &no, sizeof b);
  const int64_t bits = (a & on) | (b & ~on);
  double picked;
  __builtin_memcpy(&picked, &bits, sizeof picked);
  return picked;
}

// a * b + c rounded once, as torch's own kernels do. Where there is no fused multiply-add, in a wider type.
#if defined(__FMA__) || !defined(__x86_64__)
FF_INLINE float once(float a, float b, float c) { return fused(a, b, c); }
FF_INLINE double once(double a, double b, double c) { return fused(a, b, c); }
#else
FF_INLINE float once(float a, float b, float c) {
  return static_cast<float>(static_cast<double>(a) * static_cast<double>(b) + static_cast<double>(c));
}
FF_INLINE double once(double a, double b, double c) { return static_cast<double>(static_cast<long double>(a) * b + c); }
#endif

FF_INLINE float root(float x) { return __builtin_sqrtf(x); }
FF_INLINE double root(double x) { return __builtin_sqrt(x); }

// A staged block back to where it came from; what is off keeps its bits.
template <bool kMasked, class S, class C>
FF_INLINE void store_selected(const C* from, S* to, const Lane<C>* on, int64_t n) {
  if constexpr (kMasked) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
      const uint16_t lane = static_cast<uint16_t>(on[i]);
      to[i].bits = static_cast<uint16_t>((narrow<S>(from[i]).bits & lane) | (to[i].bits & ~lane));
    }
  } else {
    store_block(from, to, n);
  }
}

// ---- masked_sgd_ ----------------------------------------------------------------------------------------------------

template <class C>
struct SgdConstants {
  C minus_lr, momentum, rest, weight_decay, sign;
  Lane<C> decays, nesterov, first;  // lanes, not conditions: a compiler would make a loop of each combination

  FF_INLINE SgdConstants from(const SgdStep& s) {
    return {static_cast<C>(-s.lr),
            static_cast<C>(s.momentum),
            static_cast<C>(1.0 - s.dampening),
            static_cast<C>(s.weight_decay),
            C(s.maximize ? -1 : 1),
            s.weight_decay != 0.0 ? -1 : 0,
            s.nesterov ? -1 : 0,
            s.first ? -1 : 0};
  }
};

// The gradient is multiplied by factors[i] (where there are any) and by `factor`, which holds the sign too.
template <bool kBuffer, bool kMasked, bool kFactors, class C>
FF_INLINE void sgd_values(C* p, const C* grad, C* buffer, const Lane<C>* on, const C* factors, C factor, int64_t n,
                          const SgdConstants<C>& c) {
  const Lane<C> decays = c.decays, nesterov = c.nesterov, first = c.first;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const C x = p[i];
    C g = (kFactors ? grad[i] * factors[i] : grad[i]) * factor;
    g = pick(decays, once(c.weight_decay, x, g), g);
    if constexpr (kBuffer) {
      const C old = buffer[i];
      const C moved = pick(first, g, once(c.momentum, old, c.rest * g));
      buffer[i] = kMasked ? pick(on[i], moved, old) : moved;
      g = pick(nesterov, once(c.momentum, moved, g), moved);
    }
    const C stepped = once(c.minus_lr, g, x);
    p[i] = kMasked ? pick(on[i], stepped, x) : stepped;
  }
}

// sgd_values of a step that has nothing but a learning rate, to the same bits: `rate` is minus_lr times a factor of 1
// or -1. The loop above has three times the instructions, and so fewer loads under way at a time: a tenth of the time.
template <class C>
FF_INLINE void plain_sgd_values(C* p, const C* grad, int64_t n, C rate) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) p[i] = once(rate, grad[i], p[i]);
}

#if defined(FF_HAS_FLOATS)
// sgd_values on vectors, to the same bits, with the mask read where it is used. Serves whole vectors; returns how many
// elements they hold.
template <bool kBuffer, class VectorMask>
FF_INLINE int64_t sgd_vectors(float* p, const float* grad, float* buffer, const VectorMask& on, int64_t n,
                              const SgdConstants<float>& c) {
  using F = Floats;
  const F::V minus_lr = F::all(c.minus_lr), momentum = F::all(c.momentum), rest = F::all(c.rest);
  const F::V weight_decay = F::all(c.weight_decay), sign = F::all(c.sign);
  const F::Mask decays = F::all(c.decays != 0), nesterov = F::all(c.nesterov != 0), first = F::all(c.first != 0);
  const int64_t whole = n / F::kWidth * F::kWidth;
  if (!on.any(whole)) return whole;
  for (int64_t i = 0; i < whole; i += F::kWidth) {
    const F::Mask here = on.at(i);
    const F::V x = F::load(p + i);
    F::V g = F::load(grad + i) * sign;
    g = F::choose(decays, F::multiply_add(weight_decay, x, g), g);
    if constexpr (kBuffer) {
      const F::V old = F::load(buffer + i);
      const F::V moved = F::choose(first, g, F::multiply_add(momentum, old, rest * g));
      F::store(buffer + i, F::choose(here, moved, old));
      g = F::choose(nesterov, F::multiply_add(momentum, moved, g), moved);
    }
    F::store(p + i, F::choose(here, F::multiply_add(minus_lr, g, x), x));
  }
  return whole;
}
#endif

template <class S, bool kBuffer>
struct SgdRange {
  using C = Compute<S>;
  S* p;
  const S* grad;
  S* buffer;
  SgdConstants<C> c;

  template <bool kMasked, bool kFactors>
  FF_INLINE void part(const SgdRange& r, int64_t at, int64_t n, const Lane<C>* on, const C* factors, C factor) {
    if constexpr (kStaged<S>) {
      alignas(64) C x[kTile], g[kTile], b[kTile];
      load_block(r.p + at, x, n);
      load_block(r.grad + at, g, n);
      if constexpr (kBuffer) load_block(r.buffer + at, b, n);
      sgd_values<kBuffer, kMasked, kFactors>(x, g, b, on, factors, factor, n, r.c);
      if constexpr (kBuffer) store_selected<kMasked>(b, r.buffer + at, on, n);
      store_selected<kMasked>(x, r.p + at, on, n);
    } else {
      sgd_values<kBuffer, kMasked, kFactors>(r.p + at, r.grad + at, kBuffer ? r.buffer + at : nullptr, on, factors,
                                             factor, n, r.c);
    }
  }

  __attribute__((always_inline)) void fetch(int64_t from, int64_t to) const {
    fetch_piece(p, from, to);
    fetch_piece(grad, from, to);
    if constexpr (kBuffer) fetch_piece(buffer, from, to);
  }

  __attribute__((always_inline)) void whole(int64_t from, int64_t to, C factor) const {
    if constexpr (!kStaged<S> && !kBuffer) {
      if (c.decays == 0 && absolute(factor) == C(1)) {
        plain_sgd_values(p + from, grad + from, to - from, c.minus_lr * c.sign * factor);
        return;
      }
    }
    const int64_t most = kStaged<S> ? kTile : to - from;
    for (int64_t at = from; at < to; at += most) {
      part<false, false>(*this, at, to - at < most ? to - at : most, nullptr, nullptr, c.sign * factor);
    }
  }

  __attribute__((always_inline)) void tile(int64_t at, int64_t n, const Lane<C>* on, const C* factors) const {
    if (factors != nullptr) {
      part<true, true>(*this, at, n, on, factors, c.sign);
    } else {
      part<true, false>(*this, at, n, on, nullptr, c.sign);
    }
  }

  __attribute__((always_inline)) int64_t vectors([[maybe_unused]] const OptimMask& mask, [[maybe_unused]] int64_t at,
                                                 [[maybe_unused]] int64_t n) const {
#if defined(FF_HAS_FLOATS)
    if constexpr (__is_same(S, float)) {
      const uint8_t* data = static_cast<const uint8_t*>(mask.data);
      float* const b = kBuffer ? buffer + at : nullptr;
      if (mask.form == MaskForm::kBytes) return sgd_vectors<kBuffer>(p + at, grad + at, b, ByteMask{data + at}, n, c);
      if (mask.form == MaskForm::kBits && at % 8 == 0)
        return sgd_vectors<kBuffer>(p + at, grad + at, b, BitMask{data + at / 8}, n, c);
    }
#endif
    return 0;
  }
};

template <class S>
void sgd(const SgdItem& item, int64_t begin, int64_t end, const SgdStep& step) {
  using C = Compute<S>;
  S* p = static_cast<S*>(item.p);
  const S* grad = static_cast<const S*>(item.grad);
  const SgdConstants<C> constants = SgdConstants<C>::from(step);
  if (item.buffer == nullptr) {
    walk<C>(item.mask, begin, end, SgdRange<S, false>{p, grad, nullptr, constants});
  } else {
    walk<C>(item.mask, begin, end, SgdRange<S, true>{p, grad, static_cast<S*>(item.buffer), constants});
  }
}

// ---- masked_adam_ ---------------------------------------------------------------------------------------------------

template <class C>
struct MaskedAdamConstants {
  C sign, l2, shrink, one_minus_beta1, beta2, one_minus_beta2, inverse_bias2, eps, step_size;
  Lane<C> decays;

  FF_INLINE MaskedAdamConstants from(const MaskedAdamStep& s) {
    return {C(s.maximize ? -1 : 1),
            static_cast<C>(s.l2),
            static_cast<C>(s.shrink),
            static_cast<C>(1.0 - s.beta1),
            static_cast<C>(s.beta2),
            static_cast<C>(1.0 - s.beta2),
            static_cast<C>(1.0 / s.sqrt_bias2),
            static_cast<C>(s.eps),
            static_cast<C>(s.step_size),
            s.l2 != 0.0 ? -1 : 0};
  }
};

template <bool kMasked, class C>
FF_INLINE void adam_values(C* p, const C* grad, C* exp_avg, C* exp_avg_sq, const Lane<C>* on, int64_t n,
                           const MaskedAdamConstants<C>& c) {
  const Lane<C> decays = c.decays;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const C x = p[i], old_m = exp_avg[i], old_v = exp_avg_sq[i];
    C g = grad[i] * c.sign;
    g = pick(decays, once(c.l2, x, g), g);
    const C m = once(c.one_minus_beta1, g - old_m, old_m);
    const C v = once(c.beta2, old_v, c.one_minus_beta2 * g * g);
    const C moved = once(c.shrink, x, -(c.step_size * m / once(root(v), c.inverse_bias2, c.eps)));
    p[i] = kMasked ? pick(on[i], moved, x) : moved;
    exp_avg[i] = kMasked ? pick(on[i], m, old_m) : m;
    exp_avg_sq[i] = kMasked ? pick(on[i], v, old_v) : v;
  }
}

template <class S>
struct AdamRange {
  using C = Compute<S>;
  S* p;
  const S* grad;
  S* exp_avg;
  S* exp_avg_sq;
  MaskedAdamConstants<C> c;

  template <bool kMasked>
  FF_INLINE void part(const AdamRange& r, int64_t at, int64_t n, const Lane<C>* on) {
    if constexpr (kStaged<S>) {
      alignas(64) C x[kTile], g[kTile], m[kTile], v[kTile];
      load_block(r.p + at, x, n);
      load_block(r.grad + at, g, n);
      load_block(r.exp_avg + at, m, n);
      load_block(r.exp_avg_sq + at, v, n);
      adam_values<kMasked>(x, g, m, v, on, n, r.c);
      store_selected<kMasked>(x, r.p + at, on, n);
      store_selected<kMasked>(m, r.exp_avg + at, on, n);
      store_selected<kMasked>(v, r.exp_avg_sq + at, on, n);
    } else {
      adam_values<kMasked>(r.p + at, r.grad + at, r.exp_avg + at, r.exp_avg_sq + at, on, n, r.c);
    }
  }

  __attribute__((always_inline)) void fetch(int64_t from, int64_t to) const {
    fetch_piece(p, from, to);
    fetch_piece(grad, from, to);
    fetch_piece(exp_avg, from, to);
    fetch_piece(exp_avg_sq, from, to);
  }

  __attribute__((always_inline)) void whole(int64_t from, int64_t to, C) const {
    const int64_t most = kStaged<S> ? kTile : to - from;
    for (int64_t at = from; at < to; at += most) part<false>(*this, at, to - at < most ? to - at : most, nullptr);
  }

  __attribute__((always_inline)) void tile(int64_t at, int64_t n, const Lane<C>* on, const C*) const {
    part<true>(*this, at, n, on);
  }

  __attribute__((always_inline)) int64_t vectors(const OptimMask&, int64_t, int64_t) const { return 0; }
};

template <class S>
void adam(const MaskedAdamItem& item, int64_t begin, int64_t end, const MaskedAdamStep& step) {
  using C = Compute<S>;
  walk<C>(item.mask, begin, end,
          AdamRange<S>{static_cast<S*>(item.p), static_cast<const S*>(item.grad), static_cast<S*>(item.exp_avg),
                       static_cast<S*>(item.exp_avg_sq), MaskedAdamConstants<C>::from(step)});
}

}  // namespace

constinit const MaskOptimTable mask_optim_table = {
    {sgd<float>, sgd<BFloat16>, sgd<Float16>, sgd<double>},
    {adam<float>, adam<BFloat16>, adam<Float16>, adam<double>},
};

}  // namespace ff::FF_ISA
