"""What a language model hides: half of the forget set comes back when it is taught the other half."""

from __future__ import annotations

import copy
import math
import statistics
import warnings
from dataclasses import replace

import language_world as w
import pytest
import sequences_world
import torch
from torch import nn

import fastforget as ff
from fastforget.auditing.measure.hidden import LENGTH, STEPS, hidden
from fastforget.auditing.provenance import Case
from fastforget.auditing.sequence_rule import check_hidden
from fastforget.methods.request import Sets, kind_asked


@pytest.fixture(scope="module")
def world() -> sequences_world.World:
    return sequences_world.world()


def measured(net: nn.Module, head: str | None, forget, unseen):
    sets = Sets.read(None, kind_asked(True).labels, forget=forget, test=unseen, retain=None, nonmember=None)
    return hidden(net, head, lambda model, x: model(x), sets.forget, sets.test, seed=0)


@pytest.mark.parametrize("capped", [False, True], ids=["by blocks", "from logits"])
def test_the_steps_are_those_of_a_plain_loop(capped):
    net, (ids, labels), unseen = w.recurrent(capped), w.texts("forget"), w.texts("nonmember")
    saved = copy.deepcopy(net.state_dict())
    aucs = []
    for first in (0, 1):
        taught = copy.deepcopy(net)
        for _ in range(STEPS):
            taught.zero_grad()
            w.nll(taught, ids[first::2], labels[first::2], mean="sequences").backward()
            both = [(p, p.grad) for p in taught.parameters() if p.grad is not None]
            with torch.no_grad():
                norms = [math.sqrt(sum(float((part**2).sum()) for part in parts)) for parts in zip(*both, strict=True)]
                for p, slope in both:
                    p -= LENGTH * norms[0] / norms[1] * slope
        other = (ids[1 - first :: 2], labels[1 - first :: 2])
        with torch.no_grad():
            sides = [(-w.log_probs(taught, *one).sum(1) / w.counts(one[1])).tolist() for one in (other, unseen)]
        aucs.append(statistics.fmean((a < b) + 0.5 * (a == b) for a in sides[0] for b in sides[1]))
    found = measured(net, None if capped else "head", (ids, labels), unseen)
    assert found.value == pytest.approx(statistics.fmean(aucs), abs=1e-9) and found.reason is None
    assert all(torch.equal(value, saved[name]) for name, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


def test_what_is_only_hidden_comes_back(world):
    """NPO until the attack fails: by its answers the model forgot, and a few steps on half of the sequences bring the others back."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ff.methods.NotForgottenWarning)
        model = ff.unlearn(
            world.original, "npo", forget=world.sets["forget"], retain=world.sets["retain"], nonmember=world.sets["test"], epochs=32,
            batch_size=10, lr=0.002, hold="anchor", retain_weight=5.0, seed=0, progress=False,
        ).model  # fmt: skip
    report = world.audit(unlearned=model, again=world.again)
    rows = {row.model: row for row in report.figures}
    assert abs(rows["unlearned"].attacks["forget_vs_test"]["loss"].auc.value - 0.5) < 0.15
    again = {name: row.probes["other_half_auc"].value for name, row in rows.items()}
    assert again["original"] > 0.95 and again["unlearned"] > 0.7 and max(again["again"], again["retrained"]) < 0.62
    told = [reason for reason in rows["unlearned"].reasons if "the other half after steps on one half" in reason]
    assert told[0].startswith("PARTIAL: ") and told[0].endswith("what it kept shows there")
    assert rows["again"].status == "PASS"


def test_where_nothing_can_be_trained(world):
    one = tuple(part[:1] for part in world.sets["forget"])
    assert measured(world.original, "head", one, world.sets["test"]).reason == "there are fewer than two forget sequences"
    frozen = nn.Embedding(sequences_world.WORDS, sequences_world.WORDS).requires_grad_(False)
    assert measured(frozen, None, world.sets["forget"], world.sets["test"]).known  # the copy trains what the model doesn't
    table = nn.Embedding(sequences_world.WORDS, sequences_world.WORDS)
    torch.nn.init.constant_(table.weight, math.inf)
    reason = measured(table, None, world.sets["forget"], world.sets["test"]).reason
    assert reason == "a training step failed: the gradient's norm is nan"


def test_a_figure_that_is_missing_is_partial(world):
    rows = {row.model: row for row in world.audit(unlearned=world.again).figures}
    probe = replace(rows["unlearned"].probes["other_half_auc"], value=math.nan, reason="why not")
    without = replace(rows["unlearned"], probes=rows["unlearned"].probes | {"other_half_auc": probe})
    found = check_hidden(Case(without, rows["original"], rows["retrained"]))
    assert found[0][0] == "PARTIAL" and found[0][1].endswith("can't be measured: why not")
    assert check_hidden(Case(rows["unlearned"], rows["original"], rows["retrained"]))[0][0] == "PASS"
    assert check_hidden(Case(rows["unlearned"], None, rows["retrained"])) == []
