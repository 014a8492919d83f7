// Counting attacks (rmia_counts, rmia_vote) and the bootstrap of ROC statistics (roc_bootstrap): kernel table.
// Torch-free; membership_rank_ops.cpp checks the arguments and cuts the work.
#pragma once
#include <cstdint>

#include "cpu/dtypes.h"

namespace ff {

struct MembershipRankTable {};

}  // namespace ff
