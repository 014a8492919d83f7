// Which kernels are in force: the choice among the instruction sets, made once, when the library is loaded.
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "common/table.h"
#include "common/torch_glue.h"

namespace ff {

#define FF_ENTRY(Type, name) name##_table,
namespace baseline {
constexpr Table kTable = {2, FF_EACH_TABLE(FF_ENTRY)};
}
#if defined(__x86_64__)
namespace avx2 {
constexpr Table kTable = {3, FF_EACH_TABLE(FF_ENTRY)};
}
namespace avx512 {
constexpr Table kTable = {4, FF_EACH_TABLE(FF_ENTRY)};
}
#endif
#undef FF_ENTRY

namespace {

struct Level {
  const char* name;  // what FASTFORGET_CPU_ISA calls it
  const Table& table;
};

// Weakest first; level n is at place n - 2. A build for another architecture has the first one alone.
constinit const Level kLevels[] = {
    {"baseline", baseline::kTable},
#if defined(__x86_64__)
    {"avx2", avx2::kTable},
    {"avx512", avx512::kTable},
#endif
};

// Whether this CPU has everything that the compiler was allowed to use for a level: -march=x86-64-v3 and -v4. A CPU
// without x86-64-v2, which the baseline is compiled for, is older than any that torch runs on.
bool cpu_has([[maybe_unused]] int level) {
#if defined(__x86_64__)
  __builtin_cpu_init();
#if defined(__clang__) || __GNUC__ >= 12
  const bool v3 = __builtin_cpu_supports("x86-64-v3"), v4 = __builtin_cpu_supports("x86-64-v4");
#else  // gcc 11 knows the features' names alone
  const bool v3 = __builtin_cpu_supports("avx") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") &&
                  __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("f16c") && __builtin_cpu_supports("fma") &&
                  __builtin_cpu_supports("lzcnt") && __builtin_cpu_supports("movbe");
  const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                  __builtin_cpu_supports("avx512vl");
#endif
  if (level == 4) return v4;
  if (level == 3) return v3;
#endif
  return true;
}

// The best level that this CPU has, no higher than `cap`.
const Level& best_level(int cap) {
  const Level* best = kLevels;
  for (const Level& level : kLevels) {
    if (level.table.level <= cap && cpu_has(level.table.level)) best = &level;
  }
  return *best;
}

constexpr int kNoCap = 4;

std::string names_of_levels(const char* between) {
  std::string names;
  for (const Level& level : kLevels) {
    if (!names.empty()) names += between;
    names += level.name;
  }
  return names;
}

// FASTFORGET_CPU_ISA caps the level: asking for more than the CPU has gives what it has.
struct Cap {
  int level = kNoCap;
  std::string ignored;  // a value that names no level

  Cap() {
    const char* wanted = std::getenv("FASTFORGET_CPU_ISA");
    if (wanted == nullptr || *wanted == '\0') return;
    for (const Level& known : kLevels) {
      if (std::strcmp(wanted, known.name) == 0) {
        level = known.table.level;
        return;
      }
    }
    ignored = wanted;
    // A library can't raise while it is being loaded.
    std::fprintf(stderr, "fastforget: FASTFORGET_CPU_ISA=%s ignored; accepted: %s\n", wanted,
                 names_of_levels(", ").c_str());
  }
};

const Cap& cap() {
  static const Cap value;
  return value;
}

std::atomic<const Level*> current{&best_level(cap().level)};

int64_t cpu_isa(int64_t level) {
  if (level != 0) {
    if (level < 2 || level > 4) fail("fastforget._cpu_isa: level is ", level, "; accepted: 0 (ask), 2, 3, 4");
    const Level& best = best_level(static_cast<int>(level));
    if (best.table.level == level) current.store(&best, std::memory_order_relaxed);
  }
  return table().level;
}

std::string cpu_level(std::string which) {
  if (which == "in_force") return current.load(std::memory_order_relaxed)->name;
  if (which == "detected") return best_level(kNoCap).name;
  if (which == "ignored") return cap().ignored;
  if (which == "built") return names_of_levels(" ");
  fail("fastforget._cpu_level: got '", which, "'; accepted: in_force, detected, ignored, built");
}

}  // namespace

const Table& table() { return current.load(std::memory_order_relaxed)->table; }

}  // namespace ff

// Private. _cpu_isa: the level in force as a number, 0 asks; 2, 3 and 4 switch if the CPU can. _cpu_level: names.
STABLE_TORCH_LIBRARY_FRAGMENT(fastforget, m) {
  m.def("_cpu_isa(int level) -> int");
  m.def("_cpu_level(str which) -> str");
}

STABLE_TORCH_LIBRARY_IMPL(fastforget, CompositeExplicitAutograd, m) {
  m.impl("_cpu_isa", TORCH_BOX(&ff::cpu_isa));
  m.impl("_cpu_level", TORCH_BOX(&ff::cpu_level));
}
