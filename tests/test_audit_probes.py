"""The audit's probes of the logits, each against plain arithmetic."""

from __future__ import annotations

import math

import pytest
import torch
from audit_world import FORGOTTEN, World
from torch import nn

from fastforget.audit import probes


@pytest.fixture(scope="module")
def world() -> World:
    return World()


class Suppressed(nn.Module):
    """The original with one output pushed down: nothing but that is forgotten."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.inner(x).clone()
        z[:, FORGOTTEN] -= 50.0
        return z


# ------------------------------------------------------------------ the forgotten class's logit


def test_margins_against_a_slow_count() -> None:
    logits = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    logits[0] = 1.0  # all tied
    logits[1, 2:] = -math.inf
    found = probes.margins(logits, torch.tensor([0, 3]))
    for row, values in zip(logits.tolist(), found.tolist(), strict=True):
        for c, value in zip((0, 3), values, strict=True):
            assert value == pytest.approx(row[c] - max(row[:c] + row[c + 1 :]))


def test_class_logit_auc_sees_below_a_suppressed_output(world: World) -> None:
    report = world.audit(unlearned=Suppressed(world.original))
    x, y = world.test
    for row, model in zip(report.rows, (world.original, None, world.retrained), strict=True):
        found = row["probes"]["class_logit_auc"]
        low, high = found["interval"]
        assert found["reason"] is None and found["worst_class"] == FORGOTTEN and low < found["value"] < high
        if model is not None:
            with torch.no_grad():
                z = model(x).double()
            mine = z[:, FORGOTTEN] - z[:, [c for c in range(4) if c != FORGOTTEN]].amax(1)
            inside, outside = mine[y == FORGOTTEN, None], mine[y != FORGOTTEN]
            expected = ((inside > outside).double() + 0.5 * (inside == outside).double()).mean().item()
            assert found["value"] == pytest.approx(expected, abs=1e-6)
    original, suppressed, retrained = (row["probes"]["class_logit_auc"]["value"] for row in report.rows)
    assert suppressed == pytest.approx(original, abs=1e-6) and original > 0.9 and retrained < 0.75
    assert report.row("unlearned")["accuracy"]["test_forget"] == 0
    assert "forgotten class told by its logit" in str(report)


def test_class_logit_auc_says_why_not(world: World) -> None:
    (x, y), (kx, ky) = world.forget, world.retain
    sample_wise = world.audit(forget=(kx[:50], ky[:50]), retain=(torch.cat([x, kx[50:]]), torch.cat([y, ky[50:]])))
    found = sample_wise.row("original")["probes"]["class_logit_auc"]
    assert math.isnan(found["value"]) and found["interval"] is None and "sample-wise" in found["reason"]
    tx, ty = world.test
    for keep, why in ((ty != FORGOTTEN, "no sample of a forgotten class"), (ty == FORGOTTEN, "no sample of a kept class")):
        one_class = world.audit(test=(tx[keep], ty[keep]))
        assert why in one_class.row("original")["probes"]["class_logit_auc"]["reason"]


def test_worst_of_several_forgotten_classes(world: World) -> None:
    keep = world.retain[1] != 0
    forget = tuple(torch.cat((a, b[~keep])) for a, b in zip(world.forget, world.retain, strict=True))
    report = world.audit(forget=forget, retain=tuple(part[keep] for part in world.retain))
    found = report.row("retrained")["probes"]["class_logit_auc"]
    assert set(found["by_class"]) == {0, FORGOTTEN} and found["worst_class"] == 0
    assert found["value"] == max(found["by_class"].values())
