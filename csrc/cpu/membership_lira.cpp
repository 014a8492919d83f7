// LiRA statistics and ratios over shadow models (lira_stats, lira_ratio, lira_loo, lira_update_). Compiled once per
// instruction set.
#include "cpu/storage.h"
#include "cpu/table.h"

namespace ff::FF_ISA {

constinit const MembershipLiraTable membership_lira_table = {};

}  // namespace ff::FF_ISA
