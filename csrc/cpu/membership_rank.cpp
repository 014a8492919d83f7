// Counting attacks (rmia_counts, rmia_vote) and the bootstrap of ROC statistics (roc_bootstrap). Compiled once per
// instruction set.
#include "cpu/storage.h"
#include "cpu/table.h"

namespace ff::FF_ISA {

constinit const MembershipRankTable membership_rank_table = {};

}  // namespace ff::FF_ISA
