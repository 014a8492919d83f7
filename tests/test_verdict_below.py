"""What the verdict makes of models that are dressed up, built otherwise or not to be compared, and of false references."""

from __future__ import annotations

import copy
import dataclasses
import json
import math

import pytest
import torch
from audit_world import CLASSES, FEATURES, FORGOTTEN, World, fit
from torch import nn

import fastforget as ff
from fastforget.auditing import answers, verdict
from fastforget.auditing.figures import ModelRow
from fastforget.auditing.proof.receipt import own_hash
from fastforget.auditing.proof.verify import check


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.fixture(scope="module")
def rows(world: World) -> dict[str, ModelRow]:
    return {row.model: row for row in world.audit(unlearned=world.retrained_again).figures}


def audited(world: World, models: dict[str, nn.Module], **options) -> ff.audit.AuditReport:
    sets = {"forget": world.forget, "retain": world.retain, "test": world.test}
    return ff.audit({"original": world.original, "retrained": world.retrained, **models}, **sets, **options)


def findings(report: ff.audit.AuditReport, model: str = "unlearned") -> list[str]:
    return [reason for reason in report.row(model)["reasons"] if not reason.startswith("PASS")]


def with_noise(model: nn.Module, share: float, original: nn.Module, retrained: nn.Module) -> nn.Module:
    """Moves the body by a share of what retraining moves it."""
    model, g = copy.deepcopy(model), torch.Generator().manual_seed(0)
    moved = [a - b for a, b in zip(original[:-1].parameters(), retrained[:-1].parameters(), strict=True)]
    noise = [torch.randn(p.shape, generator=g) for p in model[:-1].parameters()]
    size, unit = (math.sqrt(sum(float((t.detach() ** 2).sum()) for t in tensors)) for tensors in (moved, noise))
    with torch.no_grad():
        for p, n in zip(model[:-1].parameters(), noise, strict=True):
            p.add_(n * share * size / unit)
    return model


def row_negated(world: World) -> nn.Module:
    model = copy.deepcopy(world.original)
    with torch.no_grad():
        model[2].weight[FORGOTTEN].mul_(-0.3)
        model[2].bias[FORGOTTEN] -= 8
    return model


def new_head(world: World, seed: int) -> nn.Module:
    model = copy.deepcopy(world.original)
    torch.manual_seed(seed)
    model[2] = nn.Linear(64, CLASSES)
    optimiser = torch.optim.Adam(model[2].parameters(), 1e-2)
    for _ in range(120):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(world.retain[0]), world.retain[1]).backward()
        optimiser.step()
    for p in model.parameters():
        p.grad = None
    return model


# ------------------------------------------------------------------ dressed up


def test_an_old_body_under_a_dressed_head_never_passes(world: World) -> None:
    models = {"row": row_negated(world), "head": new_head(world, 5)}
    models = {name: with_noise(model, 0.05, world.original, world.retrained) for name, model in models.items()}
    report = audited(world, models)
    assert report.row("row")["accuracy"]["test_forget"] == 0
    for name in models:
        assert report.row(name)["status"] != "PASS"
        assert all(any(word in reason for reason in findings(report, name)) for word in ("(CKA)", "read off"))
    assert report.row("retrained")["status"] == "PASS"


def test_only_the_last_layer_or_only_biases_fail_whoever_gives_them(world: World) -> None:
    biases = copy.deepcopy(world.original)
    with torch.no_grad():
        biases[0].bias.add_(0.1)
        biases[2].bias[FORGOTTEN] -= 20
    report = audited(world, {"biases": biases, "head": new_head(world, 5)})
    assert any(reason.startswith("FAIL: only biases were changed") for reason in findings(report, "biases"))
    assert any(reason.startswith("FAIL: only the last layer (2) was changed") for reason in findings(report, "head"))
    assert report.row("biases")["weight_distance"]["original"]["biases_only"] is True
    assert report.row("head")["weight_distance"]["original"]["biases_only"] is False


def test_a_model_of_one_layer_has_nothing_below_its_answers(world: World) -> None:
    def linear(data, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(FEATURES, CLASSES))
        optimiser = torch.optim.Adam(net.parameters(), 1e-1)
        for _ in range(100):
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(data[0]), data[1]).backward()
            optimiser.step()
        return net

    everything = tuple(torch.cat(parts) for parts in zip(world.forget, world.retain, strict=True))
    original, again = linear(everything, 0), linear(world.retain, 2)
    suppressed = copy.deepcopy(original)
    with torch.no_grad():
        suppressed[0].bias[FORGOTTEN] -= 20
    models = {"original": original, "again": again, "suppressed": suppressed, "retrained": linear(world.retain, 1)}
    report = audited(world, models)
    assert report.row("again")["status"] == "PASS" and "one layer" in report.row("again")["below"]["reasons"]["class_cka"]
    assert any("only biases" in reason for reason in findings(report, "suppressed"))


# ------------------------------------------------------------------ what can't be compared


class Lowered(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.inner(x).clone()
        z[:, FORGOTTEN] = z.amin(1) - 1
        return z


def test_a_wrapper_is_at_most_partial_and_the_usual_ones_are_none(world: World) -> None:
    models = {"wrapped": Lowered(world.retrained_again), "parallel": nn.DataParallel(world.retrained_again)}
    models["compiled"] = torch.compile(world.retrained_again, backend="eager")
    report = audited(world, models)
    assert report.row("wrapped")["status"] == "PARTIAL"
    assert any("built otherwise than the original" in reason for reason in findings(report, "wrapped"))
    assert [report.row(name)["status"] for name in ("parallel", "compiled")] == ["PASS", "PASS"]


def test_another_width_is_no_other_structure(world: World) -> None:
    report = audited(world, {"wide": fit(world.retain, 3, width=96), "narrow": fit(world.retain, 4, width=40)})
    assert [report.row(name)["status"] for name in ("wide", "narrow")] == ["PASS", "PASS"]
    assert "has shape" in report.row("wide")["weight_distance"]["original"]["reason"]


@pytest.mark.filterwarnings("ignore")
def test_quantised_models_are_at_most_partial_and_the_reason_is_said(world: World) -> None:
    def quantised(model: nn.Module) -> nn.Module:
        return torch.ao.quantization.quantize_dynamic(copy.deepcopy(model).eval(), {nn.Linear}, dtype=torch.qint8)

    nets = {"original": world.original, "unlearned": world.retrained_again, "retrained": world.retrained}
    report = audited(world, {name: quantised(model) for name, model in nets.items()})
    assert report.verdict == "PARTIAL" and any("can't be compared with the original's" in reason for reason in findings(report))


class Unread(nn.Module):
    """A network whose logits are no layer's output."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.net[1](self.net[0](x))
        return hidden @ self.net[2].weight.T + self.net[2].bias


def test_features_that_cant_be_read_have_not_passed(world: World) -> None:
    nets = {"original": world.original, "unlearned": world.retrained_again, "retrained": world.retrained}
    report = audited(world, {name: Unread(net) for name, net in nets.items()})
    assert report.verdict == "PARTIAL" and "no layer's output" in report.row("unlearned")["below"]["reasons"]["class_cka"]
    assert all("can't be measured" in reason for reason in findings(report))


def test_a_class_that_nobody_knew_was_not_forgotten(world: World) -> None:
    """The original's features are its own although it knows nothing; that tells no knowledge."""
    nets = {}
    for name, seed in (("original", 1), ("unlearned", 2), ("retrained", 3)):
        torch.manual_seed(seed)
        nets[name] = nn.Sequential(nn.Linear(FEATURES, 64), nn.ReLU(), nn.Linear(64, CLASSES))
        with torch.no_grad():
            nets[name][2].bias[FORGOTTEN] -= 30
    report = audited(world, nets)
    assert report.verdict != "PASS" and any("can't tell the original from the retrained model" in r for r in report.reasons)


# ------------------------------------------------------------------ references


def test_a_reference_with_the_originals_body_is_not_believed(world: World) -> None:
    models = {"unlearned": new_head(world, 2), "retrained": new_head(world, 1)}
    report = audited(world, models, controls=True)
    assert report.verdict == "FAIL" and any("not believed to be retrained" in reason for reason in findings(report))
    assert report.row("retrained")["status"] == "FAIL"
    # by the caller's word it is what retraining gives
    report = audited(world, models, frozen_body=True)
    assert report.verdict == "PASS" and not any("believed" in reason for reason in findings(report))


def test_a_reference_that_was_only_moved_a_little_is_not_believed(world: World) -> None:
    fake = with_noise(new_head(world, 1), 0.03, world.original, world.retrained)
    report = audited(world, {"unlearned": world.retrained_again, "retrained": fake})
    assert report.verdict == "PARTIAL"
    assert any("features are nearly the original's" in reason for reason in findings(report))


def test_further_retrained_models_are_references_and_a_false_one_is_told(world: World) -> None:
    honest = {"retrained, seed 3": fit(world.retain, 3), "retrained, wide": fit(world.retain, 4, width=96)}
    report = audited(world, {"unlearned": world.retrained_again, **honest})
    assert [row["model"] for row in report.judged()] == ["unlearned"] and report.verdict == "PASS"
    assert all(report.row(name)["status"] == "PASS" for name in honest)
    assert [row["model"] for row in report.rows] == ["original", "unlearned", *honest, "retrained"]
    report = audited(world, {"unlearned": row_negated(world), **honest, "retrained, false": world.original})
    assert any("'retrained, false' is not believed" in reason for reason in findings(report)) and report.verdict == "FAIL"
    # one that still answers the class did not forget, whatever its weights
    everything = tuple(torch.cat(parts) for parts in zip(world.forget, world.retain, strict=True))
    report = audited(world, {"unlearned": world.retrained_again, "retrained, all data": fit(everything, 7)})
    assert report.verdict == "PARTIAL" and any("it did not forget" in reason for reason in findings(report))


def test_the_nearest_of_several_references_counts(rows: dict[str, ModelRow]) -> None:
    row, original, retrained = (copy.deepcopy(rows[name]) for name in ("unlearned", "original", "retrained"))
    row.accuracy["test_retain"].value -= 0.12
    other = copy.deepcopy(retrained)
    other.model, other.accuracy["test_retain"].value = "retrained 2", row.accuracy["test_retain"].value
    assert verdict.judge(row, original, retrained)[0] != "PASS"
    status, reasons = verdict.judge(row, original, retrained, further=[other])
    assert status == "PASS" and any("(beside 'retrained 2', the nearest)" in reason for reason in reasons)


# ------------------------------------------------------------------ both sides


@pytest.mark.parametrize(("auc", "status"), [(0.52, "PASS"), (0.42, "PARTIAL"), (0.06, "FAIL"), (0.95, "FAIL")])
def test_samples_that_stand_out_are_not_forgotten(rows: dict[str, ModelRow], auc: float, status: str) -> None:
    case = [copy.deepcopy(rows[name]) for name in ("unlearned", "original", "retrained")]
    for row, value in zip(case, (auc, 0.7, 0.5), strict=True):
        loss = row.attacks["forget_vs_test"]["loss"]
        loss.auc.value, loss.auc_standard_error = value, 0.01
    found = answers.check_forgetting(verdict.Case(*case))
    assert [s for s, text in found if "loss-attack AUC" in text] == [status]
    if auc < 0.5:
        assert any("stand out" in text for _, text in found)


# ------------------------------------------------------------------ figures, lines


def test_the_figures_are_in_rows_and_lines(world: World) -> None:
    report = audited(world, {"unlearned": world.retrained_again})
    row = report.row("unlearned")["below"]
    assert 0 < row["class_cka"] < 1 and set(row["relearned"]) == {1, 5, 10} and row["moved"] > 0.5
    assert report.row("original")["below"]["class_cka"] == 1.0 and report.settings["near_classes"]
    assert row["neighbours"] == pytest.approx(
        sum(report.row("unlearned")["class_accuracy"]["test"][c] for c in report.settings["near_classes"]) / 2
    )
    labels = [label for label, _, group in report.table() if group == "below the answers"]
    assert labels == [
        "features like those of the original, CKA",
        "features of the original read off its own",
        "linear probe for the class, AUC",
        "class relearned from 1, 5, 10 samples",
        "accuracy on the nearest kept classes",
    ]
    again = ModelRow.from_dict(report.row("unlearned"))
    assert again.below is not None and again.below.to_dict() == row
    assert report.figures_of("unlearned").below == dataclasses.replace(again.below)


def test_models_are_left_as_they_are_and_the_seed_gives_the_same_figures(world: World) -> None:
    model = copy.deepcopy(world.retrained_again).train()
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1), always_call=False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    reports = [audited(world, {"unlearned": model}) for _ in range(2)]
    assert torch.equal(state, torch.get_rng_state()) and model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert reports[0].row("unlearned")["below"] == reports[1].row("unlearned")["below"]
    # a hook can hold a rule of its own
    assert reports[0].row("unlearned")["status"] == "PARTIAL" and "hooks" in reports[0].row("unlearned")["below"]["structure"]


# ------------------------------------------------------------------ receipts


def sealed(receipt: dict) -> dict:
    return {**receipt, "sha256": own_hash(receipt)}


def wrong(receipt: dict) -> list[str]:
    return [one.field for one in check(sealed(receipt), weights={}) if one.why]


@pytest.fixture(scope="module")
def receipt(world: World) -> dict:
    return audited(world, {"unlearned": world.retrained_again}).receipt()


ROW = "rows.unlearned"
CHANGES = {
    "all figures left out": (lambda row: row.pop("below"), f"{ROW}.figures"),
    "one left out": (lambda row: row["below"].pop("probe_auc"), "receipt"),
    "another likeness": (lambda row: row["below"].update(class_cka=0.2), f"{ROW}.reasons"),
    "an AUC of no pairs": (lambda row: row["below"].update(noised_auc=0.51234567), f"{ROW}.figures"),
    "a figure made a reason": (lambda row: row["below"].update(probe_auc=None, reasons={"probe_auc": "why"}), f"{ROW}.status"),
    "a value less": (lambda row: row["below"].update(cka=None), f"{ROW}.figures"),
    "a reason more": (lambda row: row["below"]["reasons"].update(cka="why"), f"{ROW}.figures"),
    "other samples": (lambda row: row["below"].update(members=99, others=301), f"{ROW}.figures"),
    "a relearned share": (lambda row: row["below"]["relearned"].update({"5": 0.123}), f"{ROW}.figures"),
    "neighbours": (lambda row: row["below"].update(neighbours=0.01), f"{ROW}.figures"),
    "another structure": (lambda row: row["below"].update(structure="hooks"), f"{ROW}.status"),
    "weights that never moved": (lambda row: row["weight_distance"]["original"].update(biases_only=True), f"{ROW}.status"),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_altered_or_deleted_figures_are_named(receipt: dict, kind: str) -> None:
    assert wrong(receipt) == []
    changed = json.loads(json.dumps(receipt))
    change, field = CHANGES[kind]
    change(next(row for row in changed["rows"] if row["model"] == "unlearned"))
    assert field in wrong(changed)


def test_the_auditors_word_stays_a_word(world: World, receipt: dict) -> None:
    claimed = json.loads(json.dumps(receipt))
    claimed["settings"]["frozen_body"] = True
    assert f"{ROW}.reasons" in wrong(claimed)
    honest = audited(world, {"unlearned": world.retrained_again}, frozen_body=True).receipt()
    findings_of = check(honest, weights={})
    assert not any(one.why for one in findings_of)
    assert any(one.field == "settings.frozen_body" and "word" in one.unchecked for one in findings_of)


def test_the_same_figures_whatever_the_order_of_the_samples(world: World, receipt: dict) -> None:
    """Noise, halves and the samples that are shown go by what the samples are."""
    order = {name: torch.randperm(len(getattr(world, name)[1])) for name in ("forget", "retain", "test")}
    sets = {name: tuple(part[order[name]] for part in getattr(world, name)) for name in order}
    models = {"original": world.original, "unlearned": world.retrained_again, "retrained": world.retrained}
    row = ff.audit(models, **sets).row("unlearned")["below"]
    stated = next(one for one in receipt["rows"] if one["model"] == "unlearned")["below"]
    for name in ("class_cka", "readable", "probe_auc", "noised_auc", "halves_auc", "neighbours"):
        assert row[name] == pytest.approx(stated[name], abs=1e-4), name
    assert list(row["relearned"].values()) == pytest.approx(list(stated["relearned"].values()), abs=0.011)
