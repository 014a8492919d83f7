// The weighted mean by which Adam's first moment moves, in the form of torch.lerp: from the nearer end. From the old
// value alone a weight of 1 (beta1 = 0) would lose a gradient that is small beside it.
#pragma once

namespace ff {

// start + weight * (end - start), for weights below one half; else end - (1 - weight) * (end - start). Either is
// factor * (end - start) + the end that it begins at.
template <class C>
struct Lerp {
  C factor = 0;
  bool from_end = false;

  Lerp() = default;
  explicit Lerp(double weight) : factor(static_cast<C>(weight)), from_end(!(factor < C(0.5))) {
    if (from_end) factor -= C(1);
  }
};

}  // namespace ff
