"""What an audit found: rows, verdict, and the three ways to show them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

from . import attacks as atk
from . import intervals
from .class_rule import CONVENTION as CLASS_THRESHOLDS
from .controls import lines as control_lines
from .files import write_whole
from .oracles import NOT_IDEAL
from .svc import CONVENTION as MIA_EFFICACY

CONVENTIONS = {
    "accuracy": "share of samples whose largest logit is the label's; the first of equal logits wins",
    "attack": "score >= threshold means member; loss and entropy enter negated; no attack is trained",
    "auc": "probability that a member scores above a non-member, ties count one half; 0.5 means it can't tell",
    "balanced accuracy": "(1 + max(TPR - FPR)) / 2, threshold chosen on the same samples, so never under "
    "0.5 and a little high on small sets",
    "member if likelier than not": "of LiRA and U-LiRA: balanced accuracy at a likelihood ratio of 1, a threshold fixed beforehand; the "
    "figure of Hayes et al. (SaTML'25)",
    "TPR at a FPR": "largest true-positive rate with a false-positive rate of at most that; exact counts, ties not split",
    "class thresholds": CLASS_THRESHOLDS,
    "MIA-efficacy": MIA_EFFICACY,
    "JS divergence, activation distance": "mean over the forget set of the distance of two models' softmax outputs, in float64; beside the "
    "retrained model's, where another retrained model would not be at 0 either",
    "interval": intervals.CONVENTION,
    "confidence": "the label's softmax probability; in 32-bit floats it ties at 1 where the loss still ranks",
    "forgetting rate": "(AF - BF) / BT (Forsaken, arXiv 2003.10933): of the forget samples that a fixed "
    "oracle called members on the original model, the share it no longer does. The oracle: loss <= "
    "threshold, of best balanced accuracy between retain and test samples on the original model, the same "
    "before and after",
    "weight distance": "Euclidean, per module that owns parameters (weight and bias together); buffers left "
    "out; relative = divided by the norm of the other model's layer",
    "prediction spread": "exp(entropy) of the predicted classes' shares: 1 = one class takes every forget sample",
    "order": "models see each batch in the same pass, in eval mode, without gradients",
}

WHY = (
    "Neither 0.5 nor 100 % is always the ideal. A model that never saw a class or a sample still guesses, so its "
    "accuracy there need not be 0; against test samples of other classes even a perfectly retrained model is far from an "
    "AUC of 0.5; a class that stands out (AUC well under 0.5) is a trace as well; and the oracle errs about a retrained "
    "model too, so its forgetting rate can be under 100 %. The yardstick is therefore the retrained column: a model that "
    "never saw the forget set."
)


@dataclass
class AuditReport:
    """An audit's result. ``print()`` it; ``.rows`` holds one dict a model; ``.verdict`` is that of the
    unlearned model(s).

    ``verdict`` is "PASS", "PARTIAL", "FAIL", "NO REFERENCE" (no retrained model given) or "NOTHING TO JUDGE"
    (no model but the original and the retrained one); ``reasons`` says why, by the rule in
    ``settings["rule"]``. Where controls were audited, ``controls`` says of each its status and whether it
    ``behaved``, and ``control_rows`` holds their figures.
    """

    rows: list[dict[str, Any]]
    verdict: str
    reasons: list[str]
    settings: dict[str, Any]
    curves: dict[str, Any] = field(repr=False, default_factory=dict)
    controls: dict[str, dict[str, Any]] = field(default_factory=dict)
    control_rows: list[dict[str, Any]] = field(repr=False, default_factory=list)

    def row(self, model: str) -> dict[str, Any]:
        """The row of one model or control."""
        for row in (*self.rows, *self.control_rows):
            if row["model"] == model:
                return row
        raise KeyError(f"{model!r} is not among {', '.join(r['model'] for r in self.rows)}")

    def judged(self) -> list[dict[str, Any]]:
        """The rows that the verdict is about: all but the original and the retrained model."""
        return [row for row in self.rows if row["model"] not in ("original", "retrained")]

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON values; a figure that is undefined (NaN) or infinite is null."""
        whole = {
            "verdict": self.verdict,
            "reference": self.settings["reference"] or "no reference",
            "reasons": self.reasons,
            "rows": self.rows,
            "controls": self.controls,
            "control_rows": self.control_rows,
            "settings": self.settings,
            "conventions": CONVENTIONS,
            "reading": WHY,
            "curves": self.curves,
        }
        return jsonable(whole)

    def to_json(self, path: str | PathLike[str]) -> None:
        """Writes the report as JSON, whole or not at all (OSError)."""
        write_json(path, self.to_dict())

    def to_html(
        self,
        path: str | PathLike[str],
        *,
        title: str = "Forgetting audit",
        facts: dict[str, str] | None = None,
        noise: Any = None,
        timing: dict[str, float] | None = None,
        class_names: list[str] | None = None,
        images: dict[str, Any] | None = None,
    ) -> None:
        """Writes the report as one self-contained page (no network, no script), whole or not at all
        (OSError).

        What the audit didn't measure (intervals, shadow-model attacks, probes, controls, exposed samples) is left out.

        Args:
            path: the file; its folder must exist.
            title: the page's headline.
            facts: further lines for the settings at the foot, such as the data and the network.
            noise: images to show, ``{caption: tensor[n, channels, height, width]}``; 1 or 3 channels.
            timing: seconds of each step, such as ``{"retrain": 31.0, "unlearn": 4.0}``.
            class_names: names for the class ids.
            images: pictures of the most exposed samples, ``{"forget": tensor[n, channels, height, width]}``, the whole forget set
                in its order, of any dtype; only those that are shown get into the file.

        Raises:
            TypeError, ValueError: ``images`` or ``noise`` are no such tensors.
        """
        from .page import render

        write_whole(path, render(self, title, facts or {}, noise or {}, timing or {}, class_names, images or {}))

    def receipt(self, result: Any = None, *, ids: Iterable[Any] | None = None, facts: dict[str, Any] | None = None) -> dict[str, Any]:
        """The audit as a receipt: hashes of the models and of the forget set, method, seeds, versions, machine, figures, controls,
        verdict, and a hash over all of it; plain JSON values.

        Args:
            result: what :func:`fastforget.unlearn` returned; its method, options and seed are put down, and its hashes must be
                those of the models that were audited.
            ids: names of the forget samples, in any order; their hash is put down, not they.
            facts: further JSON values to put down.

        Raises:
            ValueError: ``result`` is of other models, ``ids`` aren't one a sample, or a model or the forget set couldn't be hashed.

        >>> import torch, fastforget as ff
        >>> x, y = torch.randn(90, 4), torch.arange(90) % 3
        >>> sets = {"forget": (x[:9], y[:9]), "retain": (x[9:60], y[9:60]), "test": (x[60:], y[60:])}
        >>> found = ff.audit({"original": torch.nn.Linear(4, 3)}, **sets).receipt(ids=range(9))
        >>> found["verdict"]["status"], found["forget_set"]["ids"]["count"], len(found["sha256"])
        ('NO REFERENCE', 9, 64)
        """
        from .receipt import receipt

        return receipt(self, result, ids=ids, facts=facts)

    def write_receipt(self, path: str | PathLike[str], result: Any = None, **more: Any) -> dict[str, Any]:
        """Writes :meth:`receipt` to ``path`` (JSON) and as a page beside it (suffix .html), each whole or not at all (OSError).

        ``python -m fastforget verify PATH --model WEIGHTS.pt`` checks it.
        """
        from .receipt import write

        found = self.receipt(result, **more)
        write(path, found)
        return found

    def table(self) -> list[tuple[str, list[str], str]]:
        """The figures as (label, one text a model, group); what ``str()`` and the page show."""
        return [(label, [show(row) for row in self.rows], group) for group, label, show in self._lines()]

    def _lines(self) -> list[tuple[str, str, Callable[[dict[str, Any]], str]]]:
        class_wise = bool(self.rows[0]["class_wise"])
        accuracy = [("forget set", "forget"), ("retain set", "retain")]
        accuracy += [("test, forgotten classes", "test_forget"), ("test, kept classes", "test_retain")] if class_wise else []
        accuracy += [("test, all", "test")]
        lines = [("accuracy", label, _reader(percent, "accuracy", key, ends=("accuracy_intervals", key))) for label, key in accuracy]
        for attack in self.settings["attacks"]:
            of = ("attacks", "forget_vs_test", attack)
            group = f"{attack.replace('_', ' ')} attack, forget against unseen"
            for key, text in (("auc", "AUC"), ("balanced_accuracy", "balanced accuracy")):
                lines.append((group, text, _reader(number, *of, key, ends=(*of, f"{key}_interval"))))
            if attack in atk.RATIOS:
                half = "balanced_accuracy_at_half"
                lines.append((group, "the same, member if likelier than not", _reader(number, *of, half, ends=(*of, f"{half}_interval"))))
            for name, text in zip(atk.FPR_NAMES, ("1 %", "0.1 %"), strict=True):
                mark = "" if self.resolves(name) else " *"
                key = f"tpr_at_{name}_fpr"
                lines.append((group, f"TPR at {text} FPR{mark}", _reader(percent, *of, key, ends=(*of, f"{key}_interval"))))
        group = "loss attack, retain against unseen"
        retained = ("attacks", "retain_vs_test", "loss")
        lines.append((group, "AUC", _reader(number, *retained, "auc", ends=(*retained, "auc_interval"))))
        group = "one threshold a class, forget against unseen"
        for attack in self.rows[0].get("class_thresholds", {}).get("forget_vs_test", {}):
            of = ("class_thresholds", "forget_vs_test", attack)
            ends = (*of, "balanced_accuracy_interval")
            label = f"balanced accuracy, {attack.replace('_', ' ')}"
            lines.append((group, label, _reader(number, *of, "balanced_accuracy", ends=ends)))
        group = "memory of the forget set"
        lines.append((group, "forgetting rate", _reader(percent, "forgetting_rate", ends=("forgetting_rate_interval",))))
        lines += [
            (group, f"forgetting rate, oracle {name}", _reader(percent, "forgetting_rates", name, "rate"))
            for name in self.rows[0].get("forgetting_rates", {})
        ]
        for key, text in (("forget", "called members by the oracle"), ("unseen", "the same, unseen samples")):
            lines.append((group, text, _reader(percent, "oracle_members", key, ends=("oracle_members_intervals", key))))
        lines.append((group, "mean loss", _reader(number, "mean_loss", "forget", ends=("mean_loss_intervals", "forget"))))
        lines.append((group, "classes its predictions spread over", _reader(number, "forget_prediction_spread")))
        for name, label, show in PROBES:
            probe = ("probes", name)
            # a probe that no model has a value for was not asked for
            if any(_known(_under(row, (*probe, "value"))) for row in self.rows):
                lines.append((group, label, _reader(show, *probe, "value", ends=(*probe, "interval"))))
        for name in sorted({name for row in self.rows for name in row.get("probes", {}) if name.startswith("relearn_time_")}):
            unit = next((row["probes"][name].get("unit") for row in self.rows), None) or "steps"
            lines.append((group, f"relearn time, {name.removeprefix('relearn_time_')}, {unit}", _relearned(name)))
        group = "weights, relative distance"
        for other in ("original", "retrained"):
            if any(other == row["model"] for row in self.rows):
                lines.append((group, f"to the {other}", _reader(number, "weight_distance", other, "relative")))
        return lines

    def resolves(self, fpr: str) -> bool:
        """Whether the forget set's non-members are many enough for this false-positive rate."""
        return bool(self.rows[0]["attacks"]["forget_vs_test"]["loss"][f"resolves_{fpr}_fpr"])

    def notes(self) -> list[str]:
        """What a reader must know about these particular figures."""
        notes = []
        unseen = self.rows[0]["attacks"]["forget_vs_test"]["loss"]["nonmembers"]
        coarse = [text for name, text in zip(atk.FPR_NAMES, ("1 %", "0.1 %"), strict=True) if not self.resolves(name)]
        if coarse:
            notes.append(
                f"* {unseen} unseen samples can't resolve a false-positive rate of {' or '.join(coarse)}: "
                f"one false positive is already {100 / unseen:.2g} %. The figure is the true-positive rate "
                "at no false positive at all, and rests on one sample."
            )
        if self.settings.get("intervals"):
            notes.append("[low, high]: 95 % confidence interval over the draw of the samples.")
        if self.settings["reference"] is None:
            notes.append('NO REFERENCE: no model named "retrained" was given. Read the figures as changes, not as distances from an ideal.')
        rates = {row["forgetting_rate_reason"] for row in self.rows if row["forgetting_rate_reason"]}
        notes += [f"forgetting rate undefined: {reason}" for reason in sorted(rates)]
        undefined = {(o, e["reason"]) for row in self.rows for o, e in row.get("forgetting_rates", {}).items() if e["reason"]}
        notes += [f"forgetting rate of oracle {name} undefined: {reason}" for name, reason in sorted(undefined)]
        notes.append(f"forgetting rate: {NOT_IDEAL}")
        used = self.settings.get("conventions_used", {})
        further = [name for name in self.settings["attacks"] if name in used and name not in atk.DIRECTION]
        notes += [f"{name.replace('_', ' ')}: {used[name]}." for name in further]
        notes += self._undefined()
        notes += [f"{name.replace('_', ' ')}: {convention}." for name, convention in self.settings["comparisons"].items()]
        return notes

    def _undefined(self) -> list[str]:
        """Where scores had to be left out."""
        notes = []
        for attack in self.settings["attacks"]:
            of = [row["attacks"][duel][attack] for row in self.rows for duel in row["attacks"]]
            most = max(figures.get("undefined", 0) for figures in of)
            if most:
                notes.append(f"{attack.replace('_', ' ')}: up to {most} samples have no score (NaN) and are left out.")
            notes += [f"{attack.replace('_', ' ')}: {reason}." for reason in sorted({f["reason"] for f in of if f.get("reason")})]
        return notes

    def headline(self) -> str:
        sizes = self.settings["sizes"]
        classes = self.settings["forgotten_classes"]
        request = (
            f"class-wise request, class{'es' if len(classes) > 1 else ''} {', '.join(map(str, classes))}"
            if classes
            else "sample-wise request"
        )
        return f"{request}; forget {sizes['forget']}, retain {sizes['retain']}, test {sizes['test']} samples"

    def __str__(self) -> str:
        names = [row["model"] for row in self.rows]
        lines = self.table()
        if self.settings["reference"] is None:
            names.append("retrained")
            lines = [(label, [*cells, "no ref."], group) for label, cells, group in lines]
        left = max(len(label) for label, _, _ in lines) + 2
        widths = [max(10, len(n), *(len(c[i]) for _, c, _ in lines)) for i, n in enumerate(names)]
        out = [f"fastforget audit: {self.verdict}", f"  {self.headline()}", ""]
        out.append(" " * (left + 2) + "  ".join(n.rjust(w) for n, w in zip(names, widths, strict=True)))
        group = ""
        for label, cells, of in lines:
            if of != group:
                group = of
                out.append(group)
            out.append(f"  {label.ljust(left)}" + "  ".join(c.rjust(w) for c, w in zip(cells, widths, strict=True)))
        out += ["", *(_wrap(reason) for reason in self.reasons), *([""] if self.reasons else [])]
        out += [*(_wrap(line) for line in control_lines(self.controls)), *([""] if self.controls else [])]
        out += [_wrap(note) for note in self.notes()]
        out.append(_wrap(WHY))
        return "\n".join(out)


def percent(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{100 * value:.1f} %"


def number(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "-"
    return f"{value:.3f}" if abs(value) < 1000 else f"{value:.3g}"


def _known(value: float | None) -> bool:
    return value is not None and not math.isnan(value)


PROBES: tuple[tuple[str, str, Callable[[float | None], str]], ...] = (
    ("class_logit_auc", "forgotten class told by its logit, AUC", number),
    ("mia_efficacy", "called NON-member by its own threshold", percent),
    ("js_to_retrained", "JS divergence to the retrained, nats", number),
    ("js_of_means_to_retrained", "the same, of the mean answers", number),
    ("activation_distance", "activation distance to the retrained, L2", number),
    ("zrf", "ZRF, JS in nats", number),
    ("zrf_badt", "ZRF, as its published code has it", number),
    ("ain", "anamnesis index", number),
)


def _relearned(name: str) -> Callable[[dict[str, Any]], str]:
    def read(row: dict[str, Any]) -> str:
        found = row["probes"].get(name, {})
        value = found.get("value")
        if not _known(value):
            return "-"
        return f"{'' if found['reached'] else '> '}{value:.0f}"

    return read


def _reader(
    show: Callable[[float | None], str], *keys: str, ends: tuple[str, ...] | None = None
) -> Callable[[dict[str, Any]], str]:
    """Shows the figure under ``keys``, and the interval under ``ends`` where there is one."""

    def read(row: dict[str, Any]) -> str:
        text = show(_under(row, keys))
        interval = _under(row, ends) if ends else None
        if interval is None or text == "-":
            return text
        scale, digits = (100, 0) if show is percent else (1, 2)
        low, high = (f"{scale * end:.{digits}f}" for end in interval)
        return f"{text} [{low}, {high}]"

    return read


def _under(row: dict[str, Any], keys: tuple[str, ...]) -> Any:
    value: Any = row
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _wrap(text: str) -> str:
    import textwrap

    return textwrap.fill(text, 110, subsequent_indent="  ")


def jsonable(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): jsonable(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(v) for v in value]
    return value


def write_json(path: str | PathLike[str], value: Any) -> None:
    """``value`` as strict JSON (no NaN), whole or not at all."""
    write_whole(path, json.dumps(jsonable(value), indent=1, allow_nan=False, ensure_ascii=False) + "\n")
