// The divergence of a student's softmax from a teacher's, at a temperature, with its gradient: a warp or a block to a
// row, which reads both logits three times, the second and third time from a cache.
#include <cmath>

#include "common/call.h"
#include "common/launch.cuh"
#include "common/rows.cuh"

namespace ff::cuda {
namespace {

constexpr int kBlock = 256;
constexpr int kWarpClasses = 1024;  // up to here a row belongs to a warp

// A reciprocal in two parts: a product by it is as good as a division, whose slow path is a call.
template <class C>
struct Reciprocal {
  C high, low;
};
template <class C>
FF_HD Reciprocal<C> reciprocal_of(C x) {
  const C high = C(1) / x;
  return {high, fused(-high, x, C(1)) * high};
}
template <class C>
FF_HD C times(C x, const Reciprocal<C>& r) {
  return fused(x, r.high, x * r.low);
}
// Of an infinite distance the second part would make NaN.
template <class C>
FF_HD C heated(C distance, const Reciprocal<C>& r) {
  const C product = distance * r.high;
  return product < Limits<C>::kLowest ? product : fused(distance, r.high, distance * r.low);
}

template <class T>
struct DistillArgs {
  const T* logits;         // [rows, classes]
  const T* teacher;        // [rows, classes]
  const int64_t* labels;   // [rows], the class that the teacher leaves out or -1; or null
  const uint8_t* dropped;  // [classes], not 0: left out; or null
  Compute<T>* loss;        // [rows]
  T* dlogits;              // [rows, classes]
  int64_t rows;
  int classes;
  Compute<T> divisor;  // of the gradient: T * B
  Reciprocal<Compute<T>> inverse_temperature;
};

// Sums of one distribution but for the classes of the largest logit, whose terms are 1: a confident row keeps the
// digits of 1 - p.
template <class C>
struct Part {
  C others;
  int largest;
};

template <class C>
FF_HD C total_of(const Part<C>& part) {
  return static_cast<C>(part.largest) + part.others;
}
template <class C>
FF_HD C log_total_of(const Part<C>& part) {
  return log1p_of(static_cast<C>(part.largest - 1) + part.others);
}

struct Larger {
  template <class V>
  __device__ __forceinline__ V operator()(V a, V b) const {
    return larger(a, b);
  }
};

// use(k, student's logit, teacher's logit) for the classes that this thread looks after.
template <int Size, class T, class Use>
__device__ __forceinline__ void each_class(const DistillArgs<T>& a, int64_t at, int64_t label, Use&& use) {
  using C = Compute<T>;
  const T* const z = a.logits + at * a.classes;
  const T* const t = a.teacher + at * a.classes;
#pragma unroll(sizeof(T) == 8 ? 1 : 2)
  for (int k = threadIdx.x % Size; k < a.classes; k += Size) {
    const bool out = k == label || (a.dropped != nullptr && a.dropped[k] != 0);
    use(k, static_cast<C>(widen(z[k])), out ? -Limits<C>::kInf : static_cast<C>(widen(t[k])));
  }
}

template <class T, int Size>
__global__ void __launch_bounds__(kBlock) distill_kernel(const __grid_constant__ DistillArgs<T> a) {
  using C = Compute<T>;
  constexpr int kGroups = kBlock / Size;
  using G = Group<Size>;
  for (int64_t at = static_cast<int64_t>(blockIdx.x) * kGroups + threadIdx.x / Size; at < a.rows;
       at += static_cast<int64_t>(gridDim.x) * kGroups) {
    const int64_t label = a.labels == nullptr ? -1 : a.labels[at];
    // the comparisons may pass over a NaN; the sums won't
    C top_z = -Limits<C>::kInf, top_t = -Limits<C>::kInf;
    each_class<Size>(a, at, label, [&](int, C z, C t) {
      top_z = larger(z, top_z);
      top_t = larger(t, top_t);
    });
    top_z = G::reduce(top_z, Larger{});
    top_t = G::reduce(top_t, Larger{});
    Part<C> student = {C(0), 0}, teacher = {C(0), 0};
    C weighted = C(0);
    each_class<Size>(a, at, label, [&](int, C z, C t) {
      const C x = heated(z - top_z, a.inverse_temperature), y = heated(t - top_t, a.inverse_temperature);
      const C p = exp_of(x), q = exp_of(y);
      if (z == top_z) {
        ++student.largest;
      } else {
        student.others += p;
      }
      if (t == top_t) {
        ++teacher.largest;
      } else {
        teacher.others += q;
      }
      // a class that the teacher rules out adds nothing, whatever the student makes of it
      if (q != C(0)) weighted += q * (y - x);
    });
    student = {G::reduce(student.others, Sum{}), G::reduce(student.largest, Sum{})};
    teacher = {G::reduce(teacher.others, Sum{}), G::reduce(teacher.largest, Sum{})};
    weighted = G::reduce(weighted, Sum{});
    const bool defined = label >= -1 && label < a.classes && top_z - top_z == C(0) && top_t - top_t == C(0);
    const C total_t = total_of(teacher);
    const C divisor = defined ? a.divisor : Limits<C>::kNan;
    const Reciprocal<C> of_z = reciprocal_of(total_of(student) * divisor), of_t = reciprocal_of(total_t * divisor);
    if (threadIdx.x % Size == 0) {
      a.loss[at] = defined ? weighted / total_t + (log_total_of(student) - log_total_of(teacher)) : Limits<C>::kNan;
    }
    T* const to = a.dlogits + at * a.classes;
    each_class<Size>(a, at, label, [&](int k, C z, C t) {
      const C p = exp_of(heated(z - top_z, a.inverse_temperature));
      const C q = exp_of(heated(t - top_t, a.inverse_temperature));
      to[k] = narrow<T>(times(p, of_z) - times(q, of_t));
    });
  }
}

void distill_loss(Tensor logits, Tensor teacher, Tensor drop, double temperature, Tensor loss, Tensor dlogits) {
  constexpr const char* kOp = "distill_loss";
  const ScalarType dtype = logits.scalar_type();
  float_dtype(logits, kOp, "logits");
  FF_CHECK(logits.dim() == 2, "distill_loss: logits has ", logits.dim(), " dimensions; expected [batch, classes]");
  const int64_t rows = logits.size(0), classes = logits.size(1);
  const Like like(logits, dtype);
  check_layout(logits, dtype, rows * classes, kOp, "logits");
  check_like(teacher, like, kOp, "teacher");
  check_like(dlogits, like, kOp, "dlogits");
  const bool by_row = dtype_code(drop) == dtype_code(ScalarType::Long);
  const int64_t left_out = by_row ? rows : drop.numel() == 0 ? 0 : classes;
  check_layout(drop, by_row ? ScalarType::Long : ScalarType::Bool, left_out, kOp, "drop");
  if (drop.dim() != 1) fail("fastforget.", kOp, ": drop has ", drop.dim(), " dimensions; expected [B], [K] or [0]");
  check_layout(loss, dtype == ScalarType::Double ? dtype : ScalarType::Float, rows, kOp, "loss");
  if (!(temperature > 0 && std::isfinite(temperature))) {
    fail("fastforget.", kOp, ": temperature is ", temperature, "; accepted: a finite number above 0");
  }
  check_call(kOp, false,
             {given(logits, "logits"), given(teacher, "teacher"), given(drop, "drop"), changed(loss, "loss"),
              changed(dlogits, "dlogits")});
  if (rows == 0) return;
  FF_CHECK(classes >= 1 && classes <= INT32_MAX - kBlock, "distill_loss: logits has ", classes,
           " classes; accepted: 1 to ", INT32_MAX - kBlock);
  const DeviceScope scope(logits);
  with_storage(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    DistillArgs<T> a = {};
    a.logits = data<const T>(logits);
    a.teacher = data<const T>(teacher);
    a.labels = by_row ? data<const int64_t>(drop) : nullptr;
    a.dropped = by_row || left_out == 0 ? nullptr : data<const uint8_t>(drop);
    a.loss = data<Compute<T>>(loss);
    a.dlogits = data<T>(dlogits);
    a.rows = rows;
    a.classes = static_cast<int>(classes);
    using C = Compute<T>;
    a.divisor = static_cast<C>(temperature * static_cast<double>(rows));
    a.inverse_temperature.high = static_cast<C>(1.0 / temperature);
    const double rest = std::fma(-static_cast<double>(a.inverse_temperature.high), temperature, 1.0);
    a.inverse_temperature.low = static_cast<C>(rest / temperature);
    if (classes <= kWarpClasses) {
      launch(scope, distill_kernel<T, kWarp>, scope.blocks(ceil_div(rows, kBlock / kWarp)), kBlock, a);
    } else {
      launch(scope, distill_kernel<T, kBlock>, scope.blocks(rows), kBlock, a);
    }
  });
}

}  // namespace
}  // namespace ff::cuda

FF_REGISTER(m) { m.impl("distill_loss", TORCH_BOX(&ff::cuda::distill_loss)); }
