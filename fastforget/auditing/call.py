"""``ff.audit``: models and sets in, a report out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from .. import _data
from . import report, verdict
from .controls import behaviour, chosen, controls, distrust
from .measure import attacks as atk
from .measure import exposure, passes, probes, svc
from .measure import intervals as ci
from .measure.class_rule import CONVENTION as CLASS_CONVENTION
from .measure.class_rule import Rule as ByClass
from .measure.histogram import loss_histograms
from .measure.oracles import LiRAVerdict, LossThreshold, Oracle, ShadowLogistic, logits_of
from .measure.oracles import rates as oracle_rates
from .measure.quality import forgetting_quality
from .measure.relearn import DEFINITIONS, relearn_time
from .measure.relearn import rows as relearn_rows
from .measure.weights import weight_distance
from .proof import hashes
from .shadow import attacks as sh
from .shadow import state
from .shadow.training import shadows

ORIGINAL, RETRAINED = "original", "retrained"


class Oracles:
    """Membership oracles for forgetting rates: ``ff.audit(..., oracles={"shadow": ff.audit.oracles.ShadowLogistic(…)})``."""

    LossThreshold = LossThreshold
    ShadowLogistic = ShadowLogistic
    LiRAVerdict = LiRAVerdict
    logits_of = staticmethod(logits_of)


class Audit:
    """``ff.audit``: measures what a model still knows. Call it with models and sets; it returns an :class:`AuditReport`.

    What else an audit offers hangs on it as attributes:

    - ``ff.audit.controls``: models that an audit must not pass
    - ``ff.audit.shadows``: trains shadow models for the attacks that need them; ``ff.audit.Shadows`` is what it returns, and ``load`` reads
    - ``ff.audit.oracles``: membership oracles for forgetting rates
    - ``ff.audit.relearn_time``: how soon a model knows the forget set again
    - ``ff.audit.forgetting_quality``: the score of the NeurIPS'23 unlearning challenge
    - ``ff.audit.AuditReport``: the report; as a type it is ``fastforget.auditing.AuditReport``
    """

    AuditReport: TypeAlias = report.AuditReport
    Shadows: TypeAlias = state.Shadows
    oracles = Oracles
    controls = staticmethod(controls)
    forgetting_quality = staticmethod(forgetting_quality)
    relearn_time = staticmethod(relearn_time)
    shadows = staticmethod(shadows)

    def __call__(
        self,
        models: dict[str, nn.Module],
        *,
        forget: Any,
        retain: Any,
        test: Any,
        attacks: Sequence[str] = atk.DEFAULT,
        oracles: dict[str, Oracle] | None = None,
        shadows: Any = None,
        population: Any = None,
        teacher: nn.Module | None = None,
        relearn: Sequence[str] = (),
        train: Any = None,
        intervals: bool = True,
        controls: bool | dict[str, nn.Module] = False,
        seed: int = 0,
        unpack: Callable[[Any], tuple[Any, Tensor]] | None = None,
        forward: Callable[[nn.Module, Any], Tensor] | None = None,
        batch_size: int | None = None,
        progress: bool = True,
    ) -> AuditReport:
        """Measures what each model still knows of the forget set, beside the original and a retrained model.

        One pass of every model over every set, in eval mode and without gradients; the models' training flags are
        restored and nothing else of them changes. Models on different devices are fine; each gets the batches on
        its own.

        Args:
            models: ``{"original": …, "unlearned": …, "retrained": …}``; further names are audited like
                "unlearned". Without "retrained" the report says NO REFERENCE: most of these figures have no ideal
                value of their own.
            forget, retain, test: the samples to be forgotten, the kept training samples, and samples that no
                model was trained on; each a DataLoader, a Dataset or an (inputs, labels) pair.
            attacks: of "loss", "confidence", "entropy", "modified_entropy", "margin", "logit_confidence" and "attack_p"; "loss" is always
                measured. With ``shadows`` also "lira", "lira_offline", "u_lira", "rmia", "rmia_offline" and "attack_r"; where none of these
                is named, all that the shadow models can serve are run but "rmia_offline".
            oracles: further membership oracles for the forgetting rate by name, beside the loss threshold that is calibrated on the
                original model: callables (logits [N, K], labels [N]) -> bool [N], such as those of ``fastforget.audit.oracles``. Each is
                asked about the forget set on every model, in the set's order.
            shadows: shadow models' answers, of ``ff.audit.shadows`` or its ``load``, over a pool with the forget and the test set (and the
                retain set, or its row has no figures).
            population: the samples that RMIA compares with, the same as were given to ``ff.audit.shadows``; no model was trained on them.
            teacher: for ZRF: the network, randomly initialised. It sees the forget set only.
            relearn: definitions of relearn time to measure, of "unsir", "golatkar" and "ain" (:func:`fastforget.audit.relearn_time`). Each
                trains a copy of every model on ``train``, which takes its time.
            train: the whole training set, for ``relearn``.
            intervals: 95 % confidence intervals beside the figures, under ``..._interval``; ``False`` leaves them out.
            controls: ``True`` also audits models that must not pass (:func:`fastforget.audit.controls`), made of the original: it costs
                their passes and a short fine-tuning. Or models of your own by name; one named "retrained…" must pass, all others must
                not. They are listed apart, and if one misbehaves the verdict can't be PASS.
            seed: for data sets that augment at random, and for the bootstrap; same seed, same figures. The caller's random state is left
                alone.
            unpack: batch -> (inputs, labels), for batches that are not (x, y) or (x, _, y).
            forward: (model, inputs) -> logits, for models that don't map inputs to logits [batch, classes].
            batch_size: for sets that are not loaders.
            progress: show a bar when the output is a terminal.

        Returns:
            :class:`AuditReport`: ``print()`` it, read ``.rows`` and ``.verdict``, or write ``.to_json(path)`` and
            ``.to_html(path)``.

        Raises:
            TypeError, ValueError: an unknown attack, an empty set, labels out of a model's range, NaN logits, an attack that needs shadow
                models or a population without them; the message names the set, the model and the first bad sample.
            RuntimeError: a model's forward failed.

        >>> import torch, fastforget as ff
        >>> _ = torch.manual_seed(0)
        >>> x, y = torch.randn(90, 4), torch.arange(90) % 3
        >>> net = torch.nn.Linear(4, 3)
        >>> sets = {"forget": (x[:9], y[:9]), "retain": (x[9:60], y[9:60]), "test": (x[60:], y[60:])}
        >>> report = ff.audit({"original": net}, **sets)
        >>> report.verdict
        'NO REFERENCE'
        """
        models, names = _checked(models, attacks)
        definitions = _checked_probes(teacher, relearn, train)
        by_shadows = sh.chosen(names, shadows, population is not None)
        names = (*(n for n in names if n not in sh.NAMES), *by_shadows)
        started = time.perf_counter()
        given = {"forget": forget, "retain": retain, "test": test}
        if any(name.startswith("rmia") for name in by_shadows):
            given["population"] = population
        sets = {name: _data.source(data, name=name, unpack=unpack, batch_size=batch_size) for name, data in given.items()}
        checks = chosen(controls, models, sets, seed, forward)
        shown, models = list(models), {**models, **checks}
        recorder = probes.Recorder(list(models), teacher=teacher, forward=forward)
        done = _scored(models, sets, names, recorder, forward=forward, seed=seed, progress=progress)
        outside = sh.add(shadows, by_shadows, sets, done) if by_shadows else {}
        for of in done.values():
            of.pop("population", None)
        labels = {name: scored.labels for name, scored in next(iter(done.values())).items()}
        forgotten = probes.only_in(labels["forget"], labels["retain"])
        duels = atk.duels(labels)
        original = done.get(ORIGINAL)
        oracle = atk.calibrate(original, duels[1])
        rule = ByClass(original, duels[1], names)
        by_oracle = oracle_rates(models, sets["forget"], oracles or {}, ORIGINAL, forward) if oracles else {n: {} for n in models}
        options = {"unpack": unpack, "forward": forward, "seed": seed, "progress": progress}
        again = _relearned({n: models[n] for n in shown}, definitions, train, sets["forget"], original, options)

        how: dict[str, Any] = {"seed": seed, "with_intervals": intervals}
        rows = [_row(name, done[name], duels, names, forgotten, how) for name in models]
        by_name = {row["model"]: row for row in rows}
        for row in rows:
            name, scored = row["model"], done[row["model"]]
            row["weight_distance"] = {
                other: weight_distance(models[name], models[other]) for other in (ORIGINAL, RETRAINED) if other in models and other != name
            }
            row["probes"] = recorder.figures(name, **how) | {"mia_efficacy": svc.audit_entry(scored, intervals)} | again.get(name, {})
            row["class_thresholds"] = {duel.name: rule.figures(scored, duel, intervals) for duel in duels}
            row["forgetting_rate"], row["forgetting_rate_reason"] = atk.rate(original, scored, oracle)
            row["forgetting_rates"] = by_oracle[name]
            row["oracle_members"] = _oracle_members(scored, duels[0], oracle)
            if intervals:
                row["forgetting_rate_interval"] = atk.rate_interval(original, scored, oracle)
                counts = {"forget": len(labels["forget"]), "unseen": int(duels[0].keep.sum())}
                row["oracle_members_intervals"] = {
                    side: None if math.isnan(value) else ci.share(round(value * counts[side]), counts[side])
                    for side, value in row["oracle_members"].items()
                }
            for attack in by_shadows if "retain" in outside else ():
                row["attacks"]["retain_vs_test"][attack]["reason"] = outside["retain"]
        for row in rows:
            row["status"], row["reasons"] = verdict.judge(row, by_name.get(ORIGINAL), by_name.get(RETRAINED))
            row["control"] = row["model"] in checks
        rows, control_rows = ([row for row in rows if row["control"] == which] for which in (False, True))
        behaved = behaviour(control_rows, by_name.get(RETRAINED))
        judged = [row for row in rows if row["model"] not in (ORIGINAL, RETRAINED)]
        statuses = [row["status"] for row in judged] if RETRAINED in models else ["NO REFERENCE"]
        exposed_by, exposed = exposure.exposed(done, [row["model"] for row in judged], names)
        warnings = distrust(behaved)
        return report.AuditReport(
            rows=rows,
            verdict=verdict.overall(statuses, trusted=not warnings),
            reasons=[*warnings, *(f"{row['model']}: {reason}" for row in judged for reason in row["reasons"])],
            controls=behaved,
            control_rows=control_rows,
            settings={
                "request": "class-wise" if len(forgotten) else "sample-wise",
                "forgotten_classes": forgotten.tolist(),
                "sizes": {name: len(y) for name, y in labels.items()},
                "attacks": list(names),
                "seed": seed,
                "intervals": bool(intervals),
                "reference": RETRAINED if RETRAINED in models else None,
                "oracle_threshold": oracle.threshold,
                "oracle_reason": oracle.reason,
                "comparisons": {duel.name: duel.convention for duel in duels},
                "conventions_used": _conventions(names, shadows, rows[0]["probes"], intervals),
                "exposed_by": exposed_by,
                "rule": verdict.RULE,
                "models": {name: hashes.of_model(model) for name, model in models.items()},
                "forget_set": hashes.of_set(sets["forget"], seed),
                "seconds": time.perf_counter() - started,
                "torch": torch.__version__,
            },
            curves={
                "roc": {duel.name: {a: _curves(done, duel, a) for a in names} for duel in duels},
                "loss": loss_histograms({n: {s: v.scores["loss"] for s, v in done[n].items()} for n in done}),
                "exposed": exposed,
            },
        )


def _scored(
    models: dict[str, nn.Module], sets: dict[str, _data.Source], names: tuple[str, ...], recorder: probes.Recorder, **how: Any
) -> dict[str, dict[str, passes.Scored]]:
    """The one pass of all models over all sets, with the scores that the attacks read."""
    read = [name for name in names if name in atk.DIRECTION]
    if any(name in sh.NAMES for name in names):
        read.append("logit_confidence")
    teacher = {"teacher": recorder.teacher} if recorder.teacher is not None else {}
    with passes.evaluating(teacher):
        return passes.run(models, sets, attacks=tuple(dict.fromkeys(read)), watch=recorder, **how)


def _relearned(
    models: dict[str, nn.Module],
    definitions: tuple[str, ...],
    train: Any,
    forget: _data.Source,
    original: dict[str, passes.Scored] | None,
    how: dict[str, Any],
) -> dict[str, dict[str, Any]]:
    accuracy = loss = math.nan
    if original is not None:
        accuracy, loss = _mean(original["forget"].correct), _mean(original["forget"].scores["loss"])
    return relearn_rows(models, definitions, train=train, forget=forget, accuracy=accuracy, loss=loss, **how)


def _curves(done: dict[str, dict[str, passes.Scored]], duel: atk.Duel, attack: str) -> dict[str, dict[str, list[float]]]:
    """The models' ROC curves over the samples with a score; a model without such samples on a side is left out."""
    pairs = {name: [side[~torch.isnan(side)] for side in atk.sides(of, duel, attack)] for name, of in done.items()}
    return {name: atk.curve(member, other) for name, (member, other) in pairs.items() if member.numel() and other.numel()}


def _conventions(names: tuple[str, ...], shadows: Any, found: dict[str, dict[str, Any]], intervals: bool) -> dict[str, str]:
    """What each figure of this report means, by the figure's name."""
    used = {name: sh.convention(shadows, name) if name in sh.NAMES else atk.CONVENTION[name] for name in names}
    used["class_thresholds"] = CLASS_CONVENTION
    used |= {name: figure["convention"] for name, figure in found.items()}
    return used | ({"intervals": ci.CONVENTION} if intervals else {})


def _checked(models: dict[str, nn.Module], attacks: Sequence[str]) -> tuple[dict[str, nn.Module], tuple[str, ...]]:
    if not isinstance(models, dict) or not models:
        raise TypeError(f'models: got {type(models).__name__}; accepted is a dict such as {{"original": net, "unlearned": net2}}')
    for name, model in models.items():
        if not isinstance(name, str) or not isinstance(model, nn.Module):
            raise TypeError(f"models[{name!r}]: got {type(model).__name__}; accepted is a name and a torch.nn.Module")
    accepted = (*atk.CONVENTION, *sh.NAMES)
    if isinstance(attacks, str) or not all(a in accepted for a in attacks):
        raise ValueError(f"attacks: got {attacks!r}; accepted is a list of {', '.join(map(repr, accepted))}")
    order = [n for n in models if n == ORIGINAL] + [n for n in models if n not in (ORIGINAL, RETRAINED)]
    order += [n for n in models if n == RETRAINED]
    return {n: models[n] for n in order}, tuple(dict.fromkeys(("loss", *attacks)))


def _checked_probes(teacher: Any, relearn: Sequence[str], train: Any) -> tuple[str, ...]:
    if teacher is not None and not isinstance(teacher, nn.Module):
        raise TypeError(f"teacher: got {type(teacher).__name__}; accepted is a torch.nn.Module, the network randomly initialised")
    if isinstance(relearn, str) or not all(d in DEFINITIONS for d in relearn):
        raise ValueError(f"relearn: got {relearn!r}; accepted is a list of {', '.join(map(repr, DEFINITIONS))}")
    if relearn and train is None:
        raise ValueError("train: got None; relearn= trains on, so pass the whole training set")
    return tuple(dict.fromkeys(relearn))


def _row(
    name: str,
    scored: dict[str, passes.Scored],
    duels: list[atk.Duel],
    attacks: tuple[str, ...],
    forgotten: Tensor,
    how: dict[str, Any],
) -> dict[str, Any]:
    test = scored["test"]
    of_forgotten = torch.isin(test.labels, forgotten)
    predictions = torch.bincount(scored["forget"].predicted, minlength=scored["forget"].classes)
    parts = {s: scored[s].correct for s in ("forget", "retain", "test")}
    parts |= {"test_forget": test.correct[of_forgotten], "test_retain": test.correct[~of_forgotten]}
    row = {
        "model": name,
        "class_wise": bool(len(forgotten)),
        "accuracy": {part: _mean(correct) for part, correct in parts.items()},
        "counts": {part: correct.numel() for part, correct in parts.items()},
        "class_accuracy": {s: _by_class(scored[s]) for s in scored},
        "mean_loss": {s: float(scored[s].scores["loss"].double().mean()) for s in scored},
        "forget_predictions": predictions.tolist(),
        "forget_prediction_spread": _spread(predictions),
        "attacks": {duel.name: {a: atk.figures_of(scored, duel, a, **how) for a in attacks} for duel in duels},
    }
    if how["with_intervals"]:
        row["mean_loss_intervals"] = {s: ci.mean(scored[s].scores["loss"], low=0.0) for s in scored}
        row["accuracy_intervals"] = {part: ci.share(int(correct.sum()), correct.numel()) for part, correct in parts.items()}
    return row


def _spread(counts: Tensor) -> float:
    """exp(entropy): over how many classes the predictions spread; 1 = one class takes all."""
    share = counts.double() / counts.sum()
    return float(torch.special.entr(share).sum().exp())


def _by_class(scored: passes.Scored) -> dict[int, float]:
    return {int(c): _mean(scored.correct[scored.labels == c]) for c in scored.labels.unique()}


def _mean(correct: Tensor) -> float:
    return float(correct.double().mean()) if correct.numel() else math.nan


def _oracle_members(scored: dict[str, passes.Scored], duel: atk.Duel, oracle: atk.Oracle) -> dict[str, float]:
    """The shares of forget samples, and of unseen samples of the same classes, that the fixed oracle calls
    members."""
    if oracle.reason is not None:
        return {"forget": math.nan, "unseen": math.nan}
    return {
        "forget": _mean(atk.verdicts(scored["forget"], oracle)),
        "unseen": _mean(atk.verdicts(scored["test"], oracle)[duel.keep]),
    }
