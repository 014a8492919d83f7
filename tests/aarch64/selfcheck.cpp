// The baseline kernels, called as the op library calls them, for a processor that this machine may only emulate. Prints
// one line a kernel: its name and what it gave, bit by bit. tests/test_aarch64.py makes the same inputs and knows what
// is right.
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <vector>

#include "common/table.h"

namespace {

constexpr int64_t kN = 77;  // no multiple of any vector
enum { kFloat, kBFloat16, kHalf, kDouble };

// The i-th number of series `s`, in [-2, 2).
double number(uint32_t i, uint32_t s) { return ((i + 1) * 2654435761u + s * 2246822519u) / 4294967296.0 * 4.0 - 2.0; }

template <class T>
std::vector<T> numbers(uint32_t s, int64_t n = kN) {
  std::vector<T> x(n);
  for (int64_t i = 0; i < n; ++i) x[i] = static_cast<T>(number(static_cast<uint32_t>(i), s));
  return x;
}

std::vector<float> positives(uint32_t s) {
  std::vector<float> x = numbers<float>(s);
  for (float& v : x) v = v < 0 ? -v : v;
  return x;
}

template <class T>
void tell(const char* name, const T* x, int64_t n) {
  std::printf("%s", name);
  for (int64_t i = 0; i < n; ++i) {
    uint64_t bits = 0;
    std::memcpy(&bits, &x[i], sizeof(T));
    std::printf(" %" PRIx64, bits);
  }
  std::printf("\n");
}

template <class T>
void tell(const char* name, const std::vector<T>& x) {
  tell(name, x.data(), static_cast<int64_t>(x.size()));
}

}  // namespace

int main() {
  using namespace ff::baseline;
  const ff::NoiseRange range{7, 1, 2, 3}, zero{0, 0, 0, 0};

  std::vector<uint32_t> words(4), more(kN);
  noise_table.random_bits(words.data(), 4, zero);
  tell("philox", words);
  noise_table.random_bits(more.data(), kN, range);
  tell("random_bits", more);
  std::vector<float> z(kN);
  noise_table.normal[kFloat](z.data(), kN, 0.5, 2.0, range);
  tell("normal_float", z);
  std::vector<double> zd(kN);
  noise_table.normal[kDouble](zd.data(), kN, 0.5, 2.0, range);
  tell("normal_double", zd);
  std::vector<uint16_t> zb(kN), zh(kN);
  noise_table.normal[kBFloat16](zb.data(), kN, 0.5, 2.0, range);
  tell("normal_bfloat16", zb);
  noise_table.normal[kHalf](zh.data(), kN, 0.5, 2.0, range);
  tell("normal_half", zh);

  std::vector<float> x = numbers<float>(1), grad = numbers<float>(2);
  noise_table.perturb[ff::NoiseTable::kGrad][kFloat](x.data(), grad.data(), nullptr, kN, 0.25, 0.5, range);
  tell("perturb", x);

  std::vector<float> p = numbers<float>(3), forget = positives(4), retain = positives(5);
  const int64_t selected = mask_elementwise_table.dampen[kFloat](p.data(), forget.data(), retain.data(), kN, 2.0, 1.0);
  tell("dampen", p);
  tell("dampen_count", &selected, 1);
  std::vector<float> soft = numbers<float>(6);
  double l1 = 0;
  const int64_t nonzero = mask_elementwise_table.soft_threshold[kFloat](soft.data(), kN, 0.75, &l1);
  tell("soft_threshold", soft);
  tell("soft_threshold_count", &nonzero, 1);
  tell("soft_threshold_l1", &l1, 1);

  constexpr int64_t kRows = 11, kClasses = 7;
  std::vector<float> logits = numbers<float>(8, kRows * kClasses), loss(kRows), dlogits(kRows * kClasses);
  std::vector<int64_t> labels(kRows);
  for (int64_t i = 0; i < kRows; ++i) labels[i] = (3 * i) % kClasses;
  update_loss_table.error_max_loss[kFloat](logits.data(), labels.data(), kRows, kClasses, kRows, loss.data(),
                                           dlogits.data());
  tell("error_max_loss", loss);
  tell("error_max_dlogits", dlogits);

  std::vector<float> scores(ff::kScores * kRows);
  bool correct[kRows];
  ff::ScoreJob job{logits.data(), labels.data(), kRows, kClasses, 1.0, {}, correct};
  for (int i = 0; i < ff::kScores; ++i) job.scores[i] = scores.data() + i * kRows;
  const int64_t bytes = membership_scores_table.scratch_bytes(kClasses);
  std::vector<char> scratch(bytes + 64);
  char* aligned = scratch.data() + (64 - reinterpret_cast<uintptr_t>(scratch.data()) % 64) % 64;
  membership_scores_table.scores[kFloat](job, 0, kRows, aligned);
  tell("membership_scores", scores);
  tell("membership_correct", correct, kRows);

  double products[3];
  update_gradients_table.products[kFloat](numbers<float>(9).data(), numbers<float>(10).data(), kN, products);
  tell("gradient_products", products, 3);
  return 0;
}
