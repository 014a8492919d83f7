// The CPU kernels as function pointers, one set per instruction set, and the choice among them.
//
// Each family's kernel files, csrc/cpu/<family>/<name>.cpp, are compiled once per instruction set with -DFF_ISA=<name>
// and put everything into namespace ff::<name>; each defines the constant <..>_table whose type the header beside it
// declares. Kernels work on a range of raw pointers and know neither threads nor torch: <name>_ops.cpp beside them
// checks the arguments and cuts the work. levels_ops.cpp makes the choice.
//
// This header stays free of inline functions of the standard library: a copy compiled for AVX-512 could be the one the
// linker keeps for every level.
#pragma once
#include "cpu/limit/limit.h"
#include "cpu/mask/elementwise.h"
#include "cpu/mask/optim.h"
#include "cpu/mask/ratio.h"
#include "cpu/mask/rows.h"
#include "cpu/mask/select.h"
#include "cpu/membership/lira.h"
#include "cpu/membership/rmia.h"
#include "cpu/membership/roc.h"
#include "cpu/membership/scores.h"
#include "cpu/noise/noise.h"
#include "cpu/update/update.h"

// Calls use(Type, name) for every family: ff::<Type>Table, ff::<isa>::<name>_table, ff::table().<name>.
// clang-format off: one family a line
#define FF_EACH_TABLE(use) \
  use(Noise, noise) \
  use(Update, update) \
  use(UpdateLoss, update_loss) \
  use(UpdateDistill, update_distill) \
  use(UpdateGradients, update_gradients) \
  use(MaskElementwise, mask_elementwise) \
  use(MaskRows, mask_rows) \
  use(MaskSelect, mask_select) \
  use(MaskRatio, mask_ratio) \
  use(MaskOptim, mask_optim) \
  use(MembershipScores, membership_scores) \
  use(MembershipRoc, membership_roc) \
  use(MembershipRmia, membership_rmia) \
  use(MembershipLira, membership_lira) \
  use(Limit, limit)
// clang-format on

namespace ff {

struct Table {
  int level;  // 2 = baseline, 3 = avx2, 4 = avx512
#define FF_MEMBER(Type, name) const Type##Table& name;
  FF_EACH_TABLE(FF_MEMBER)
#undef FF_MEMBER
};

#define FF_DECLARE(Type, name) extern const Type##Table name##_table;
namespace baseline {
FF_EACH_TABLE(FF_DECLARE)
}
#if defined(__x86_64__)
namespace avx2 {
FF_EACH_TABLE(FF_DECLARE)
}
namespace avx512 {
FF_EACH_TABLE(FF_DECLARE)
}
#endif
#undef FF_DECLARE

// The kernels in force: the best this CPU has, unless FASTFORGET_CPU_ISA or _cpu_isa() asked for less.
const Table& table();

}  // namespace ff
