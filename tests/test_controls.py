"""Negative controls: they are what they claim to be, the audit tells them, and says so when it can't."""

from __future__ import annotations

import json

import pytest
import torch
from digits_world import World, fit, small_cnn, small_mlp, trace
from torch import nn

import fastforget as ff
from fastforget._weights import fingerprint
from fastforget.auditing.controls import controls
from fastforget.auditing.measure.weights import weight_distance
from fastforget.auditing.names import CONTROL_MEANING

CLASS = 3


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def sets(world: World) -> dict:
    forget, retain = (world.part(world.train, [CLASS], inside) for inside in (True, False))
    return {"forget": forget, "retain": retain}


def retrained_again(world: World, kind: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return fit(small_cnn() if kind == "cnn" else small_mlp(), *sets(world)["retain"])


@pytest.fixture(scope="module", params=["cnn", "mlp"])
def audited(world: World, request):
    models = {
        "original": world.net(request.param),
        "unlearned": retrained_again(world, request.param),
        "retrained": world.net(request.param, (CLASS,)),
    }
    return ff.audit(models, **sets(world), test=world.test, controls=True)


def test_every_control_behaves_and_a_retrained_model_passes(audited) -> None:
    assert list(audited.controls) == [*CONTROL_MEANING, "retrained"]
    assert all(entry["behaved"] is True for entry in audited.controls.values())
    status = {name: entry["status"] for name, entry in audited.controls.items()}
    assert status == dict.fromkeys(CONTROL_MEANING, "FAIL") | {"retrained": "PASS"}
    assert audited.verdict == "PASS"


def test_controls_are_listed_apart(audited) -> None:
    assert [row["model"] for row in audited.rows] == ["original", "unlearned", "retrained"]
    assert [row["model"] for row in audited.control_rows] == list(CONTROL_MEANING)
    assert all(row["control"] for row in audited.control_rows) and not any(row["control"] for row in audited.rows)
    assert [row["model"] for row in audited.judged()] == ["unlearned"]
    # drawn beside the others where a reader asks for them
    assert list(audited.curves["loss"]["share"]) == ["original", "unlearned", "retrained", *CONTROL_MEANING]
    assert list(audited.curves["roc"]["forget_vs_test"]["loss"]) == ["original", "unlearned", "retrained", *CONTROL_MEANING]
    assert not any(name in reason for name in CONTROL_MEANING for reason in audited.reasons)
    for name in CONTROL_MEANING:
        assert f"control {name}: FAIL, as it must" in str(audited)
    written = json.loads(json.dumps(audited.to_dict()))
    assert written["controls"]["suppressed"] == {"status": "FAIL", "behaved": True} and len(written["control_rows"]) == len(CONTROL_MEANING)
    assert audited.row("suppressed")["accuracy"]["test_forget"] == 0


def test_a_control_that_passes_costs_the_audit_its_trust(world: World) -> None:
    again = retrained_again(world, "mlp")
    models = {"original": world.net("mlp"), "unlearned": again, "retrained": world.net("mlp", (CLASS,))}
    report = ff.audit(models, **sets(world), test=world.test, controls={"mine": again})
    assert report.row("unlearned")["status"] == "PASS" and report.verdict == "PARTIAL"
    assert report.controls["mine"] == {"status": "PASS", "behaved": False}
    assert "can't be trusted" in report.reasons[0] and "can't be trusted" in str(report)
    positive = ff.audit(models, **sets(world), test=world.test, controls={"retrained_2": again, "same": world.net("mlp")})
    assert positive.verdict == "PASS" and all(entry["behaved"] for entry in positive.controls.values())
    broken = ff.audit(models, **sets(world), test=world.test, controls={"retrained_2": world.net("mlp")})
    assert broken.controls["retrained_2"]["behaved"] is False and broken.verdict == "PARTIAL"


def test_without_a_reference_no_control_is_judged(world: World) -> None:
    report = ff.audit({"original": world.net("mlp")}, **sets(world), test=world.test, controls=True)
    assert report.verdict == "NO REFERENCE"
    assert all(entry == {"status": "NO REFERENCE", "behaved": None} for entry in report.controls.values())
    assert "control untouched: NO REFERENCE, not judged" in str(report)


def test_controls_that_were_not_asked_for_are_not_made(world: World) -> None:
    report = ff.audit({"original": world.net("mlp")}, **sets(world), test=world.test)
    assert report.controls == {} and report.control_rows == [] and "control " not in str(report)


def test_bad_controls_name_themselves(world: World) -> None:
    net = world.net("mlp")
    rest = {**sets(world), "test": world.test}
    with pytest.raises(ValueError, match="controls: True needs the model named"):
        ff.audit({"unlearned": net}, **rest, controls=True)
    with pytest.raises(TypeError, match="controls: got list"):
        ff.audit({"original": net}, **rest, controls=[net])
    with pytest.raises(TypeError, match="controls: got dict"):
        ff.audit({"original": net}, **rest, controls={"a": net.state_dict()})
    with pytest.raises(ValueError, match="controls: 'untouched' is also the name of a model"):
        ff.audit({"original": net, "untouched": net}, **rest, controls=True)
    with pytest.raises(TypeError, match="original: got OrderedDict"):
        controls(net.state_dict(), **sets(world))
    with pytest.raises(ValueError, match="original: has no parameters"):
        controls(nn.Flatten(), **sets(world))
    with pytest.raises(ValueError, match=r"classes: got \[11\]; accepted are ids from 0 to 9"):
        controls(net, **sets(world), classes=[11])


# ------------------------------------------------------------------ what each one is


def test_the_original_and_the_random_state_are_left_alone(world: World) -> None:
    net = world.net("cnn").train()
    net[0].eval()
    next(iter(net.parameters())).requires_grad_(False)
    before, state = trace(net), torch.random.get_rng_state()
    made = controls(net, **sets(world))
    assert trace(net) == before and torch.equal(torch.random.get_rng_state(), state)
    for control in made.values():
        assert [m.training for m in control.modules()] == before[1]
        assert [p.requires_grad for p in control.parameters()] == before[2]
        assert all(p.grad is None for p in control.parameters())


def test_same_seed_same_bytes(world: World) -> None:
    first, second, other = (controls(world.net("cnn"), **sets(world), seed=seed) for seed in (1, 1, 2))
    assert {n: fingerprint(m) for n, m in first.items()} == {n: fingerprint(m) for n, m in second.items()}
    assert [n for n in first if fingerprint(first[n]) == fingerprint(other[n])] == ["untouched", "suppressed"]


def test_the_suppressed_model_differs_in_its_last_layer_only(world: World) -> None:
    net = world.net("cnn")
    x = world.test[0]
    with torch.no_grad():
        made = controls(net, **sets(world))["suppressed"](x)
        was = net(x)
    assert not bool((made.argmax(1) == CLASS).any())
    rest = [c for c in range(10) if c != CLASS]
    assert torch.equal(made[:, rest], was[:, rest])
    assert len((was - made)[:, CLASS].round(decimals=2).unique()) == 1  # one constant: the logit still tells the class


def test_a_last_layer_without_bias_is_suppressed_too(world: World) -> None:
    net = fit(nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10, bias=False)), *world.train, epochs=3)
    made = controls(net, **sets(world))["suppressed"]
    with torch.no_grad():
        assert not bool((made(world.test[0]).argmax(1) == CLASS).any())
    moved = {layer.layer: layer.l2 for layer in weight_distance(made, net).layers}
    assert moved["1"] == 0 and moved["3"] > 0


def test_no_layer_with_a_row_for_each_class_no_suppressed_control(world: World) -> None:
    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Flatten(), nn.Linear(64, 12))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x)[:, :10]

    assert list(controls(Padded(), **sets(world))) == ["untouched", "random", "fine_tuned"]


def test_sample_wise_requests_have_no_suppressed_control(world: World) -> None:
    x, y = world.train
    made = controls(world.net("mlp"), forget=(x[:50], y[:50]), retain=(x[50:], y[50:]))
    assert list(made) == ["untouched", "random", "fine_tuned"]


def test_random_weights_keep_nothing_of_the_original(world: World) -> None:
    class Odd(nn.Module):
        """Weights that no reset reaches: a free-standing parameter and a parametrised one."""

        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.randn(64))
            self.ones = nn.Parameter(torch.ones(3))
            self.layer = torch.nn.utils.parametrizations.weight_norm(nn.Linear(64, 10))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x.flatten(1) * self.scale)

    net = Odd()
    made = dict(controls(net, **sets(world))["random"].named_parameters())
    same = [name for name, p in net.named_parameters() if torch.equal(p, made[name])]
    assert same == ["ones"]
    assert made["scale"].std().item() == pytest.approx(net.scale.std().item(), rel=0.5)
    cnn = controls(world.net("cnn"), **sets(world))["random"]
    assert float(cnn[1].running_mean.abs().max()) == 0  # batch statistics are reset as well


def test_a_maker_of_random_networks_is_used(world: World) -> None:
    torch.manual_seed(1)
    fresh = small_mlp()
    assert controls(world.net("mlp"), **sets(world), make_random=lambda: fresh)["random"] is fresh


def test_fine_tuning_moves_a_frozen_model_too_but_little(world: World) -> None:
    net = world.net("cnn")
    for p in net.parameters():
        p.requires_grad_(False)
    moved = weight_distance(controls(net, **sets(world))["fine_tuned"], net)
    assert 0 < moved.relative < 0.05


def test_models_with_their_own_call_and_loaders(world: World) -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = world.net("mlp")

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"logits": self.inner(x)}

    def loader(data):
        return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data), batch_size=33)

    made = controls(Wrapped(), **{k: loader(v) for k, v in sets(world).items()}, forward=lambda m, x: m(x)["logits"])
    assert list(made) == list(CONTROL_MEANING) and made["suppressed"].inner[3].bias[CLASS] < -1
