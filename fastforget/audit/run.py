"""``ff.audit``: models and sets in, a report out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import _data
from . import attacks as atk
from . import hashes, passes, verdict
from .controls import behaviour, chosen, distrust
from .histogram import loss_histograms
from .oracles import Oracle
from .oracles import rates as oracle_rates
from .report import AuditReport
from .weights import weight_distance

ORIGINAL, RETRAINED = "original", "retrained"


def audit(
    models: dict[str, nn.Module],
    *,
    forget: Any,
    retain: Any,
    test: Any,
    attacks: Sequence[str] = atk.DEFAULT,
    oracles: dict[str, Oracle] | None = None,
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
        attacks: of "loss", "confidence", "entropy", "modified_entropy", "margin", "logit_confidence". "loss"
            is always measured.
        oracles: further membership oracles for the forgetting rate by name, beside the loss threshold that is calibrated on the original
            model: callables (logits [N, K], labels [N]) -> bool [N], such as those of ``fastforget.audit.oracles``. Each is asked
            about the forget set on every model, in the set's order.
        controls: ``True`` also audits models that must not pass (:func:`fastforget.audit.controls`), made of the original: it costs their
            passes and a short fine-tuning. Or models of your own by name; one named "retrained…" must pass, all others must not. They
            are listed apart, and if one misbehaves the verdict can't be PASS.
        seed: for data sets that augment at random; same seed, same figures. The caller's random state is left
            alone.
        unpack: batch -> (inputs, labels), for batches that are not (x, y) or (x, _, y).
        forward: (model, inputs) -> logits, for models that don't map inputs to logits [batch, classes].
        batch_size: for sets that are not loaders.
        progress: show a bar when the output is a terminal.

    Returns:
        :class:`AuditReport`: ``print()`` it, read ``.rows`` and ``.verdict``, or write ``.to_json(path)`` and
        ``.to_html(path)``.

    Raises:
        TypeError, ValueError: an unknown attack, an empty set, labels out of a model's range, NaN logits; the
            message names the set, the model and the first bad sample.
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
    started = time.perf_counter()
    sets = {
        name: _data.source(data, name=name, unpack=unpack, batch_size=batch_size)
        for name, data in (("forget", forget), ("retain", retain), ("test", test))
    }
    checks = chosen(controls, models, sets, seed, forward)
    shown, models = list(models), {**models, **checks}
    done = passes.run(models, sets, attacks=names, forward=forward, seed=seed, progress=progress)
    labels = {name: scored.labels for name, scored in next(iter(done.values())).items()}
    forgotten = _only_in(labels["forget"], labels["retain"])
    duels = atk.duels(labels)
    oracle = atk.calibrate(done.get(ORIGINAL), duels[1])

    by_oracle = oracle_rates(models, sets["forget"], oracles or {}, ORIGINAL, forward) if oracles else {n: {} for n in models}
    rows = [_row(name, done[name], duels, names, forgotten) for name in models]
    by_name = {row["model"]: row for row in rows}
    for row in rows:
        model = models[row["model"]]
        row["weight_distance"] = {
            other: weight_distance(model, models[other]) for other in (ORIGINAL, RETRAINED) if other in models and other != row["model"]
        }
        value, reason = atk.rate(done.get(ORIGINAL), done[row["model"]], oracle)
        row["forgetting_rate"], row["forgetting_rate_reason"] = value, reason
        row["forgetting_rates"] = by_oracle[row["model"]]
        row["oracle_members"] = _oracle_members(done[row["model"]], duels[0], oracle)
    for row in rows:
        row["status"], row["reasons"] = verdict.judge(row, by_name.get(ORIGINAL), by_name.get(RETRAINED))
        row["control"] = row["model"] in checks
    rows, control_rows = ([row for row in rows if row["control"] == which] for which in (False, True))
    behaved = behaviour(control_rows, by_name.get(RETRAINED))
    judged = [row for row in rows if row["model"] not in (ORIGINAL, RETRAINED)]
    statuses = [row["status"] for row in judged] if RETRAINED in models else ["NO REFERENCE"]
    warnings = distrust(behaved)
    return AuditReport(
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
            "reference": RETRAINED if RETRAINED in models else None,
            "oracle_threshold": oracle.threshold,
            "oracle_reason": oracle.reason,
            "comparisons": {duel.name: duel.convention for duel in duels},
            "rule": verdict.RULE,
            "models": {name: hashes.of_model(model) for name, model in models.items()},
            "forget_set": hashes.of_set(sets["forget"], seed),
            "seconds": time.perf_counter() - started,
            "torch": torch.__version__,
        },
        curves={
            "roc": {duel.name: {a: {n: atk.curve(*atk.sides(done[n], duel, a)) for n in shown} for a in names} for duel in duels},
            "loss": loss_histograms({n: {s: v.scores["loss"] for s, v in done[n].items()} for n in shown}),
        },
    )


def _checked(models: dict[str, nn.Module], attacks: Sequence[str]) -> tuple[dict[str, nn.Module], tuple[str, ...]]:
    if not isinstance(models, dict) or not models:
        raise TypeError(f'models: got {type(models).__name__}; accepted is a dict such as {{"original": net, "unlearned": net2}}')
    for name, model in models.items():
        if not isinstance(name, str) or not isinstance(model, nn.Module):
            raise TypeError(f"models[{name!r}]: got {type(model).__name__}; accepted is a name and a torch.nn.Module")
    if isinstance(attacks, str) or not all(a in atk.DIRECTION for a in attacks):
        raise ValueError(f"attacks: got {attacks!r}; accepted is a list of {', '.join(map(repr, atk.DIRECTION))}")
    order = [n for n in models if n == ORIGINAL] + [n for n in models if n not in (ORIGINAL, RETRAINED)]
    order += [n for n in models if n == RETRAINED]
    return {n: models[n] for n in order}, tuple(dict.fromkeys(("loss", *attacks)))


def _only_in(labels: Tensor, others: Tensor) -> Tensor:
    classes = labels.unique()
    return classes[~torch.isin(classes, others)]


def _row(
    name: str,
    scored: dict[str, passes.Scored],
    duels: list[atk.Duel],
    attacks: tuple[str, ...],
    forgotten: Tensor,
) -> dict[str, Any]:
    test = scored["test"]
    of_forgotten = torch.isin(test.labels, forgotten)
    predictions = torch.bincount(scored["forget"].predicted, minlength=scored["forget"].classes)
    parts = {s: scored[s].correct for s in ("forget", "retain", "test")}
    parts |= {"test_forget": test.correct[of_forgotten], "test_retain": test.correct[~of_forgotten]}
    return {
        "model": name,
        "class_wise": bool(len(forgotten)),
        "accuracy": {part: _mean(correct) for part, correct in parts.items()},
        "counts": {part: correct.numel() for part, correct in parts.items()},
        "class_accuracy": {s: _by_class(scored[s]) for s in scored},
        "mean_loss": {s: float(scored[s].scores["loss"].double().mean()) for s in scored},
        "forget_predictions": predictions.tolist(),
        "forget_prediction_spread": _spread(predictions),
        "attacks": {duel.name: {a: atk.figures(*atk.sides(scored, duel, a)) for a in attacks} for duel in duels},
    }


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
