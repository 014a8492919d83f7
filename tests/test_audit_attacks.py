"""The audit's attacks beyond a global threshold: attack P, one threshold a class, and those that read shadow models."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from audit_world import CLASSES, FORGOTTEN, World

import fastforget as ff
from fastforget.auditing.measure import attacks
from fastforget.auditing.measure.exposure import MOST
from fastforget.auditing.names import DIRECTION
from fastforget.ops.membership import membership_scores


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def scored(model: torch.nn.Module, data: tuple[torch.Tensor, torch.Tensor]):
    with torch.no_grad():
        return membership_scores(model(data[0]), data[1])


# ------------------------------------------------------------------ attack P


def test_attack_p_against_a_slow_count(world: World) -> None:
    report = world.audit(unlearned=world.retrained_again, attacks=("attack_p",))
    x, y = world.test
    unseen = scored(world.original, (x, y)).loss[y == FORGOTTEN]
    population, rest = unseen[0::2], unseen[1::2]

    def rank(losses: torch.Tensor) -> torch.Tensor:
        return torch.tensor([sum(float(z) > float(v) for z in population) / len(population) for v in losses])

    member, other = rank(scored(world.original, world.forget).loss), rank(rest)
    expected = ((member[:, None] > other).double() + 0.5 * (member[:, None] == other).double()).mean().item()
    measured = report.row("original")["attacks"]["forget_vs_test"]["attack_p"]
    assert measured["auc"] == pytest.approx(expected, abs=1e-9)
    assert (measured["members"], measured["nonmembers"]) == (100, 50)
    assert "every other one" in report.settings["conventions_used"]["attack_p"] and "every other one" in " ".join(str(report).split())
    assert set(report.curves["roc"]["forget_vs_test"]["attack_p"]) == {"original", "unlearned", "retrained"}


def test_attack_p_has_the_right_sign_and_counts_ties_as_not_above() -> None:
    # the other sign is a published defect: an AUC of 0.25 where the attack has 0.75
    member, other = attacks._population_ranks(torch.tensor([0.0, 1.0, 5.0]), torch.tensor([1.0, 0.5, 3.0, 2.0]))
    assert member.tolist() == [1.0, 0.5, 0.0]
    assert other.tolist() == [1.0, 0.5]


def test_attack_p_needs_two_unseen_samples(world: World, tmp_path) -> None:
    x, y = world.test
    keep = (y != FORGOTTEN) | (torch.arange(len(y)) == int((y == FORGOTTEN).nonzero()[0]))
    report = world.audit(unlearned=world.retrained_again, attacks=("attack_p",), test=(x[keep], y[keep]))
    measured = report.row("original")["attacks"]["forget_vs_test"]["attack_p"]
    assert math.isnan(measured["auc"]) and "no member has a score" in measured["reason"] and measured["undefined"] == 101
    assert report.curves["roc"]["forget_vs_test"]["attack_p"] == {}
    assert "no member has a score" in str(report)
    report.to_json(tmp_path / "r.json")
    report.to_html(tmp_path / "r.html")


# ------------------------------------------------------------------ one threshold a class


def best_threshold(member: torch.Tensor, other: torch.Tensor) -> float:
    """The largest of the thresholds of best balanced accuracy, by trying all scores."""
    tried = sorted({float(v) for v in torch.cat((member, other))}, reverse=True)
    return max(tried, key=lambda t: int((member >= t).sum()) * len(other) - int((other >= t).sum()) * len(member))


def test_class_thresholds_against_a_slow_scan(world: World) -> None:
    names = ("loss", "modified_entropy")
    report = world.audit(unlearned=world.retrained_again, attacks=names)
    seen, unseen, forgotten = (scored(world.original, data) for data in (world.retain, world.test, world.forget))
    kept = torch.isin(world.test[1], world.retain[1])
    for name in names:
        member, other = -getattr(seen, name), -getattr(unseen, name)
        by_class = {
            c: best_threshold(member[world.retain[1] == c], other[world.test[1] == c]) for c in range(CLASSES) if c != FORGOTTEN
        }
        # the retain set lacks the forgotten class: the threshold of all classes together
        by_class[FORGOTTEN] = best_threshold(member, other[kept])
        for comparison, (values, labels) in {
            "retain_vs_test": (member, world.retain[1]),
            "forget_vs_test": (-getattr(forgotten, name), world.forget[1]),
        }.items():
            same = torch.isin(world.test[1], labels)
            tp = sum(float(v) >= by_class[int(c)] for v, c in zip(values, labels, strict=True))
            fp = sum(float(v) >= by_class[int(c)] for v, c in zip(other[same], world.test[1][same], strict=True))
            measured = report.row("original")["class_thresholds"][comparison][name]
            assert measured["tpr"] == pytest.approx(tp / len(labels)) and measured["fpr"] == pytest.approx(fp / int(same.sum()))
            assert measured["balanced_accuracy"] == pytest.approx((1 + tp / len(labels) - fp / int(same.sum())) / 2)
            low, high = measured["balanced_accuracy_interval"]
            assert low < measured["balanced_accuracy"] < high
    assert "one threshold a class" in str(report)


def test_class_thresholds_are_the_original_s_on_every_model(world: World) -> None:
    report = world.audit(unlearned=world.original)
    original, same = (report.row(name)["class_thresholds"] for name in ("original", "unlearned"))
    assert original == same and original != report.row("retrained")["class_thresholds"]
    lacking = ff.audit({"a": world.original}, forget=world.forget, retain=world.retain, test=world.test)
    measured = lacking.row("a")["class_thresholds"]["forget_vs_test"]["loss"]
    assert math.isnan(measured["balanced_accuracy"]) and 'no model named "original"' in measured["reason"]


# ------------------------------------------------------------------ with shadow models


class FakeShadows:
    """The interface of ``ff.audit.Shadows`` over a pool of samples known by their first feature."""

    def __init__(self, *pool, unlearned: object = None, undefined: int = 0) -> None:
        self.pool = torch.cat([x[:, 0] for x, _ in pool])
        self.unlearned, self.undefined = unlearned, undefined
        self.asked: list[tuple[str, int, int | None]] = []
        self.confidences: list[torch.Tensor] = []

    def locate(self, source) -> torch.Tensor:
        first = torch.cat([x[:, 0] for x, _ in source.batches()])
        same = first[:, None] == self.pool
        if not same.any(1).all():
            raise ValueError(f"source: {int((~same.any(1)).sum())} of {len(first)} samples are not in the pool")
        return same.double().argmax(1)

    def score(self, attack, *, logit_confidence, loss, index, population_loss=None) -> torch.Tensor:
        self.asked.append((attack, len(index), None if population_loss is None else len(population_loss)))
        self.confidences.append(logit_confidence)
        assert loss.shape == index.shape == logit_confidence.shape
        score = (logit_confidence if "lira" in attack else -loss).double() + 1e-3 * index
        score[: self.undefined] = math.nan
        if self.undefined:
            warnings.warn("some samples score NaN", stacklevel=2)
        return score

    def conventions(self, attack: str) -> str:
        return f"{attack} of a fake with {len(self.pool)} samples"


def test_shadow_attacks_are_scored_for_every_model_and_set(world: World) -> None:
    shadows = FakeShadows(world.forget, world.retain, world.test)
    report = world.audit(unlearned=world.retrained_again, shadows=shadows)
    assert report.settings["attacks"] == ["loss", "confidence", "entropy", "lira", "lira_offline", "attack_r"]
    assert sorted(set(shadows.asked)) == sorted({(a, n, None) for a in ("lira", "lira_offline", "attack_r") for n in (100, 300, 400)})
    assert len(shadows.asked) == 3 * 3 * 3  # attacks, models, sets
    place = shadows.locate
    x, y = world.test
    for row, model in zip(report.rows, (world.original, world.retrained_again, world.retrained), strict=True):
        member = scored(model, world.forget).logit_confidence.double() + 1e-3 * place(ff._data.source(world.forget, name="x"))
        other = (scored(model, (x, y)).logit_confidence.double() + 1e-3 * place(ff._data.source((x, y), name="x")))[y == FORGOTTEN]
        expected = ((member[:, None] > other).double() + 0.5 * (member[:, None] == other).double()).mean().item()
        measured = row["attacks"]["forget_vs_test"]["lira"]
        assert measured["auc"] == pytest.approx(expected, abs=1e-4) and measured["undefined"] == 0
        assert measured["auc_interval"][0] < measured["auc"] < measured["auc_interval"][1]
        # U-LiRA's figure: called a member where the log likelihood ratio is above 0
        half = (1 + (member > 0).double().mean() - (other > 0).double().mean()).item() / 2
        assert measured["balanced_accuracy_at_half"] == pytest.approx(half)
        assert "balanced_accuracy_at_half" not in row["attacks"]["forget_vs_test"]["loss"]
        low, high = measured["balanced_accuracy_at_half_interval"]
        assert low < half < high
    printed = " ".join(str(report).split())
    assert "LiRA: lira of a fake with 800 samples." in printed and "LiRA, forget against unseen" in printed


def test_conventions_given_as_a_dict_are_put_into_words(world: World) -> None:
    class Detailed(FakeShadows):
        def conventions(self, attack):
            return {"attack": attack, "source": "a paper, eq. 3", "variance": "pooled", "min_count": None, "shadow_models": 16}

    report = world.audit(shadows=Detailed(world.forget, world.retain, world.test), attacks=("lira",))
    assert report.settings["conventions_used"]["lira"] == "a paper, eq. 3; variance pooled; shadow_models 16"


def test_which_shadow_attacks_run(world: World) -> None:
    def names(shadows, **options):
        return [a for a in world.audit(shadows=shadows, **options).settings["attacks"] if a not in DIRECTION]

    pool = (world.forget, world.retain, world.test)
    population = (torch.randn(50, 6), torch.arange(50) % CLASSES)
    whole = FakeShadows(*pool, unlearned=object())
    assert names(whole, population=population) == ["lira", "lira_offline", "rmia", "attack_r", "u_lira"]
    assert {(a, z) for a, _, z in whole.asked if z is not None} == {("rmia", 50)}
    whole.losses = None  # the models' own losses were not kept
    assert "attack_r" not in names(whole)
    assert names(whole, attacks=("rmia_offline",), population=population) == ["rmia_offline"]
    assert "population" not in world.audit(shadows=whole, population=population).row("original")["class_accuracy"]


def test_attacks_that_cannot_run_say_so(world: World) -> None:
    pool = (world.forget, world.retain, world.test)
    with pytest.raises(ValueError, match=r"'lira' needs shadow models; pass shadows="):
        world.audit(attacks=("lira",))
    with pytest.raises(ValueError, match=r"'rmia' compares with a population; pass population="):
        world.audit(attacks=("rmia",), shadows=FakeShadows(*pool))
    with pytest.raises(ValueError, match=r"attacks: got \('lirra',\); accepted is a list of .*'attack_p', 'lira'"):
        world.audit(attacks=("lirra",))
    with pytest.raises(ValueError, match=r"forget set: source: 100 of 100 samples are not in the pool"):
        world.audit(shadows=FakeShadows(world.retain, world.test))
    with pytest.raises(ValueError, match="population: only RMIA reads it"):
        world.audit(population=world.test)
    many = FakeShadows(*pool)
    many.queries = 18
    with pytest.raises(ValueError, match="18 queries a sample; accepted is 1"):
        world.audit(shadows=many)

    class One(FakeShadows):
        def score(self, attack, **given):
            raise ValueError("shadow models: there are 1; every attack needs at least 2")

    with pytest.raises(ValueError, match="at least 2"):
        world.audit(shadows=One(*pool))

    class Short(FakeShadows):
        def score(self, attack, **given):
            return super().score(attack, **given)[1:]

    with pytest.raises(TypeError, match=r"shadows.score\('lira'\): returned"):
        world.audit(shadows=Short(*pool))


def test_a_retain_set_outside_the_pool_costs_its_own_row_only(world: World, tmp_path) -> None:
    report = world.audit(unlearned=world.retrained_again, shadows=FakeShadows(world.forget, world.test), attacks=("lira",))
    for row in report.rows:
        lost = row["attacks"]["retain_vs_test"]["lira"]
        assert math.isnan(lost["auc"]) and "300 of 300" in lost["reason"]
        assert 0 < row["attacks"]["forget_vs_test"]["lira"]["auc"] < 1
    assert "300 of 300" in str(report)
    report.to_html(tmp_path / "r.html")


def test_undefined_scores_are_counted_not_warned_about(world: World) -> None:
    shadows = FakeShadows(world.forget, world.retain, world.test, undefined=7)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = world.audit(unlearned=world.retrained_again, shadows=shadows, attacks=("lira",))
    measured = report.row("unlearned")["attacks"]["forget_vs_test"]["lira"]
    kept = int((world.test[1][:7] == FORGOTTEN).sum())
    assert measured["undefined"] == 7 + kept and measured["members"] == 93 and measured["nonmembers"] == 100 - kept
    assert "have no score (NaN) and are left out" in " ".join(str(report).split())


def test_the_confidence_that_lira_reads_does_not_saturate(world: World) -> None:
    """Peers' log(p + 1e-45) ends at 103.3: two certain samples become equal."""

    class Certain(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            z = torch.zeros(len(x), CLASSES)
            z[:, FORGOTTEN] = 200.0 + x[:, 0]
            return z

    shadows = FakeShadows(world.forget, world.retain, world.test)
    world.audit(unlearned=Certain(), shadows=shadows, attacks=("lira",))
    expected = 200.0 + world.forget[0][:, 0].double() - math.log(3)
    assert any(c.shape == (100,) and torch.allclose(c.double(), expected, atol=1e-4) for c in shadows.confidences)


def test_scores_far_from_0_to_1_are_ranked_as_they_are() -> None:
    """A published library squashes scores outside [0, 1]: AUC 0.5 where these have 0.889, and no TPR at all."""
    member, other = torch.tensor([18.0, 21.0, 23.0]), torch.tensor([17.0, 18.5, 17.5])
    measured = attacks.figures(member, other)
    assert measured.auc.value == pytest.approx(8 / 9) and measured.tpr_at["0.1pct"].tpr.value == pytest.approx(2 / 3)


# ------------------------------------------------------------------ the most exposed samples


def test_exposed_samples_are_the_highest_scores(world: World) -> None:
    report = world.audit(unlearned=world.retrained_again)
    member = {name: -scored(m, world.forget).loss for name, m in (("original", world.original), ("unlearned", world.retrained_again))}
    rows = report.curves["exposed"]
    assert report.settings["exposed_by"] == "loss" and len(rows) == MOST
    order = member["unlearned"].argsort(descending=True)[:MOST].tolist()
    assert [row["index"] for row in rows] == order and {row["label"] for row in rows} == {FORGOTTEN}
    for row in rows:
        assert set(row["score"]) == {"original", "unlearned", "retrained"}
        assert row["score"]["original"] == pytest.approx(float(member["original"][row["index"]]), abs=1e-5)


def test_exposed_samples_go_by_the_strongest_attack_and_by_defined_scores(world: World) -> None:
    shadows = FakeShadows(world.forget, world.retain, world.test, undefined=95)
    report = world.audit(unlearned=world.retrained_again, shadows=shadows)
    assert report.settings["exposed_by"] == "lira"
    assert sorted(row["index"] for row in report.curves["exposed"]) == [95, 96, 97, 98, 99]
    two = ff.audit(
        {"a": world.original, "b": world.retrained_again}, forget=world.forget, retain=world.retain, test=world.test
    )
    highest = torch.stack([-scored(m, world.forget).loss for m in (world.original, world.retrained_again)]).amax(0)
    assert [row["index"] for row in two.curves["exposed"]] == highest.argsort(descending=True)[:MOST].tolist()
    alone = world.audit(reference=False)
    assert len(alone.curves["exposed"]) == MOST  # nothing is judged: the original's own
