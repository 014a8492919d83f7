"""Membership inference: scores, attacks on them, and what an attack's scores say.

Conventions are named in each function: the field's tools disagree under the same names. Two files begin with an underscore because the
function that they hold has their name.
"""

from ._lira import lira, lira_probability
from ._lira_stream import Lira
from ._rmia import rmia, rmia_counts, rmia_vote
from .quality import ForgetQuality, class_thresholds, forget_quality, forgetting_rate
from .roc import CONVENTIONS, RocBootstrap, RocStats, clopper_pearson, roc_bootstrap, roc_stats, tpr_by_convention
from .scores import MembershipScores, membership_scores

__all__ = [
    "CONVENTIONS",
    "ForgetQuality",
    "Lira",
    "MembershipScores",
    "RocBootstrap",
    "RocStats",
    "class_thresholds",
    "clopper_pearson",
    "forget_quality",
    "forgetting_rate",
    "lira",
    "lira_probability",
    "membership_scores",
    "rmia",
    "rmia_counts",
    "rmia_vote",
    "roc_bootstrap",
    "roc_stats",
    "tpr_by_convention",
]
