"""How a figure is written, and what an attack is called: the same in texts and on pages."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from ..._text import number, percent
from ..names import DIRECTION

Show = Callable[[float | None], str]
STRONGEST = ("lira", "rmia")
ATTACK_NAMES = {
    "lira": "LiRA",
    "lira_offline": "LiRA offline",
    "u_lira": "U-LiRA",
    "rmia": "RMIA",
    "rmia_offline": "RMIA offline",
    "attack_p": "attack P",
    "attack_r": "attack R",
    "min_k": "Min-K%",
    "min_k_plus": "Min-K%++",
    "perplexity_ratio": "ratio of perplexities",
}
# The false-positive rates by their names in a row.
FPR_TEXTS = {"1pct": "1 %", "0.1pct": "0.1 %"}


def plain(value: float | None) -> str:
    """A figure of any size: three decimals, or two digits where those would show nothing; whole numbers from 10 on as such.

    >>> [plain(v) for v in (None, 0.5, 4.1e-5, 12.0, float("inf"))]
    ['-', '0.500', '4.1e-5', '12', '∞']
    """
    if value is None or not math.isfinite(value):
        return "-" if value is None or math.isnan(value) else "∞" if value > 0 else "-∞"
    if abs(value) >= 10 and value == round(value):
        return f"{value:.0f}"
    return f"{value:.2g}".replace("e-0", "e-") if 0 < abs(value) < 1e-3 else number(value)


def ends(interval: Sequence[float] | None, show: Show) -> tuple[str, str] | None:
    """The texts of an interval's ends, without a unit; None of nothing, or of ends that are not finite. A narrow one has three decimals,
    as its figure has.

    >>> ends([0.4721, 0.5204], number), ends([0.9, 1.0], percent), ends([0.9981, 0.9999], number), ends(None, number)
    (('0.47', '0.52'), ('90.0', '100.0'), ('0.998', '1.000'), None)
    """
    if not interval or not all(math.isfinite(end) for end in interval):
        return None
    low, high = interval
    if show is percent:
        return f"{100 * low:.1f}", f"{100 * high:.1f}"
    largest = max(abs(low), abs(high))
    form = ".3g" if largest >= 10 else ".2g" if 0 < largest < 1e-3 else ".2f" if high - low >= 0.02 else ".3f"
    return format(low, form).replace("e-0", "e-"), format(high, form).replace("e-0", "e-")


def attack_name(attack: str) -> str:
    """How a text names an attack: "LiRA", "loss attack"."""
    return ATTACK_NAMES.get(attack, f"{attack.replace('_', ' ')} attack")


def beyond_thresholds(attacks: list[str]) -> list[str]:
    """The attacks that are more than a threshold on one model's output, the strongest first."""
    others = [attack for attack in attacks if attack not in DIRECTION]
    return sorted(others, key=lambda attack: (attack not in STRONGEST, others.index(attack)))
