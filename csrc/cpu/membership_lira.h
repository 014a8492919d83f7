// LiRA statistics and ratios over shadow models (lira_stats, lira_ratio, lira_loo, lira_update_): kernel table.
// Torch-free; membership_lira_ops.cpp checks the arguments and cuts the work.
#pragma once
#include <cstdint>

#include "cpu/dtypes.h"

namespace ff {

struct MembershipLiraTable {};

}  // namespace ff
