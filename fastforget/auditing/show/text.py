"""An audit's figures as labelled lines, each figure's text apart from its interval: what the text and the page both show."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from ..names import DIRECTION, FPR_NAMES, RATIOS

Row = dict[str, Any]
Show = Callable[[float | None], str]
STRONGEST = ("lira", "rmia")
NAMES = {"lira": "LiRA", "lira_offline": "LiRA offline", "u_lira": "U-LiRA", "rmia": "RMIA", "rmia_offline": "RMIA offline"}
NAMES |= {"attack_p": "attack P", "attack_r": "attack R"}
FPRS = tuple(zip(FPR_NAMES, ("1 %", "0.1 %"), strict=True))


class Cell(NamedTuple):
    """One model's figure, and the two ends of its interval where there is one."""

    text: str
    ends: tuple[str, str] | None = None

    def __str__(self) -> str:
        return f"{self.text} [{', '.join(self.ends)}]" if self.ends else self.text


class Line(NamedTuple):
    """One figure of every model."""

    group: str
    label: str
    cells: list[Cell]


def percent(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{100 * value:.1f} %"


def number(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "-"
    return f"{value:.3f}" if abs(value) < 1000 else f"{value:.3g}"


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


def ends(interval: Any, show: Show) -> tuple[str, str] | None:
    """The texts of an interval's ends, without a unit; None of nothing, or of ends that are not finite. A narrow one has three decimals,
    as its figure has.

    >>> ends([0.4721, 0.5204], number), ends([0.9, 1.0], percent), ends([0.9981, 0.9999], number), ends(None, number)
    (('0.47', '0.52'), ('90.0', '100.0'), ('0.998', '1.000'), None)
    """
    if not interval or not all(isinstance(end, (int, float)) and math.isfinite(end) for end in interval):
        return None
    low, high = interval
    if show is percent:
        return f"{100 * low:.1f}", f"{100 * high:.1f}"
    most = max(abs(low), abs(high))
    form = ".3g" if most >= 10 else ".2g" if 0 < most < 1e-3 else ".2f" if high - low >= 0.02 else ".3f"
    return format(low, form).replace("e-0", "e-"), format(high, form).replace("e-0", "e-")


# Of the probes that the rows hold, those that are shown: name, label, how.
PROBES: tuple[tuple[str, str, Show], ...] = (
    ("class_logit_auc", "forgotten class told by its logit, AUC", number),
    ("mia_efficacy", "called NON-member by its own threshold", percent),
    ("js_to_retrained", "JS divergence to the retrained, nats", plain),
    ("js_of_means_to_retrained", "JS divergence of the mean answers, nats", plain),
    ("activation_distance", "activation distance to the retrained, L2", plain),
    ("zrf", "ZRF, JS in nats", number),
    ("zrf_badt", "ZRF, as its published code has it", number),
    ("ain", "anamnesis index", number),
)
RELEARN = "relearn_time_"


def attack_name(attack: str) -> str:
    """How a text names an attack: "LiRA", "loss attack"."""
    return NAMES.get(attack, f"{attack.replace('_', ' ')} attack")


def further(attacks: list[str]) -> list[str]:
    """Those beyond thresholds on one model's outputs, the strongest first."""
    found = [a for a in attacks if a not in DIRECTION]
    return sorted(found, key=lambda a: (a not in STRONGEST, found.index(a)))


def lines(rows: list[Row], attacks: list[str]) -> list[Line]:
    """Accuracies, attacks (the strongest first), memory, probes, weights; one cell a row.

    Which lines there are follows from all ``rows``; what no model has a value of is left out, but for the attacks.
    """
    strong = further(attacks)
    found = _accuracies(rows)
    for attack in (*strong, *(a for a in attacks if a not in strong)):
        found += _attack(rows, attack)
    of = ("attacks", "retain_vs_test", "loss")
    found.append(_line(rows, "loss attack, retain against unseen", "AUC", number, *of, "auc", interval=(*of, "auc_interval")))
    for attack in rows[0].get("class_thresholds", {}).get("forget_vs_test", {}):
        of, key = ("class_thresholds", "forget_vs_test", attack), "balanced_accuracy"
        label = f"balanced accuracy, {attack.replace('_', ' ')}"
        group = "one threshold a class, forget against unseen"
        found.append(_line(rows, group, label, number, *of, key, interval=(*of, f"{key}_interval")))
    found += [*_memory(rows), *_probes(rows)]
    for other in ("original", "retrained"):
        if any(other == row["model"] for row in rows):
            found.append(_line(rows, "weights, relative distance", f"to the {other}", number, "weight_distance", other, "relative"))
    return found


def resolves(rows: list[Row], fpr: str, attack: str) -> bool:
    """Whether an attack's non-members, the forget set's, are many enough for this false-positive rate."""
    return bool(rows[0]["attacks"]["forget_vs_test"][attack][f"resolves_{fpr}_fpr"])


def known_probes(rows: list[Row]) -> list[str]:
    """The probes that some model has a figure of; the others were not asked for, or can't be."""
    names = dict.fromkeys(name for row in rows for name in row.get("probes", {}))
    return [name for name in names if any(_known(_under(row, ("probes", name, "value"))) for row in rows)]


def probe_labels(rows: list[Row]) -> dict[str, str]:
    """How the lines name the probes that they show."""
    known = known_probes(rows)
    found = {name: label for name, label, _ in PROBES if name in known}
    return found | {name: f"relearn time, {name.removeprefix(RELEARN)}" for name in sorted(known) if name.startswith(RELEARN)}


def undefined_probes(rows: list[Row]) -> dict[str, list[str]]:
    """The labels of the shown probes that some model has no figure of, by the reason."""
    found: dict[str, list[str]] = {}
    for name, label in probe_labels(rows).items():
        probes = [row["probes"][name] for row in rows if name in row["probes"]]
        for reason in dict.fromkeys(probe["reason"] for probe in probes if not _known(probe["value"])):
            found.setdefault(str(reason), []).append(label)
    return found


def _accuracies(rows: list[Row]) -> list[Line]:
    parts = [("forget set", "forget"), ("retain set", "retain")]
    parts += [("test, forgotten classes", "test_forget"), ("test, kept classes", "test_retain")] if rows[0]["class_wise"] else []
    parts += [("test, all", "test")]
    return [_line(rows, "accuracy", label, percent, "accuracy", part, interval=("accuracy_intervals", part)) for label, part in parts]


def _attack(rows: list[Row], attack: str) -> list[Line]:
    shown: list[tuple[str, str, Show]] = [("auc", "AUC", number), ("balanced_accuracy", "balanced accuracy", number)]
    unseen = rows[0]["attacks"]["forget_vs_test"][attack]["nonmembers"]
    if attack in RATIOS:
        shown.append(("balanced_accuracy_at_half", "the same, member if likelier than not", number))
    for name, text in FPRS:
        mark = "" if resolves(rows, name, attack) or not unseen else " *"
        shown.append((f"tpr_at_{name}_fpr", f"TPR at {text} FPR{mark}", percent))
    group, of = f"{attack_name(attack)}, forget against unseen", ("attacks", "forget_vs_test", attack)
    return [_line(rows, group, label, show, *of, key, interval=(*of, f"{key}_interval")) for key, label, show in shown]


def _memory(rows: list[Row]) -> list[Line]:
    group, members = "memory of the forget set", "oracle_members_intervals"
    rates = [
        _line(rows, group, f"forgetting rate, oracle {name}", percent, "forgetting_rates", name, "rate")
        for name in rows[0].get("forgetting_rates", {})
    ]
    return [
        _line(rows, group, "forgetting rate", percent, "forgetting_rate", interval=("forgetting_rate_interval",)),
        *rates,
        _line(rows, group, "called members by the oracle", percent, "oracle_members", "forget", interval=(members, "forget")),
        _line(rows, group, "the same, unseen samples", percent, "oracle_members", "unseen", interval=(members, "unseen")),
        _line(rows, group, "mean loss", number, "mean_loss", "forget", interval=("mean_loss_intervals", "forget")),
        _line(rows, group, "classes its predictions spread over", number, "forget_prediction_spread"),
    ]


def _probes(rows: list[Row]) -> list[Line]:
    group, labels = "probes of the forget set", probe_labels(rows)
    found = [
        _line(rows, group, label, show, "probes", name, "value", interval=("probes", name, "interval"))
        for name, label, show in PROBES
        if name in labels
    ]
    for name in (name for name in labels if name.startswith(RELEARN)):
        unit = next((unit for row in rows if (unit := _under(row, ("probes", name, "unit")))), "steps")
        found.append(Line(group, f"{labels[name]}, {unit}", [Cell(_relearned(row, name)) for row in rows]))
    return found


def _relearned(row: Row, name: str) -> str:
    value = _under(row, ("probes", name, "value"))
    return f"{'' if row['probes'][name]['reached'] else '> '}{value:.0f}" if _known(value) else "-"


def _line(rows: list[Row], group: str, label: str, show: Show, *keys: str, interval: tuple[str, ...] = ()) -> Line:
    """The figure under ``keys`` of each row, with the interval under ``interval``."""
    cells = []
    for row in rows:
        text = show(_under(row, keys))
        cells.append(Cell(text, ends(_under(row, interval), show) if interval and text != "-" else None))
    return Line(group, label, cells)


def _known(value: float | None) -> bool:
    return value is not None and not math.isnan(value)


def _under(row: Row, keys: tuple[str, ...]) -> Any:
    value: Any = row
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value
