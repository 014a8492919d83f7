"""Everything that can be checked of a receipt: its own hash, its entries, its figures among each other, the rule, and what was given."""

from __future__ import annotations

import datetime
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..._arrays import first_line
from ..._data import source
from ..._identity import bare_names
from .. import kinds, verdict
from ..conventions import CONVENTIONS
from ..figures import ORIGINAL, RETRAINED, ModelRow
from ..measure.weights import is_bias
from . import consistency, first_rule, hashes
from .again import Again
from .finding import Finding, same
from .receipt import CALLED, own_hash
from .schema import required, violations
from .texts import Samples

ON_TRUST = "created, versions, machine, facts, intervals by resampling, words beside figures, the method's options, seconds and words"
OTHER_NAMES = (
    "these are other weights, under other names than the model's own (a folder may hold an adapter alone, or experts one by one); "
    "what torch.save(model.state_dict(), FILE) writes has them all, under their names"
)
# Buffers of batch normalisation stand among the weights of a state_dict.
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def check(
    receipt: dict[str, Any],
    *,
    weights: Mapping[str, Mapping[str, Any]],
    forget: Samples | None = None,
    ids: Sequence[str] | None = None,
    again: Again | None = None,
) -> list[Finding]:
    """Everything that can be checked of a receipt.

    Args:
        receipt: its entries.
        weights: state_dicts by the models' names in it.
        forget: the forget set.
        ids: the forget samples' ids.
        again: what to measure the figures again with.
    """
    missing = [entry for entry in required() if entry not in receipt]
    if missing:
        return [Finding(entry, "the entry is missing") for entry in missing]
    try:
        findings = list(_checks(receipt, weights, forget, ids))
    except (KeyError, TypeError, ValueError, AttributeError, LookupError, ArithmeticError, RecursionError) as error:
        return [Finding("receipt", f"its entries don't fit together ({type(error).__name__}: {first_line(error)})")]
    if again is not None and not any(one.field in ("receipt", "schema") for one in findings):
        findings += again.findings(receipt, weights)
    return findings


def _checks(
    receipt: dict[str, Any], weights: Mapping[str, Mapping[str, Any]], forget: Samples | None, ids: Sequence[str] | None
) -> Iterator[Finding]:
    rows = [ModelRow.from_dict(row, f"{name}[{i}]") for name in ("rows", "control_rows") for i, row in enumerate(receipt[name])]
    yield same("sha256", receipt["sha256"], own_hash(receipt), "it was changed after it was written")
    for name, state in weights.items():
        yield _weights(f"models.{name}", receipt["models"].get(name, {}), state)
    against = next(violations(receipt), "")
    yield Finding("entries", against)
    about = receipt["forget_set"]
    if forget is not None:
        given = hashes.of_samples(source(forget, name="forget", reading=kinds.of(receipt["request"]).labels))
        yield same("forget_set.samples_sha256", about["samples_sha256"], given, "these are other samples")
    if ids is not None:
        digest, _ = hashes.of_ids(ids)
        yield same("forget_set.ids.sha256", (about.get("ids") or {}).get("sha256"), digest, "these are other ids")
    yield from _words(receipt)
    yield from _method(receipt)
    named = {row.model for row in rows} == set(receipt["models"])
    yield Finding("models", "" if named else "the rows are not of the models that were hashed")
    if named and not against:
        yield from consistency.whole(receipt, rows, beneath=receipt["verdict"]["rule"] == verdict.RULE)
        yield from _distances(rows, weights)
    yield from _judged_again(receipt, rows)


def _weights(entry: str, hashed: Mapping[str, Any], state: Mapping[str, Any]) -> Finding:
    """By the hash with the names; where these differ, by the contents alone."""
    field, stated = f"{entry}.state_dict_sha256", hashed.get("state_dict_sha256")
    if stated is None:
        return Finding(field, "the receipt doesn't say")
    try:
        if hashes.same_state(stated, state):
            return Finding(field)
        if hashes.same_contents(hashed, state):
            return Finding(f"{entry}.contents_sha256 (the same tensors under other names)")
        named = hashed.get("names_sha256") in (None, hashes.of_names(state))
        return same(field, stated, hashes.of_state(state), "these are other weights" if named else OTHER_NAMES)
    except (RuntimeError, TypeError, NotImplementedError) as error:
        return Finding(field, f"these weights can't be hashed: {first_line(error)}")


def _words(receipt: dict[str, Any]) -> Iterator[Finding]:
    """What a reader could take for this program's words."""
    yield Finding("called", "" if receipt["called"] == CALLED else "it calls itself something else than evidence from measurements")
    known = {**CONVENTIONS, **hashes.SCHEMES}
    if receipt["conventions"] != known:
        yield Finding("conventions", unchecked="other words than this version's; they are not shown here")
    try:
        at = datetime.datetime.fromisoformat(receipt["created"].replace("Z", "+00:00"))
        yield Finding("created", "" if at.tzinfo is not None else "it is no time in UTC")
    except ValueError:
        yield Finding("created", "it is no time")


def _method(receipt: dict[str, Any]) -> Iterator[Finding]:
    """The unlearning's own record speaks of the same models, classes and seed."""
    method = receipt["method"]
    if not method:
        yield Finding("seeds.unlearn", "" if receipt["seeds"]["unlearn"] is None else "there is a seed and no method")
        return
    stated = method["weights_sha256"]
    hashed = {name: model["weights_sha256"] for name, model in receipt["models"].items()}
    if ORIGINAL in hashed:
        yield same("method.weights_sha256.before", stated["before"], hashed[ORIGINAL], "it is of another original model")
    after = stated["after"] in hashed.values()
    yield Finding("method.weights_sha256.after", "" if after else "it is of none of the models in this receipt")
    yield Finding("seeds.unlearn", "" if receipt["seeds"]["unlearn"] == method["seed"] else "it is not method.seed")
    wanted = method.get("classes")
    if wanted and receipt["forgotten_classes"]:
        fits = set(receipt["forgotten_classes"]) <= set(wanted)
        yield Finding("method.classes", "" if fits else "other classes were to be forgotten than were audited")


# ------------------------------------------------------------------ weights that were given


def _distances(rows: list[ModelRow], weights: Mapping[str, Mapping[str, Any]]) -> Iterator[Finding]:
    """The distances between models whose weights are all given, computed again where parameters can be told from buffers."""
    for row in rows:
        for other in (ORIGINAL, RETRAINED):
            if row.model in weights and other in weights and other in row.weight_distance:
                field = f"rows.{row.model}.weight_distance.{other}"
                yield _distance_again(field, row, other, _tensors(weights[row.model]), _tensors(weights[other]))


def _tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    bare = bare_names(state)
    return {bare[name]: value for name, value in state.items() if isinstance(value, Tensor)}


def _distance_again(field: str, row: ModelRow, other: str, one: dict[str, Tensor], two: dict[str, Tensor]) -> Finding:
    stated = row.weight_distance[other]
    plain = [name for name in one if name.rpartition(".")[2] not in STATISTICS and one[name].is_floating_point()]
    if any(name not in two or two[name].shape != one[name].shape for name in plain) or not plain:
        return Finding(field, unchecked="the weights can't be laid on each other")
    if stated.reason is not None:
        return Finding(field, unchecked="the receipt has no distance, though the weights can be laid on each other")
    squares: dict[str, float] = {}
    for name in plain:
        difference = one[name].double() - two[name].double()
        layer = name.rpartition(".")[0] or name
        squares[layer] = squares.get(layer, 0.0) + float(torch.linalg.vector_norm(difference)) ** 2
    biases = [is_bias(name) for name in plain if not torch.equal(one[name], two[name])]
    if stated.biases_only != (bool(biases) and all(biases)):
        return Finding(field, "whether nothing but biases moved is not what these weights say")
    layers = {layer.layer.replace("module.", "").replace("_orig_mod.", ""): layer.l2 for layer in stated.layers}
    for layer, square in squares.items():
        if layer not in layers:
            # a buffer of its own kind is no weight; only what moved and is left out would be hidden
            if square > 0:
                return Finding(field, unchecked=f"{layer} moved and is not among the layers: a buffer?")
        elif not math.isclose(layers[layer], math.sqrt(square), rel_tol=1e-3, abs_tol=1e-6):
            return Finding(field, f"layer {layer} lies {math.sqrt(square):.6g} away, the receipt says {layers[layer]:.6g}")
    return Finding(field)


# ------------------------------------------------------------------ the rule


def _judged_again(receipt: dict[str, Any], rows: list[ModelRow]) -> Iterator[Finding]:
    """The figures, judged again, give the verdict that the receipt states."""
    stated_verdict, rule = receipt["verdict"], receipt["verdict"]["rule"]
    kind = kinds.of(receipt["request"])
    if rule == kind.rule.text:
        judgement = verdict.judge_all(rows, kind.rule, frozen_body=receipt["settings"].get("frozen_body", False))
    elif hashlib.sha256(rule.encode("utf-8", "surrogatepass")).hexdigest() in first_rule.WORDS:
        judgement = first_rule.judge_all(rows)
        yield Finding("verdict.rule", unchecked="that of the first version, by which the figures are judged here; today's may ask more")
    else:
        yield Finding("verdict.rule", "the rule is another version's; the figures can't be judged again here")
        return
    for stated, judged in zip(rows, judgement.rows, strict=True):
        yield same(f"rows.{stated.model}.status", stated.status, judged.status, "its figures give another status")
        if stated.reasons != judged.reasons:
            yield Finding(f"rows.{stated.model}.reasons", "its figures give other reasons")
    controls = {name: outcome.to_dict() for name, outcome in judgement.controls.items()}
    yield Finding("controls", "" if receipt["controls"] == controls else "the figures give other controls")
    yield same("verdict.status", stated_verdict["status"], judgement.verdict, "the figures give another verdict")
    yield Finding("verdict.reasons", "" if stated_verdict["reasons"] == judgement.reasons else "the figures give other reasons")
