"""The evidence below the answers: the rule's limits, and one small world in which it must tell dressed-up models from retrained ones."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastforget.auditing import limits
from fastforget.auditing.figures import Below
from fastforget.auditing.measure import below, structure
from fastforget.auditing.measure.noised import NO_FLOATS


def statuses(findings) -> list[str]:
    return [status for status, _ in findings]


# ---- the rule alone ------------------------------------------------------------------------------------------------------------------

SIZES = {"members": 50, "others": 450, "forget": 100, "unseen": 400}
ORIGINAL = Below(class_cka=1.0, readable=0.99, probe_auc=0.998, noised_auc=0.7, halves_auc=0.72, new_head_auc=0.7, **SIZES)
RETRAINED = dataclasses.replace(ORIGINAL, class_cka=0.85, readable=0.6, probe_auc=0.95, noised_auc=0.52, halves_auc=0.53, new_head_auc=0.52)


def test_the_original_is_caught_by_every_figure():
    assert statuses(limits.judge(ORIGINAL, ORIGINAL, [RETRAINED], class_wise=True)) == ["PARTIAL"] * 3
    assert statuses(limits.judge(ORIGINAL, ORIGINAL, [RETRAINED], class_wise=False)) == ["PARTIAL"] * 3
    assert statuses(limits.judge(RETRAINED, ORIGINAL, [RETRAINED], class_wise=True)) == ["PASS"] * 3
    assert statuses(limits.judge(RETRAINED, ORIGINAL, [RETRAINED], class_wise=False)) == ["PASS"] * 3
    assert all(limits.telling(ORIGINAL, [RETRAINED], class_wise=c) for c in (True, False))
    assert not any(limits.telling(RETRAINED, [RETRAINED], class_wise=c) for c in (False,))


@pytest.mark.parametrize(("cka", "status"), [(0.96, "PASS"), (0.97, "PARTIAL"), (0.5, "PASS")])
def test_a_quarter_of_retrainings_way(cka, status):
    row = dataclasses.replace(RETRAINED, class_cka=cka)
    assert statuses(limits.judge(row, ORIGINAL, [RETRAINED], class_wise=True))[0] == status


@pytest.mark.parametrize(("share", "status"), [(0.89, "PASS"), (0.91, "PARTIAL"), (-2.0, "PASS")])
def test_a_quarter_of_the_way_by_what_can_be_read(share, status):
    row = dataclasses.replace(RETRAINED, readable=share)
    assert statuses(limits.judge(row, ORIGINAL, [RETRAINED], class_wise=True))[1] == status


def test_retrained_models_near_the_original_widen_the_limit():
    near = dataclasses.replace(RETRAINED, class_cka=0.97)
    assert limits.way_limit([RETRAINED, RETRAINED])[1] == limits.WAY
    mean, share = limits.way_limit([RETRAINED, near])
    assert mean == pytest.approx(0.09) and share == pytest.approx(0.5 * 0.03 / 0.15)


def test_probe_limit_is_half_of_the_way_or_what_chance_allows():
    mean, most = limits.probe_limit(ORIGINAL, [RETRAINED])
    pairs = 50 * 450
    assert mean == pytest.approx(math.log(19), abs=1e-9)
    assert most == pytest.approx((mean + limits.log_odds(0.998, pairs)) / 2)
    weak = dataclasses.replace(ORIGINAL, probe_auc=0.951)
    few = dataclasses.replace(RETRAINED, members=4, others=40)
    assert limits.probe_limit(weak, [RETRAINED])[1] - mean == pytest.approx(max(math.log(2), 3 * limits.log_odds_error(0.95, 50, 450)))
    assert limits.probe_limit(weak, [few])[1] - mean == pytest.approx(3 * limits.log_odds_error(0.95, 4, 40))
    apart = dataclasses.replace(RETRAINED, probe_auc=0.60)
    mean, most = limits.probe_limit(weak, [RETRAINED, apart])
    assert most - mean == pytest.approx(1.5 * (limits.log_odds(0.95, pairs) - limits.log_odds(0.60, pairs)))


def test_excess_is_never_wider_than_half_of_the_gap():
    small = {"forget": 4, "unseen": 6}
    original, retrained = dataclasses.replace(ORIGINAL, noised_auc=0.96, **small), dataclasses.replace(RETRAINED, **small)
    wide = 2 * math.sqrt(11 / (12 * 24))
    assert 0.44 > wide > 0.44 / 2
    at = {v: dataclasses.replace(retrained, noised_auc=v) for v in (0.73, 0.75)}
    found = {v: statuses(limits.judge(row, original, [retrained], class_wise=False))[0] for v, row in at.items()}
    assert found == {0.73: "PASS", 0.75: "PARTIAL"}
    # where the original itself is within what chance allows, nothing is told apart
    blind = dataclasses.replace(original, noised_auc=0.9)
    assert statuses(limits.judge(at[0.75], blind, [retrained], class_wise=False))[0] == "PASS"


def test_a_fresh_head_tells_less_than_chance_and_a_third_of_the_way():
    def status(value: float, original: float) -> str:
        row, whole = (dataclasses.replace(r, new_head_auc=v) for r, v in ((RETRAINED, value), (ORIGINAL, original)))
        return statuses(limits.judge(row, whole, [RETRAINED], class_wise=False))[2]

    assert [status(v, 0.70) for v in (0.57, 0.59, 0.40)] == ["PASS", "PARTIAL", "PASS"]
    # a standard error is .032 here: at .55 the original itself is too near, at .57 half an error is allowed
    assert [status(v, 0.55) for v in (0.55, 0.60)] == ["PASS", "PASS"]
    assert [status(v, 0.565) for v in (0.535, 0.537)] == ["PASS", "PARTIAL"]


def test_a_figure_that_cant_be_had_has_not_passed():
    row = dataclasses.replace(RETRAINED, class_cka=math.nan, readable=math.nan, probe_auc=math.nan, reasons={"class_cka": "why"})
    for findings in (limits.judge(row, ORIGINAL, [RETRAINED], class_wise=True), limits.judge(RETRAINED, ORIGINAL, [row], class_wise=True)):
        assert statuses(findings) == ["PARTIAL"] * 3 and all("can't be measured" in text for _, text in findings)


def test_inputs_that_cant_be_noised_are_named_and_dont_count():
    rows = [dataclasses.replace(r, noised_auc=math.nan, reasons={"noised_auc": NO_FLOATS}) for r in (RETRAINED, ORIGINAL)]
    findings = limits.judge(rows[0], rows[1], [rows[0]], class_wise=False)
    assert statuses(findings) == ["PASS"] * 3 and "not measured" in findings[0][1]
    # one that alone can't be measured is another matter
    assert statuses(limits.judge(rows[0], ORIGINAL, [RETRAINED], class_wise=False))[0] == "PARTIAL"


def test_another_structure_is_never_more_than_partial():
    row = dataclasses.replace(RETRAINED, structure="module 0: Sequential, in the other Linear")
    findings = limits.judge(row, ORIGINAL, [RETRAINED], class_wise=True)
    assert statuses(findings) == ["PARTIAL", "PASS", "PASS", "PASS"] and "module 0" in findings[0][1]


def test_false_references():
    def why(cka: float, moved: float | None, **how: bool) -> str | None:
        return limits.believed(dataclasses.replace(RETRAINED, cka=cka), moved, **how)

    assert why(0.9, 0.98) is None and why(0.9, 0.01) is None and why(0.97, None) is None and why(math.nan, 0.0) is None
    assert "CKA 0.999" in why(0.999, 0.98) and "weights" not in why(0.999, None)
    unread = why(0.97, 0.1)
    assert unread is None  # readable .6: another view of the forgotten classes
    old = dataclasses.replace(RETRAINED, cka=0.97, readable=0.95)
    assert "weights" in limits.believed(old, 0.1) and limits.believed(old, 0.3) is None
    of_samples = dataclasses.replace(RETRAINED, readable=math.nan)
    assert [limits.believed(dataclasses.replace(of_samples, cka=c), 0.1) is None for c in (0.98, 0.99)] == [True, False]
    assert why(0.999, 0.0, frozen_body=True) is None


# ---- a small world -------------------------------------------------------------------------------------------------------------------


def blobs(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(7)
    centres = 1.1 * torch.randn(6, 10, generator=g)
    g.manual_seed(seed)
    y = torch.arange(n) % 6
    return centres[y] + torch.randn(n, 10, generator=g), y


def fit(pair, seed: int, width: int = 64, steps: int = 250) -> nn.Module:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(10, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 6))
    optimiser = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(steps):
        optimiser.zero_grad()
        F.cross_entropy(net(pair[0]), pair[1]).backward()
        optimiser.step()
    optimiser.zero_grad()
    return net.eval()


@pytest.fixture(scope="module")
def classes():
    (x, y), test = blobs(900, 1), blobs(600, 2)
    gone = y == 2
    sets = {"forget": (x[gone], y[gone]), "retain": (x[~gone], y[~gone]), "test": test}
    original = fit((x, y), 0)
    suppressed = copy.deepcopy(original)
    with torch.no_grad():
        suppressed[4].bias[2] -= 30
        for p in suppressed[:4].parameters():
            p.add_(0.02 * p.std() * torch.randn(p.shape))
    models = {"original": original, "suppressed": suppressed, "retrained": fit(sets["retain"], 1), "again": fit(sets["retain"], 2)}
    models |= {"wide": fit(sets["retain"], 3, width=96), "parallel": nn.DataParallel(models["again"])}
    return below.measure(models, original=original, **sets, forgotten=[2], near=[0, 1], relearning=True)


def test_classes(classes):
    for name, wanted in (("original", "PARTIAL"), ("suppressed", "PARTIAL"), ("again", "PASS"), ("wide", "PASS"), ("parallel", "PASS")):
        findings = limits.judge(classes[name], classes["original"], [classes["retrained"]], class_wise=True)
        assert max(statuses(findings), key=("PASS", "PARTIAL").index) == wanted, (name, findings)
    assert classes["original"].class_cka == pytest.approx(1.0)
    assert classes["parallel"] == classes["again"]
    assert classes["suppressed"].relearned.keys() == {1, 5, 10} and 0 < classes["again"].neighbours <= 1
    assert list(classes["again"].reasons) == ["new_head_auc"]


def test_samples():
    g = torch.Generator().manual_seed(3)
    x, y = torch.randn(500, 10, generator=g), torch.randint(0, 6, (500,), generator=g)
    sets = {"forget": (x[:80], y[:80]), "retain": (x[80:300], y[80:300]), "test": (x[300:], y[300:])}
    original = fit((x[:300], y[:300]), 0, steps=400)
    models = {"original": original, "retrained": fit(sets["retain"], 1, steps=400), "again": fit(sets["retain"], 2, steps=400)}
    found = below.measure(models, original=original, **sets)
    judged = {name: statuses(limits.judge(found[name], found["original"], [found["retrained"]], class_wise=False)) for name in models}
    assert judged == {"original": ["PARTIAL"] * 3, "retrained": ["PASS"] * 3, "again": ["PASS"] * 3}


class Lowering(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.inner(x).clone()
        z[:, 2] = z.amin(1) - 1
        return z


def test_structure_sees_wrappers_hooks_buffers_and_replaced_forwards():
    def net(width: int = 8) -> nn.Module:
        return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3))

    one = net()
    assert structure.difference(net(16), one) is None
    assert structure.difference(torch.compile(net(), backend="eager"), one) is None
    assert structure.difference(Lowering(net()), one) == "the model: Lowering, in the other Sequential"
    hooked = net()
    hooked.register_forward_hook(lambda m, i, o: o - 1)
    assert structure.difference(hooked, one) == "the model: forward hooks 1, in the other 0"
    holding = net()
    holding[0].register_buffer("known", torch.zeros(2))
    assert structure.difference(holding, one) == "module 0: buffers known, in the other none"
    replaced = net()
    replaced.forward = lambda x: x
    assert structure.difference(replaced, one) == "the model: own methods forward, in the other none"
    called = net()
    called[0]._call_impl = one[0]._call_impl
    assert structure.difference(called, one) == "module 0: own methods _call_impl, in the other none"
    assert structure.difference(nn.Sequential(*one, nn.Linear(3, 3)), one) == "module 3 (Linear) is in one model only"
    without = nn.Sequential(nn.Linear(4, 8, bias=False), nn.ReLU(), nn.Linear(8, 3))
    assert structure.difference(without, one) == "module 0: parameters weight, in the other weight, bias"
