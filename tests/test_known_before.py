"""``forgot``: what was not known before can't be forgotten, and samples pushed past what unseen data looks like stand out."""

from __future__ import annotations

import copy

import pytest
import torch
from digits_world import World, quiet
from torch import nn

import fastforget as ff
from fastforget.methods.verdict import Before, _not_known

METHODS = {
    "none": ("none", {}),
    "unsir auto": ("unsir", {"noise_batch": 8, "noise_steps": 2, "repair_epochs": 1}),
    "unsir paper": ("unsir", {"preset": "paper", "noise_batch": 8, "noise_steps": 2}),
    "unsir samples": ("unsir", {"preset": "samples", "noise_steps": 2}),
    "forsaken": ("forsaken", {"steps": 5}),
    "lightweight": ("lightweight", {"steps": 4}),
}


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def request_of(world: World, classes: list[int], change=lambda x, y: (x, y)) -> dict:
    train, test = change(*world.train), change(*world.test)
    parts = {name: world.part(train, classes, name == "forget") for name in ("forget", "retain")}
    return {"classes": classes, **parts, "nonmember": test, "test": test, "progress": False}


def shifted(x: torch.Tensor, y: torch.Tensor):
    """Labels in another order than the model's."""
    return x, (y + 1) % 10


@pytest.mark.parametrize("name", METHODS)
def test_a_class_that_was_not_known_is_not_forgotten(world, name):
    method, options = METHODS[name]
    result = quiet(world.net("mlp"), method, **request_of(world, [3], shifted), **options)
    verdict = result.receipt["verdict"]
    assert not result.forgot and not verdict["known_before"]
    assert result.why.startswith("not shown: the model answered 0 % of class 3 before; check label order, normalisation, checkpoint. Now ")
    assert verdict["forget_accuracy_before"]["3"] < 0.05 and verdict["test_accuracy_before"]["3"] < 0.05


def test_another_checkpoint_is_told_from_one_that_forgot(world):
    """The model never saw the class: whatever is done to it, nothing was forgotten."""
    result = quiet(world.net("mlp", (3,)), "none", **request_of(world, [3]))
    assert not result.forgot and "answered 0 % of class 3 before" in result.why


def test_one_unknown_class_among_known_ones_is_named(world):
    given = request_of(world, [3, 5])
    result = quiet(world.net("mlp", (5,)), "lightweight", **given)
    assert not result.forgot and not result.receipt["verdict"]["known_before"]
    assert "class 5 before" in result.why and "class 3 before" not in result.why


def test_a_known_class_is_still_forgotten(world):
    result = quiet(world.net("mlp"), "lightweight", **request_of(world, [3]))
    verdict = result.receipt["verdict"]
    assert result.forgot and verdict["known_before"] and verdict["forget_accuracy_before"]["3"] > 0.9


def test_a_model_that_answers_everything_alike_knows_nothing(world):
    """Inputs prepared otherwise than in training: it says "3" to all of them, threes included."""

    class Says3(nn.Linear):
        def forward(self, x):
            return super().forward(x.flatten(1)) * 1e-3 + torch.eye(10)[3]

    result = quiet(Says3(64, 10), "none", **request_of(world, [3]))
    assert not result.forgot and not result.receipt["verdict"]["known_before"]


class Answers:
    """Stands in for a set of which only labels and name are asked."""

    def __init__(self, name: str, count: int) -> None:
        self.name, self.count = name, count

    def labels(self) -> torch.Tensor:
        return torch.full((self.count,), 3)


class Asked:
    def __init__(self, outputs: int, count: int) -> None:
        self.outputs, self.forget, self.test = outputs, Answers("forget", count), None


@pytest.mark.parametrize(
    ("outputs", "count", "right", "answered", "says"),
    [
        (10, 100, 0.0, 0.1, "the model answered 0 % of class 3 before"),
        (10, 100, 0.15, 0.1, "the model answered 15 % of class 3 before, which 100 samples can't tell from chance"),  # limit 0.16
        (10, 100, 0.17, 0.1, None),
        (10, 100, 0.17, 0.15, "the model answered 17 % of class 3 before, which 100 samples can't tell from chance"),  # limit 0.22
        (10, 100, 0.98, 0.99, "the model answered 98 % of class 3 before, and 99 % of other data with that class as well"),
        (10, 1, 1.0, 0.0, None),  # 0.1 + 2 * 0.3
        (2, 3, 1.0, 0.0, "the model answered 100 % of class 3 before, which 3 samples can't tell from chance"),  # 0.5 + 2 * 0.29
        (2, 5, 1.0, 0.0, None),  # 0.5 + 2 * 0.22
    ],
)
def test_known_is_more_than_chance_and_two_of_its_standard_errors(outputs, count, right, answered, says):
    before = Before("", by_class={"forget": {3: right}}, answered={3: answered})
    assert _not_known(Asked(outputs, count), before, 3) == says


# ------------------------------------------------------------------ samples


class Shifts:
    """Adds to the loss of the forget samples: the model keeps a way to tell them, by a feature of its own."""

    name, scope, learns_noise = "shifts", "samples", False

    def __init__(self, by: float) -> None:
        self.by = by

    def receipt(self):
        return {}

    def run(self, task):
        with torch.no_grad():
            task.model.by.fill_(self.by)
        return {}


class Told(nn.Module):
    """Logits of two classes; ``by`` is what they are off by where the input's last feature says "forget"."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.line = nn.Linear(2, 2)
        self.by = nn.Parameter(torch.tensor(by))
        with torch.no_grad():
            self.line.weight.copy_(torch.tensor([[-2.0, 0.0], [2.0, 0.0]]))
            self.line.bias.zero_()

    def forward(self, x):
        sign = torch.where(x[:, :1] > 0, 1.0, -1.0)
        return self.line(x) + self.by * x[:, 1:] * sign * torch.tensor([-1.0, 1.0])


@pytest.mark.parametrize(
    ("before", "after", "forgot", "says"),
    [
        (2.0, 0.0, True, "(forgotten: 0.4"),
        (2.0, 1.9, False, "(forgotten: 0.4"),
        (2.0, -2.0, False, "so the forgotten samples stand out"),
        (0.0, -2.0, False, "it couldn't tell them before either"),
        (-2.0, 0.0, False, "it couldn't tell them before either"),
        (2.0, 2.0, False, "the weights are unchanged"),
    ],
)
def test_the_attack_s_limit_has_two_sides(before, after, forgot, says):
    g = torch.Generator().manual_seed(0)
    x = torch.cat((torch.randn(600, 1, generator=g), (torch.arange(600) < 200).float()[:, None]), dim=1)
    y = (x[:, 0] > 0).long()
    sets = {"forget": (x[:200], y[:200]), "retain": (x[200:400], y[200:400]), "test": (x[400:], y[400:])}
    model = Told(before)
    result = quiet(copy.deepcopy(model), Shifts(after), progress=False, check_overlap=False, **sets)
    assert result.forgot is forgot and says in result.why, result.why
    verdict = result.receipt["verdict"]
    limits = verdict["attack_auc_low_limit"], verdict["attack_auc_limit"]
    assert limits[0] + limits[1] == pytest.approx(1.0) and limits[1] == pytest.approx(0.5 + 2 * (401 / (12 * 200 * 200)) ** 0.5)
    assert verdict["known_before"] is (before == 2.0)
    assert forgot == (limits[0] <= verdict["attack_auc"] <= limits[1] and before != after and before == 2.0)


class Rewires:
    """A method for tests: of a linear net on one-hot inputs, class 0's input and the last one are answered with class 2 from now on."""

    name, scope, learns_noise, gradients = "rewires", "samples", False, ()

    def receipt(self):
        return {}

    def run(self, task):
        with torch.no_grad():
            task.model.weight[:, [0, 3]] = 5 * torch.eye(3)[:, 2:]
        return {}


@pytest.mark.parametrize(("lost", "forgot", "says"), [(1, True, ""), (3, True, "97.0 %"), (20, True, "80.0 %"), (21, False, "79.0 %")])
def test_what_is_lost_of_the_data_to_keep_is_said(lost, forgot, says):
    """More than 2 points are said, more than 20 are no forgetting."""
    kinds = torch.tensor([1] * (50 - lost) + [2] * 50 + [3] * lost)
    net = nn.Linear(4, 3, bias=False)
    with torch.no_grad():
        net.weight.copy_(5 * torch.eye(3)[[0, 1, 2, 1]].T)
    keep = torch.eye(4)[kinds], torch.tensor([0, 1, 2, 1])[kinds]
    gone = torch.eye(4)[[0] * 20], torch.zeros(20, dtype=torch.int64)
    result = quiet(net, Rewires(), classes=[0], forget=gone, retain=keep, progress=False)
    assert result.forgot is forgot and ("retain samples" in result.why) == bool(says), result.why
    assert f"of 100 retain samples only {says} are answered right, 100.0 % before" in result.why or not says
    assert ("lost more than it was to forget" in result.why) is not forgot


class Loses(Rewires):
    """The same, but class 0 is left as it is."""

    def run(self, task):
        with torch.no_grad():
            task.model.weight[:, 3] = 5 * torch.eye(3)[2]
        return {}


@pytest.mark.parametrize("classes", [[0], None])
@pytest.mark.parametrize("where", ["test", "nonmember"])
@pytest.mark.parametrize(("lost", "says"), [(1, None), (3, "97.0 %"), (21, "79.0 %")])
def test_what_is_lost_on_unseen_data_is_said_though_training_data_hides_it(lost, says, where, classes):
    """Of a model that did not forget, too: the loss is said, and what is beyond use."""
    kinds, kept = torch.tensor([1] * (100 - lost) + [3] * lost), torch.tensor([1] * 50 + [2] * 50)
    net = nn.Linear(4, 3, bias=False)
    with torch.no_grad():
        net.weight.copy_(5 * torch.eye(3)[[0, 1, 2, 1]].T)
    sets = {"retain": (torch.eye(4)[kept], kept), where: (torch.eye(4)[kinds], torch.ones(100, dtype=torch.int64))}
    gone = torch.eye(4)[[0] * 20], torch.zeros(20, dtype=torch.int64)
    for method, forgot in ((Rewires(), True), (Loses(), False)):
        result = quiet(net, method, classes=classes, forget=gone, **sets, progress=False, check_overlap=False)
        if classes:
            assert result.forgot is (forgot and lost < 21), result.why
        assert (f"of 100 {where} samples to keep only {says} are answered right, 100.0 % before" in result.why) is (says is not None)
        assert ("lost more than it was to forget" in result.why) is (lost == 21) and "retain samples" not in result.why
        told = result.receipt["verdict"]
        assert told["unseen_accuracy_before"] == 1.0 and told["unseen_accuracy"] == pytest.approx(1 - lost / 100)


@pytest.mark.parametrize(
    ("count", "known", "retain_lost", "unseen_lost", "forgot"),
    [
        (100, 100, 25, 0, True),  # only what was memorised is lost
        (100, 100, 25, 10, True),
        (100, 100, 0, 25, False),
        (40, 40, 25, 0, False),  # too few to tell
        (100, 40, 25, 0, False),  # hardly known before, so that nothing could be lost
    ],
)
def test_unseen_data_decides_whether_a_model_is_of_use(count, known, retain_lost, unseen_lost, forgot):
    net = nn.Linear(4, 3, bias=False)
    with torch.no_grad():
        net.weight.copy_(5 * torch.eye(3)[[0, 1, 2, 1]].T)

    def kept(n: int, lost: int, wrong: int = 0):
        kinds = torch.tensor([1] * (n - lost - wrong) + [3] * lost + [2] * wrong)
        return torch.eye(4)[kinds], torch.ones(n, dtype=torch.int64)

    sets = {"retain": kept(100, retain_lost), "test": kept(count, unseen_lost, count - known)}
    gone = torch.eye(4)[[0] * 20], torch.zeros(20, dtype=torch.int64)
    result = quiet(net, Rewires(), classes=[0], forget=gone, **sets, progress=False)
    assert result.forgot is forgot and ("lost more than it was to forget" in result.why) is not forgot, result.why
    assert f"of {count} test samples to keep " in result.why and ("of 100 retain samples only" in result.why) is (retain_lost > 2)


class Spends(Rewires):
    """As a method does that plans within a budget of its own."""

    def run(self, task):
        if not task.cost.asked:
            task.cost.budget = 9
        assert not task.cost.has_room(100)
        return super().run(task)


OWN = [(None, "9 sample passes ended the run (the method's own, as none was given"), (7, "7 sample passes ended the run")]


@pytest.mark.parametrize(("budget", "says"), OWN)
def test_a_budget_that_nobody_gave_is_called_the_method_s_own(budget, says):
    x, y = torch.eye(4)[[0, 1] * 20], torch.tensor([0, 1] * 20)
    sets = {"forget": (x[::2], y[::2]), "retain": (x[1::2], y[1::2])}
    result = quiet(nn.Linear(4, 3, bias=False), Spends(), classes=[0], **sets, budget=budget, progress=False)
    assert says in result.why and ("was given" in result.why) is (budget is None)


@pytest.mark.parametrize("digit", [0, 8])
def test_samples_of_one_class_are_compared_with_unseen_ones_of_it(world, digit):
    """The verdict's attack is the audit's: beside all classes it would tell how hard the class is."""
    (x, y), test = world.train, world.test
    gone = torch.zeros(len(y), dtype=torch.bool)
    gone[(y == digit).nonzero()[:40, 0]] = True
    sets = {"forget": (x[gone], y[gone]), "retain": (x[~gone], y[~gone]), "test": test}
    net = world.net("mlp")
    result = quiet(net, "none", progress=False, **sets)
    told = result.receipt["verdict"]["attack_auc"]
    audited = ff.audit({"original": net}, **sets, progress=False).figures_of("original").attacks["forget_vs_test"]["loss"].auc.value
    assert told == pytest.approx(audited, abs=1e-6)
    with torch.no_grad():
        loss = [nn.functional.cross_entropy(net(a), b, reduction="none") for a, b in (sets["forget"], world.part(test, [digit], True))]
    counted = (loss[0][:, None] < loss[1]).double().mean() + (loss[0][:, None] == loss[1]).double().mean() / 2
    assert told == pytest.approx(float(counted), abs=1e-3)
    assert f"40 forget against {len(loss[1])} test samples of their classes" in result.why
