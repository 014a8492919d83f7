"""The audit's probes of the logits, each against plain arithmetic."""

from __future__ import annotations

import math

import pytest
import torch
from audit_world import FORGOTTEN, World
from torch import nn

from fastforget.auditing.measure import divergences as dv
from fastforget.auditing.measure import probes


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
    measured = probes.margins(logits, torch.tensor([0, 3]))
    for row, values in zip(logits.tolist(), measured.tolist(), strict=True):
        for c, value in zip((0, 3), values, strict=True):
            assert value == pytest.approx(row[c] - max(row[:c] + row[c + 1 :]))


def test_class_logit_auc_sees_below_a_suppressed_output(world: World) -> None:
    report = world.audit(unlearned=Suppressed(world.original))
    x, y = world.test
    for row, model in zip(report.rows, (world.original, None, world.retrained), strict=True):
        measured = row["probes"]["class_logit_auc"]
        low, high = measured["interval"]
        assert measured["reason"] is None and measured["worst_class"] == FORGOTTEN and low < measured["value"] < high
        if model is not None:
            with torch.no_grad():
                z = model(x).double()
            margin = z[:, FORGOTTEN] - z[:, [c for c in range(4) if c != FORGOTTEN]].amax(1)
            inside, outside = margin[y == FORGOTTEN, None], margin[y != FORGOTTEN]
            expected = ((inside > outside).double() + 0.5 * (inside == outside).double()).mean().item()
            assert measured["value"] == pytest.approx(expected, abs=1e-6)
    original, suppressed, retrained = (row["probes"]["class_logit_auc"]["value"] for row in report.rows)
    assert suppressed == pytest.approx(original, abs=1e-6) and original > 0.9 and retrained < 0.75
    assert report.row("unlearned")["accuracy"]["test_forget"] == 0
    assert "forgotten class told by its logit" in str(report)


def test_class_logit_auc_says_why_not(world: World) -> None:
    (x, y), (kx, ky) = world.forget, world.retain
    sample_wise = world.audit(forget=(kx[:50], ky[:50]), retain=(torch.cat([x, kx[50:]]), torch.cat([y, ky[50:]])))
    measured = sample_wise.row("original")["probes"]["class_logit_auc"]
    assert math.isnan(measured["value"]) and measured["interval"] is None and "sample-wise" in measured["reason"]
    tx, ty = world.test
    for keep, why in ((ty != FORGOTTEN, "no sample of a forgotten class"), (ty == FORGOTTEN, "no sample of a kept class")):
        one_class = world.audit(test=(tx[keep], ty[keep]))
        assert why in one_class.row("original")["probes"]["class_logit_auc"]["reason"]


def test_worst_of_several_forgotten_classes(world: World) -> None:
    keep = world.retain[1] != 0
    forget = tuple(torch.cat((a, b[~keep])) for a, b in zip(world.forget, world.retain, strict=True))
    report = world.audit(forget=forget, retain=tuple(part[keep] for part in world.retain))
    measured = report.row("retrained")["probes"]["class_logit_auc"]
    assert set(measured["by_class"]) == {0, FORGOTTEN} and measured["worst_class"] == 0
    assert measured["value"] == max(measured["by_class"].values())
    x, y = world.test
    with torch.no_grad():
        z = world.retrained(x)
    kept = (y != 0) & (y != FORGOTTEN)  # the other forgotten class is no kept one
    for c, value in measured["by_class"].items():
        margin = probes.margins(z, torch.tensor([c]))[:, 0]
        assert value == pytest.approx((margin[y == c, None] > margin[kept]).double().mean().item(), abs=1e-6)


# ------------------------------------------------------------------ beside the retrained model and a teacher


def softmax(row: list[float]) -> list[float]:
    top = max(row)
    parts = [math.exp(z - top) for z in row]
    return [part / math.fsum(parts) for part in parts]


def kl(p: list[float], q: list[float]) -> float:
    return math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def js(p: list[float], q: list[float]) -> float:
    m = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
    return (kl(p, m) + kl(q, m)) / 2


def badt(p: list[float], q: list[float]) -> float:
    m = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
    return 1 - (kl(m, p) + kl(m, q)) / (2 * len(p))


SLOW = {
    "js": js,
    "nats": lambda p, q: 1 - js(p, q),
    "bits": lambda p, q: 1 - js(p, q) / math.log(2),
    "badt": badt,
    "l1": lambda p, q: math.fsum(abs(a - b) for a, b in zip(p, q, strict=True)),
    "l2": lambda p, q: math.sqrt(math.fsum((a - b) ** 2 for a, b in zip(p, q, strict=True))),
}
FAST = {
    "js": dv.js_divergence,
    "nats": dv.zrf,
    "bits": lambda a, b: dv.zrf(a, b, "bits"),
    "badt": lambda a, b: dv.zrf(a, b, "badt"),
    "l1": lambda a, b: dv.activation_distance(a, b, norm=1),
    "l2": dv.activation_distance,
}


@pytest.mark.parametrize("name", SLOW)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_every_convention_is_its_formula(name: str, dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(0)
    a, b = (4 * torch.randn(50, 7, generator=g)).to(dtype), torch.randn(50, 7, generator=g).to(dtype)
    measured = FAST[name](a, b)
    assert measured.dtype == torch.float64
    for fast, p, q in zip(measured.tolist(), a.double().tolist(), b.double().tolist(), strict=True):
        assert fast == pytest.approx(SLOW[name](softmax(p), softmax(q)), abs=1e-13)


def test_the_published_zrf_is_not_the_definition() -> None:
    """The mean over the classes lifts it: models that are as far apart as can be still look all but forgotten."""
    far = torch.tensor([[9.0] + [0.0] * 9]), torch.tensor([[0.0] * 9 + [9.0]])
    assert dv.zrf(*far, "bits").item() < 0.02
    assert dv.zrf(*far).item() == pytest.approx(1 - math.log(2), abs=0.02)
    assert dv.zrf(*far, "badt").item() > 0.5


def test_certain_answers_are_measured_too() -> None:
    # float32 softmax is exactly 0 from a gap of 104 on, and 0 log 0 is NaN
    sure, other = torch.tensor([[300.0, 0.0, -math.inf]]), torch.tensor([[0.0, 300.0, -math.inf]])
    assert dv.js_divergence(sure, other).item() == pytest.approx(math.log(2))
    assert dv.js_divergence(sure, sure).item() == 0
    assert dv.zrf(sure, other, "badt").item() == pytest.approx(1 - (300 - 2 * math.log(2)) / 6, rel=1e-6)
    assert dv.zrf(torch.tensor([[0.0, -math.inf]]), torch.tensor([[0.0, 0.0]]), "badt").item() == -math.inf
    with pytest.raises(ValueError, match="others: got .*accepted are the logits"):
        dv.js_divergence(torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="logits: got"):
        dv.zrf(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="variant: got 'paper'"):
        dv.zrf(torch.zeros(2, 3), torch.zeros(2, 3), "paper")
    with pytest.raises(ValueError, match="norm"):
        dv.activation_distance(torch.zeros(2, 3), torch.zeros(2, 3), norm=3)


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    torch.manual_seed(11)
    return nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 4)).train()


@pytest.fixture(scope="module")
def report(world: World, teacher: nn.Module):
    return world.audit(unlearned=world.retrained_again, teacher=teacher, batch_size=33)


def test_probes_in_the_audit_are_those_of_the_whole_forget_set(world: World, teacher: nn.Module, report) -> None:
    x, _ = world.forget
    with torch.no_grad():
        z = {"original": world.original(x), "unlearned": world.retrained_again(x), "retrained": world.retrained(x)}
        z["teacher"] = teacher.eval()(x)
    teacher.train()
    for name in ("original", "unlearned"):
        measured = report.row(name)["probes"]
        expected = {
            "js_to_retrained": dv.js_divergence(z[name], z["retrained"]),
            "activation_distance": dv.activation_distance(z[name], z["retrained"]),
            "activation_distance_l1": dv.activation_distance(z[name], z["retrained"], norm=1),
            "zrf": dv.zrf(z[name], z["teacher"]),
            "zrf_bits": dv.zrf(z[name], z["teacher"], "bits"),
            "zrf_badt": dv.zrf(z[name], z["teacher"], "badt"),
        }
        for probe, values in expected.items():
            assert measured[probe]["value"] == pytest.approx(values.mean().item(), abs=1e-6), probe
            assert measured[probe]["reason"] is None and measured[probe]["convention"]
            error = 1.96 * values.std().item() / math.sqrt(len(values))
            low, high = measured[probe]["interval"]
            assert high == pytest.approx(values.mean().item() + error, abs=1e-4) and low <= values.mean() <= high
        means = [z[key].double().softmax(1).mean(0).tolist() for key in (name, "retrained")]
        assert measured["js_of_means_to_retrained"]["value"] == pytest.approx(js(*means), abs=1e-6)


def test_a_retrained_model_is_nearer_to_another_than_the_original_is(report) -> None:
    for probe in ("js_to_retrained", "js_of_means_to_retrained", "activation_distance", "activation_distance_l1"):
        original, unlearned = (report.row(name)["probes"][probe]["value"] for name in ("original", "unlearned"))
        assert 0 < unlearned < original / 4
        own = report.row("retrained")["probes"][probe]
        assert math.isnan(own["value"]) and own["reason"] == "it is the retrained model itself"


def test_teacher_sees_the_forget_set_once_and_stays_as_it_was(world: World, teacher: nn.Module, report) -> None:
    calls: list[tuple[int, bool]] = []
    hook = teacher.register_forward_hook(lambda module, args, out: calls.append((len(args[0]), module.training)))
    world.audit(unlearned=world.retrained_again, teacher=teacher, batch_size=33)
    hook.remove()
    assert calls == [(33, False)] * 3 + [(1, False)]
    assert teacher.training and teacher[2].training
    assert "ZRF" in str(report) and "ZRF" not in str(world.audit(unlearned=world.retrained_again))


def test_missing_partners_are_said(world: World) -> None:
    measured = world.audit(unlearned=world.retrained_again, reference=False).row("unlearned")["probes"]
    assert "no teacher" in measured["zrf"]["reason"] and math.isnan(measured["zrf"]["value"])
    assert 'no model named "retrained"' in measured["js_to_retrained"]["reason"]

    class Wide(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.pad(world.original(x), (0, 2), value=-9.0)

    measured = world.audit(unlearned=Wide()).row("unlearned")["probes"]
    assert "6 and 4 classes" in measured["js_to_retrained"]["reason"] and "6 and 4" in measured["js_of_means_to_retrained"]["reason"]
    assert measured["class_logit_auc"]["value"] > 0.9
    with pytest.raises(TypeError, match="teacher: got str"):
        world.audit(teacher="random")


def test_probes_are_strict_json(report, tmp_path) -> None:
    import json

    report.to_json(tmp_path / "r.json")
    read = json.loads((tmp_path / "r.json").read_text())
    assert read["rows"][2]["probes"]["js_to_retrained"]["value"] is None
    names = {"loss", "class_logit_auc", "js_to_retrained", "zrf_badt", "intervals", "mia_efficacy", "class_thresholds"}
    assert names <= set(read["settings"]["conventions_used"])
