"""The audit with real shadow models: a model that learned its forget set by heart, and one that never saw it."""

from __future__ import annotations

import math

import pytest
import torch
from audit_world import CLASSES, FEATURES, blobs
from torch import nn

import fastforget as ff
from fastforget.ops.membership import membership_scores

pytestmark = pytest.mark.skipif(not hasattr(ff.audit, "Shadows"), reason="ff.audit.shadows is not there")

# whatever the class, these are learned by heart: half of the labels are drawn at random
X, Y = blobs(160, 1)
DRAWN = torch.randint(CLASSES, (160,), generator=torch.Generator().manual_seed(5))
Y = torch.where(torch.arange(160) % 2 == 0, DRAWN, Y)
FORGET, RETAIN, TEST = ((X[part], Y[part]) for part in (slice(0, 30), slice(30, 80), slice(80, 160)))
POPULATION = blobs(60, 9)
SETS = {"forget": FORGET, "retain": RETAIN, "test": TEST}


def make_model(seed: int) -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 64), nn.ReLU(), nn.Linear(64, CLASSES))


def train(model: nn.Module, data, seed: int) -> None:
    """The targets and their shadows learn in the same way."""
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(150):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(data[0]), data[1]).backward()
        optimiser.step()


def fit(data, seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = make_model(seed)
    train(model, data, seed)
    return model


def ascend(model, forget, retain, seed):
    optimiser = torch.optim.SGD(model.parameters(), 0.3)
    (-nn.functional.cross_entropy(model(forget[0]), forget[1])).backward()
    optimiser.step()
    return model


@pytest.fixture(scope="module")
def shadows():
    options = {"train": train, "unlearn": ascend, "population": POPULATION, "keep_scores": True, "progress": False}
    return ff.audit.shadows(make_model, (X, Y), 16, **options)


@pytest.fixture(scope="module")
def models() -> dict[str, nn.Module]:
    return {"original": fit((X[:80], Y[:80]), 0), "unlearned": fit(RETAIN, 1), "retrained": fit(RETAIN, 0)}


@pytest.fixture(scope="module")
def report(shadows, models):
    return ff.audit(models, **SETS, shadows=shadows, population=POPULATION, attacks=("loss",))


ATTACKS = ("lira", "lira_offline", "rmia", "attack_r", "u_lira")


def test_every_attack_sees_the_original_and_not_the_retrained(report) -> None:
    assert report.settings["attacks"] == ["loss", *ATTACKS]
    for attack in ATTACKS:
        original, unlearned, retrained = (row["attacks"]["forget_vs_test"][attack] for row in report.rows)
        assert original["auc"] > 0.65 and original["auc_interval"][0] > 0.55, attack
        for near in (unlearned, retrained):
            assert abs(near["auc"] - 0.5) < 0.2 and near["auc_interval"][0] < 0.5 < near["auc_interval"][1], attack
    lira = {row["model"]: row["attacks"]["retain_vs_test"]["lira"]["auc"] for row in report.rows}
    assert min(lira.values()) > 0.65  # all of them were trained on the retain set


@pytest.mark.parametrize("attack", ATTACKS)
def test_figures_are_those_of_the_shadow_models_own_scores(report, shadows, models, attack: str) -> None:
    for name, model in models.items():
        with torch.no_grad():
            scored = {s: membership_scores(model(data[0]), data[1]) for s, data in {**SETS, "population": POPULATION}.items()}
        sides = [
            shadows.score(
                attack,
                index=shadows.locate(SETS[s]),
                logit_confidence=scored[s].logit_confidence,
                loss=scored[s].loss,
                population_loss=scored["population"].loss if attack == "rmia" else None,
            )
            for s in ("forget", "test")
        ]
        member, other = (side[~side.isnan()] for side in sides)
        auc = ((member[:, None] > other).double() + 0.5 * (member[:, None] == other).double()).mean().item()
        figures = report.row(name)["attacks"]["forget_vs_test"][attack]
        assert figures["auc"] == pytest.approx(auc, abs=1e-3)
        assert figures["undefined"] == sum(int(side.isnan().sum()) for side in sides)


def test_conventions_say_which_lira_this_is(report) -> None:
    used = report.settings["conventions_used"]
    assert "variance global (auto" in used["lira"] and "shadow_models 16" in used["lira"] and "gamma 2.0" in used["rmia"]
    assert "Hayes et al." in used["u_lira"] and used["u_lira"] in " ".join(str(report).split())


def test_a_test_set_outside_the_pool_is_refused(shadows, models) -> None:
    strange = (TEST[0] + 1, TEST[1])
    with pytest.raises(ValueError, match=r"test set: source: 80 of 80 samples are not in the shadow models' pool"):
        ff.audit(models, **{**SETS, "test": strange}, shadows=shadows)
    with pytest.raises(ValueError, match="population_loss"):
        ff.audit(models, **SETS, shadows=shadows, population=blobs(10, 9), attacks=("rmia",))
    other = ff.audit(models, **{**SETS, "retain": (RETAIN[0] + 1, RETAIN[1])}, shadows=shadows, attacks=("lira",))
    assert math.isnan(other.row("original")["attacks"]["retain_vs_test"]["lira"]["auc"])
