"""A report with everything that a page can show: three methods, four controls, intervals, shadow-model attacks, probes.

The models and their figures are real (8x8 digits); what only a long audit measures is made up here, in the form in which
the audit gives it.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from digits_world import World, small_cnn

import fastforget as ff
from fastforget.audit import attacks as atk
from fastforget.audit import verdict

CLASS = 3
CONTROLS = ("untouched", "random", "fine_tuned", "suppressed")


def _models() -> tuple[dict[str, torch.nn.Module], dict[str, Any]]:
    """Stand-ins for three methods (the retrained model, shaken), and the four controls."""
    world = World()
    forget, retain = world.part(world.train, [CLASS], True), world.part(world.train, [CLASS], False)
    original, retrained = world.net("cnn"), world.net("cnn", (CLASS,))
    models = {"original": original}
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        for i, name in enumerate(("unlearned", "forsaken", "lightweight")):
            models[name] = copy.deepcopy(retrained)
            for w in models[name].parameters():
                w += 0.01 * (i + 1) * torch.randn_like(w)
        models |= {"untouched": copy.deepcopy(original), "random": small_cnn().eval()}
        models |= {"fine_tuned": copy.deepcopy(original), "suppressed": copy.deepcopy(original)}
        models["suppressed"][-1].bias[CLASS] -= 30
    return models | {"retrained": retrained}, {"forget": forget, "retain": retain, "test": world.test}


def full_report(rename: dict[str, str] | None = None) -> tuple[ff.audit.AuditReport, dict[str, Any]]:
    """The report and its three sets; ``rename`` gives models other names."""
    models, sets = _models()
    models = {(rename or {}).get(name, name): model for name, model in models.items()}
    report = ff.audit(models, **sets, progress=False)
    draw = torch.Generator().manual_seed(5)
    report.settings["attacks"] += ["attack_p", "lira", "rmia"]
    report.settings["conventions_used"] = {"lira": "log-likelihood ratio of two normals, 64 shadow models"}
    for row in report.rows:
        _with_intervals(row)
        _with_attacks(report, row, draw)
        row["control"] = row["model"] in CONTROLS
        row["probes"] = _probes(row["model"])
        if row["control"]:
            row["status"] = "FAIL"
    asked = [row for row in report.judged() if not row["control"]]
    report.verdict = verdict.overall([row["status"] for row in asked])
    report.reasons = [f"{row['model']}: {reason}" for row in asked for reason in row["reasons"]]
    report.controls = {name: {"status": "FAIL", "behaved": True} for name in CONTROLS if name in models}
    report.controls["retrained"] = {"status": "PASS", "behaved": True}
    report.curves["exposed"] = {
        row["model"]: [
            {"index": i, "label": CLASS, "score": {r["model"]: float(torch.randn((), generator=draw)) for r in report.rows}}
            for i in torch.randperm(len(sets["forget"][0]), generator=draw)[:15].tolist()
        ]
        for row in asked
    }
    return report, sets


def _with_intervals(row: dict[str, Any]) -> None:
    def around(value: float) -> list[float]:
        return [max(0.0, value - 0.031), min(1.0, value + 0.024)]

    row["accuracy_intervals"] = {part: around(value) for part, value in row["accuracy"].items() if not math.isnan(value)}
    for attacks in row["attacks"].values():
        for figures in attacks.values():
            for key in ("auc", "balanced_accuracy", "tpr_at_1pct_fpr"):
                figures[f"{key}_interval"] = around(figures[key])


def _with_attacks(report: ff.audit.AuditReport, row: dict[str, Any], draw: torch.Generator) -> None:
    shift = {"original": 1.4, "untouched": 1.4, "fine_tuned": 1.1, "suppressed": 0.9, "lightweight": 0.5}.get(row["model"], 0.1)
    for attack in ("attack_p", "lira", "rmia"):
        for duel in ("forget_vs_test", "retain_vs_test"):
            member, nonmember = shift + torch.randn(140, generator=draw), torch.randn(400, generator=draw)
            figures = atk.figures(member, nonmember)
            figures["auc_interval"] = [figures["auc"] - 0.04, figures["auc"] + 0.04]
            row["attacks"][duel][attack] = figures
            curves = report.curves["roc"][duel].setdefault(attack, {})
            curves[row["model"]] = atk.curve(member, nonmember)


def _probes(model: str) -> dict[str, Any]:
    reason = "the model is the yardstick itself" if model == "retrained" else None
    return {
        "feature_drift": {
            "value": math.nan if reason else 0.874,
            "interval": None,
            "convention": "mean angle of the features",
            "reason": reason,
        },
        "steps_to_relearn": {
            "value": 12.0,
            "interval": [9.0, 15.0],
            "convention": "steps of SGD to the original's accuracy",
            "reason": None,
        },
        "divergence": {"value": 4.1e-5, "interval": [3.0e-5, 5.2e-5], "convention": "to the retrained model", "reason": None},
    }
