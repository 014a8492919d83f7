"""Oracles of the forgetting rate: fixed before, asked again after, and judged beside the retrained model."""

from __future__ import annotations

import math

import pytest
import torch
from audit_world import World, blobs, fit

import fastforget as ff
from fastforget.auditing.measure import oracles
from fastforget.ops import membership


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def test_loss_threshold_is_the_audits_own(world):
    own = oracles.LossThreshold.calibrated(world.original, world.retain, world.test)
    report = world.audit(oracles={"mine": own})
    for row in report.rows:
        before = own(*oracles.logits_of(world.original, world.forget))
        after = own(*oracles.logits_of({"original": world.original, "retrained": world.retrained}[row["model"]], world.forget))
        expected = membership.forgetting_rate(before, after)
        got = row["forgetting_rates"]["mine"]
        assert got["members"] == int(after.sum())
        assert got["rate"] == expected or (math.isnan(expected) and got["reason"])


def test_shadow_attack_tells_members_of_a_net_that_learned_by_heart():
    """Shadow models trained as the target was: few noisy samples, many passes."""

    def overfitted(seed: int):
        (x, _), (unseen, _) = blobs(60, 100 + seed), blobs(60, 200 + seed)
        g = torch.Generator().manual_seed(seed)
        members, others = (x, torch.randint(0, 4, (60,), generator=g)), (unseen, torch.randint(0, 4, (60,), generator=g))
        return fit(members, seed), members, others

    attack = oracles.ShadowLogistic([overfitted(s) for s in range(3)])
    model, members, others = overfitted(9)
    inside, outside = (attack(*oracles.logits_of(model, d)).double().mean().item() for d in (members, others))
    assert inside > 0.8 and outside < 0.5
    scores = [attack.probability(*oracles.logits_of(model, d)) for d in (members, others)]
    assert float(membership.roc_stats(*scores).auc) > 0.85


def test_logistic_regression_is_at_its_optimum():
    x, y = torch.randn(200, 3, dtype=torch.float64), (torch.rand(200) < 0.3).double()
    weight = torch.rand(200, dtype=torch.float64)
    w = oracles._logistic(x, y, weight, ridge=0.1).requires_grad_()
    z = x @ w[:-1] + w[-1]
    loss = (weight * torch.nn.functional.binary_cross_entropy_with_logits(z, y, reduction="none")).sum() + 0.05 * w[:-1].square().sum()
    (gradient,) = torch.autograd.grad(loss, w)
    assert float(gradient.abs().max()) < 1e-9


def test_callable_of_the_user_and_what_is_refused(world):
    report = world.audit(oracles={"sure": lambda logits, labels: logits.softmax(1).amax(1) > 0.9})
    assert "oracle sure" in str(report)
    assert "100 % is not the ideal" in "\n".join(report.notes())
    never = world.audit(oracles={"never": lambda logits, labels: torch.zeros_like(labels, dtype=torch.bool)})
    entry = never.rows[0]["forgetting_rates"]["never"]
    assert math.isnan(entry["rate"]) and "BT = 0" in entry["reason"]
    with pytest.raises(TypeError, match=r"oracles\['odd'\]: returned torch.float32\(100,\); accepted is a bool tensor"):
        world.audit(oracles={"odd": lambda logits, labels: logits[:, 0]})
    with pytest.raises(ValueError, match="shadows: empty"):
        oracles.ShadowLogistic([])


def test_lira_verdict_follows_the_state(world):
    n = len(world.forget[1])
    state = ff.ops.membership.Lira(n)
    generator = torch.Generator().manual_seed(0)
    for _ in range(16):
        member = torch.rand(n, generator=generator) < 0.5
        state.update(torch.where(member, 3.0, -1.0) + torch.randn(n, generator=generator), member)
    judge = oracles.LiRAVerdict(state)
    logits = torch.zeros(n, 4)
    logits[torch.arange(n), world.forget[1]] = torch.linspace(-4, 8, n)
    members = judge(logits, world.forget[1])
    assert not bool(members[0]) and bool(members[-1])
