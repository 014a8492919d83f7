"""What an audit found: rows, verdict, and the three ways to show them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

from . import attacks as atk
from .controls import lines as control_lines
from .files import write_whole
from .oracles import NOT_IDEAL

CONVENTIONS = {
    "accuracy": "share of samples whose largest logit is the label's; the first of equal logits wins",
    "attack": "score >= threshold means member; loss and entropy enter negated; no attack is trained",
    "auc": "probability that a member scores above a non-member, ties count one half; 0.5 means it can't tell",
    "balanced accuracy": "(1 + max(TPR - FPR)) / 2, threshold chosen on the same samples, so never under "
    "0.5 and a little high on small sets",
    "TPR at a FPR": "largest true-positive rate with a false-positive rate of at most that; exact counts, ties not split",
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
    ) -> None:
        """Writes the report as one self-contained page (no network, no script), whole or not at all
        (OSError).

        Args:
            path: the file; its folder must exist.
            title: the page's headline.
            facts: further lines for the settings at the foot, such as the data and the network.
            noise: images to show, ``{caption: tensor[n, channels, height, width]}``; 1 or 3 channels.
            timing: seconds of each step, such as ``{"retrain": 31.0, "unlearn": 4.0}``.
            class_names: names for the class ids.
        """
        from .page import render

        write_whole(path, render(self, title, facts or {}, noise or {}, timing or {}, class_names))

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
        lines = [("accuracy", label, _reader(percent, "accuracy", key)) for label, key in accuracy]
        for attack in self.settings["attacks"]:
            of = ("attacks", "forget_vs_test", attack)
            group = f"{attack.replace('_', ' ')} attack, forget against unseen"
            lines.append((group, "AUC", _reader(number, *of, "auc")))
            lines.append((group, "balanced accuracy", _reader(number, *of, "balanced_accuracy")))
            for name, text in zip(atk.FPR_NAMES, ("1 %", "0.1 %"), strict=True):
                mark = "" if self.resolves(name) else " *"
                lines.append((group, f"TPR at {text} FPR{mark}", _reader(percent, *of, f"tpr_at_{name}_fpr")))
        group = "loss attack, retain against unseen"
        lines.append((group, "AUC", _reader(number, "attacks", "retain_vs_test", "loss", "auc")))
        group = "memory of the forget set"
        lines.append((group, "forgetting rate", _reader(percent, "forgetting_rate")))
        lines += [
            (group, f"forgetting rate, oracle {name}", _reader(percent, "forgetting_rates", name, "rate"))
            for name in self.rows[0].get("forgetting_rates", {})
        ]
        lines.append((group, "called members by the oracle", _reader(percent, "oracle_members", "forget")))
        lines.append((group, "the same, unseen samples", _reader(percent, "oracle_members", "unseen")))
        lines.append((group, "mean loss", _reader(number, "mean_loss", "forget")))
        lines.append((group, "classes its predictions spread over", _reader(number, "forget_prediction_spread")))
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
        if self.settings["reference"] is None:
            notes.append('NO REFERENCE: no model named "retrained" was given. Read the figures as changes, not as distances from an ideal.')
        rates = {row["forgetting_rate_reason"] for row in self.rows if row["forgetting_rate_reason"]}
        notes += [f"forgetting rate undefined: {reason}" for reason in sorted(rates)]
        undefined = {(o, e["reason"]) for row in self.rows for o, e in row.get("forgetting_rates", {}).items() if e["reason"]}
        notes += [f"forgetting rate of oracle {name} undefined: {reason}" for name, reason in sorted(undefined)]
        notes.append(f"forgetting rate: {NOT_IDEAL}")
        notes += [f"{name.replace('_', ' ')}: {convention}." for name, convention in self.settings["comparisons"].items()]
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


def _reader(show: Callable[[float | None], str], *keys: str) -> Callable[[dict[str, Any]], str]:
    def read(row: dict[str, Any]) -> str:
        value: Any = row
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return show(value)

    return read


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
