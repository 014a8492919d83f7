"""The journal: requests in sequence, each done once, whole or not at all, and never brought back unnoticed."""

from __future__ import annotations

import itertools
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from digits_world import World, same_trace, trace
from interrupts import interrupted
from journal_world import Shift, ask, ask_class, net, points, same, tree, two_done, without
from torch import nn
from torch.utils.data import Dataset

import fastforget as ff
from fastforget import _weights
from fastforget.journal import call

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.fixture
def two(tmp_path):
    return two_done(tmp_path / "journal")


# ---------------------------------------------------------------------- in a row


class Row:
    """Twenty requests on digits: every fourth a class, the others twelve samples each."""

    def __init__(self, world: World, path: Path, method) -> None:
        x, y = world.train
        self.test = (world.test[0][200:], world.test[1][200:])
        unseen = (world.test[0][:200], world.test[1][:200])
        self.journal, self.original = ff.Journal(path), world.net("mlp")
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(5))
        kept, self.classes, self.steps = torch.ones(len(y), dtype=torch.bool), [], []
        model = self.original
        for i in range(20):
            if i % 4 == 0:
                self.classes.append(i // 4)
                inside = y == i // 4
                asked = {"classes": [i // 4]}
            else:
                part = [n for n in order[12 * i : 12 * i + 12].tolist() if int(y[n]) not in self.classes]
                inside = torch.zeros(len(y), dtype=torch.bool)
                inside[part] = True
                asked = {}
            kept = kept & ~inside
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                model = self.journal.unlearn(
                    f"r{i}", model, method, forget=(x[inside], y[inside]), retain=(x[kept], y[kept]), nonmember=unseen, test=self.test,
                    drop_forget=True, progress=False, precision="float32", **asked,
                ).model  # fmt: skip
            said = any(issubclass(one.category, ff.RetrainWarning) for one in caught)
            self.steps.append((model, sorted(self.classes), said, self.journal.retrain_now, self.journal.loss()))

    def right(self, model: nn.Module, classes: list[int]) -> np.ndarray:
        """Which test samples of classes that weren't forgotten a model answers right, by hand."""
        with torch.no_grad():
            answers = model.eval()(self.test[0]).argmax(1).numpy()
        labels = self.test[1].numpy()
        return (answers == labels)[~np.isin(labels, classes)].astype(np.float64)


@pytest.mark.parametrize(
    "method", ["auto", pytest.param(Shift(1e-4), marks=pytest.mark.slow), Shift(0.03)], ids=["auto", "gentle", "wrecking"]
)
def test_twenty_requests_lose_no_more_than_one_and_a_point_or_the_journal_says_so(world, tmp_path, method):
    row = Row(world, tmp_path, method)
    first = row.steps[0][0]
    told = []
    for model, classes, said, now, found in row.steps:
        original, once, last = (row.right(m, classes) for m in (row.original, first, model))
        assert (found.original, found.first, found.now) == pytest.approx((original.mean(), once.mean(), last.mean()), abs=1e-12)
        assert found.samples == len(last)
        lost, by_first = original.mean() - last.mean(), original.mean() - once.mean()
        pairs = (once if by_first >= 0 else original) - last
        error = pairs.std() / np.sqrt(len(pairs))
        too_much = lost - max(by_first, 0.0) - 0.01 > 2 * error
        assert found.error == pytest.approx(error, abs=1e-12)
        assert said == now == too_much, found
        told.append(too_much)
    if isinstance(method, Shift):
        assert told[-1] == (method.size > 0.01)  # so each answer can be had
    assert len(row.journal.ids) == 20 and row.journal.verify() == 20


# ---------------------------------------------------------------------- once


def test_a_request_that_is_done_is_returned_and_nothing_runs(two, monkeypatch):
    journal, model = two
    before = tree(journal._store.path)
    method = Shift()
    first, fresh = ask_class(journal, 0, model, method=method), journal.model(model, after="class 0")
    assert method.runs == [] and same(first.model, fresh)
    monkeypatch.setattr(call, "unlearn", None)
    again = ask_class(journal, 1, model)
    assert same(again.model, journal.model(model)) and not same(again.model, first.model)
    assert tree(journal._store.path) == before
    assert same(ask_class(journal, 1, first.model).model, again.model)  # from any of the journal's weights


def test_the_stored_result_is_the_first_one(tmp_path):
    journal, model = ff.Journal(tmp_path), net()
    first, again = (ask_class(journal, 0, model) for _ in range(2))
    assert same(first.model, again.model) and not same(first.model, model)
    assert (first.receipt, first.history, first.seconds) == (again.receipt, again.history, again.seconds)
    assert (first.forgot, first.why, first.cost.receipt()) == (again.forgot, again.why, again.cost.receipt())
    assert first.receipt["weights_sha256"] == {"before": _weights.fingerprint(model), "after": _weights.fingerprint(first.model)}


def test_each_starts_from_the_last_whichever_model_is_given(tmp_path):
    """The journal's second state is that of two plain calls."""
    data, model = points(), net()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one = ff.unlearn(model, Shift(), classes=[0], forget=data, retain=without(data, 0), seed=0).model
        other = ff.unlearn(one, Shift(), classes=[1], forget=data, retain=without(data, 0, 1), seed=1).model
    for name, given in (("a", model), ("b", one)):
        journal = ff.Journal(tmp_path / name)
        ask_class(journal, 0, model)
        assert same(ask_class(journal, 1, given).model, other)
        assert same(journal.original(other), model) and same(journal.model(model, after="class 0"), one)


def test_classes_may_be_anything_that_gives_them_once(tmp_path):
    journal, model = ff.Journal(tmp_path), net()
    assert not journal.check(model).forgotten  # an empty journal shows nothing
    result = ask_class(journal, 0, model, classes=iter([0]))
    assert result.receipt["classes"] == [0] and same(ask_class(journal, 0, model).model, result.model)


def test_inplace_writes_the_result_into_the_model(tmp_path):
    journal, model, twin = ff.Journal(tmp_path), net(), net()
    assert ask_class(journal, 0, model, inplace=True).model is model
    assert same(model, journal.model(twin)) and not same(model, twin)
    stored = ask_class(journal, 0, twin, inplace=True)
    assert stored.model is twin and same(twin, model)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"seed": 7}, "seed was 0, now 7"),
        ({"classes": [1]}, r"classes was \[0\], now \[1\]"),
        ({"method": Shift(0.5)}, 'options was {"size": 0.0001}, now {"size": 0.5}'),
        ({"forget": points(90)}, r"forget was 20 samples \(.*\), now 18 samples"),
        ({"forget": (points()[0] + 1, points()[1])}, r"forget was 20 samples"),
        ({"forget": None}, "forget was 20 samples .* now null"),
        ({"budget": 100}, "budget was null, now 100"),
    ],
)
def test_another_request_under_the_same_id_is_refused(two, given, says):
    journal, model = two
    with pytest.raises(ValueError, match=f"id: 'class 0' is in the journal as another request: .*{says}"):
        ask_class(journal, 0, model, **given)
    assert len(journal.ids) == 2


@pytest.mark.parametrize("id", ["", None, 3, "x" * 201])
def test_an_id_is_a_text(tmp_path, id):
    with pytest.raises(ValueError, match="id: got"):
        ask(ff.Journal(tmp_path), id, net(), classes=[0], retain=without(points(), 0))


# ---------------------------------------------------------------------- which weights


def test_other_weights_are_refused(two):
    journal, model = two
    foreign = net(seed=3)
    with pytest.raises(
        ValueError, match="those of no model in this journal; accepted are the original's .* after the last request 'class 1'"
    ):
        ask_class(journal, 2, foreign)
    with pytest.raises(ValueError, match="those of no model"):
        ask_class(journal, 0, foreign)  # also where nothing would run
    with pytest.raises(ValueError, match="those after class 0; accepted"):
        ask_class(journal, 2, journal.model(model, after="class 0"))
    with pytest.raises(ValueError, match=r"isn't built as the journal's model is: 0.weight is .*\(8, 4\), in the journal|0\.weight"):
        journal.model(nn.Sequential(nn.Linear(4, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 5)))
    with pytest.raises(ValueError, match="float64 .* in the journal torch.float32"):
        journal.model(net().double())
    with pytest.raises(ValueError, match=r"after: got 'x'; accepted are .* class 0, class 1"):
        journal.model(model, after="x")


def test_wrapped_models_and_shared_weights(tmp_path):
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(5, 5), nn.Linear(5, 5)
            self.b.weight = self.a.weight
            self.register_buffer("scale", torch.ones(()), persistent=False)

        def forward(self, x):
            return self.b(self.a(x[:, [0, 1, 2, 3, 3]])) * self.scale

    class Wrapper(nn.Module):
        def __init__(self, module) -> None:
            super().__init__()
            self.module = module

        def forward(self, x):
            return self.module(x)

    journal, model = ff.Journal(tmp_path), Tied()
    first = ask_class(journal, 0, model)
    second = ask_class(journal, 1, Wrapper(first.model))
    assert isinstance(second.model, Wrapper) and same(second.model.module, journal.model(model))
    assert journal.model(model).a.weight is journal.model(model).b.weight or same(journal.model(model), second.model.module)


# ---------------------------------------------------------------------- what would bring it back


def test_data_of_forgotten_classes_is_refused_or_left_out(two):
    journal, model = two
    data = points()
    for name, given in (("retain", {"retain": without(data, 1, 2)}), ("nonmember", {"nonmember": without(points(50, 3), 1, 2)})):
        with pytest.raises(
            ValueError, match=rf"{name}: it holds samples of classes .*: \d+ of class 0 \(request 'class 0'\)\..*drop_forget"
        ):
            ask_class(journal, 2, model, **given)
    assert journal.ids == ["class 0", "class 1"]
    method = Shift()
    result = ask_class(journal, 2, model, method=method, retain=data, nonmember=points(50, 3), drop_forget=True)
    (task,) = method.runs
    assert set(task.retain.labels().tolist()) == set(task.nonmember.labels().tolist()) == {3, 4}
    assert result.receipt["journal"]["left_out"] == {"retain": {"of_forgotten_classes": 40}, "nonmember": {"of_forgotten_classes": 20}}


def test_samples_of_earlier_requests_are_known_by_their_content(tmp_path):
    (x, y), unseen, model = points(), points(50, 3), net()
    journal, rest, part = ff.Journal(tmp_path), (x[10:], y[10:]), (x[15:20].clone(), y[15:20].clone())
    ask(journal, "ten", model, forget=(x[:10], y[:10]), retain=rest, nonmember=unseen)
    later = {"forget": part, "nonmember": unseen, "test": points(60, 2)}
    with pytest.raises(
        ValueError, match="retain: it holds samples that the journal forgot .*: 4 of the 10 of request 'ten'. .*drop_forget=True"
    ):
        ask(journal, "five", model, retain=(x[torch.arange(6, 100)], y[6:]), **later)
    with pytest.raises(ValueError, match="nonmember: it holds samples that the journal forgot"):
        ask(journal, "five", model, retain=(x[20:], y[20:]), **{**later, "nonmember": (x[:8], y[:8])})
    method = Shift()
    taken = torch.tensor([i for i in range(6, 100) if not 15 <= i < 20])
    result = ask(journal, "five", model, method, retain=(x[taken], y[taken]), drop_forget=True, **later)
    assert len(method.runs[0].retain) == len(taken) - 4
    found = result.receipt["journal"]["left_out"]["retain"]["forgotten_samples"]
    assert (found["shared"], found["left_out"]) == ({"ten": 4}, 4)
    unchecked = Shift()
    result = ask(journal, "six", model, unchecked, retain=(x[6:], y[6:]), check_overlap=False, **later)
    assert len(unchecked.runs[0].retain) == 94
    assert result.receipt["journal"]["left_out"]["retain"] == {"forgotten_samples": "not looked for: check_overlap=False"}


def test_single_samples_of_forgotten_classes(two):
    """They are refused, and what they are compared with holds none of those classes either."""
    journal, model = two
    (x, y), unseen = points(), points(50, 3)
    rest = without((x[20:], y[20:]), 0, 1)
    given = {"retain": rest, "nonmember": without(unseen, 0, 1), "test": points(60, 2)}
    with pytest.raises(ValueError, match=r"forget: it holds samples of classes .* 2 of class 0 \(request 'class 0'\), 2 of class 1"):
        ask(journal, "ten", model, forget=(x[:10], y[:10]), **given)
    method = Shift()
    ask(journal, "ten", model, method, forget=(x[:10], y[:10]), drop_forget=True, **given)
    assert set(method.runs[0].forget.labels().tolist()) == set(method.runs[0].test.labels().tolist()) == {2, 3, 4}


class Noisy(Dataset):
    """Augmented at random."""

    def __init__(self, x, y) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, i):
        return self.x[i] + torch.randn(4), int(self.y[i])


def test_augmented_samples_have_no_hash(tmp_path):
    (x, y), unseen, model, journal = points(), points(50, 3), net(), ff.Journal(tmp_path)
    with pytest.raises(TypeError, match="forget: .*others at each reading .*before augmentation"):
        ask(journal, "ten", model, forget=Noisy(x[:10], y[:10]), retain=(x[10:], y[10:]), nonmember=unseen)
    ask(journal, "ten", model, forget=(x[:10], y[:10]), retain=Noisy(x[10:], y[10:]), nonmember=unseen)
    with pytest.raises(TypeError, match="retain: .*others at each reading.* check_overlap=False"):
        ask(journal, "class", model, classes=[1], retain=Noisy(*without((x[10:], y[10:]), 1)))
    ask(journal, "class", model, classes=[1], forget=Noisy(x, y), retain=Noisy(*without((x[10:], y[10:]), 1)), check_overlap=False)
    assert journal.receipts["class"]["files"].keys() == {"request.json", "weights.safetensors"}
    row = journal.check(journal.model(model), {"class": (x, y)}).rows[1]
    assert row.now == 0 and row.outcome == "not shown" and "known by their labels alone" in row.why


# ---------------------------------------------------------------------- nothing is lost


class Fails(Shift):
    def run(self, task):
        super().run(task)
        raise KeyboardInterrupt


@pytest.mark.parametrize("first", [True, False])
def test_a_run_that_ends_early_leaves_everything_as_it_was(tmp_path, first):
    journal, model = ff.Journal(tmp_path), net()
    if not first:
        ask_class(journal, 0, model)
    before, state = tree(tmp_path), trace(model)
    with pytest.raises(KeyboardInterrupt):
        ask_class(journal, 1, model, method=Fails(), inplace=True)
    with warnings.catch_warnings(), pytest.raises(ff.NotForgottenWarning):
        warnings.simplefilter("error")
        journal.unlearn("x", model, "none", classes=[1], forget=points(), retain=without(points(), 0, 1), inplace=True)
    assert tree(tmp_path) == before and same_trace(trace(model), state)


@pytest.mark.parametrize("again", [False, True])
def test_an_interrupt_after_the_request_was_run_leaves_the_model(tmp_path, again):
    """The lock and the caller's state are put back before the model is written, the request be new or done already."""
    journal, first = two_done(tmp_path / "journal")
    before, copies = journal.model(first, after="class 0" if again else "class 1"), itertools.count()
    model = journal.model(first, after="class 0" if again else "class 1")

    def call() -> None:
        folder = shutil.copytree(tmp_path / "journal", tmp_path / str(next(copies)))
        ask_class(ff.Journal(folder), 1 if again else 2, model, inplace=True)

    _, total = interrupted(call, -1)
    assert not same(model, before)
    for at in range(max(1, total - 60), total + 1):
        model.load_state_dict(before.state_dict())
        cut, _ = interrupted(call, at)
        assert same(model, before) or not cut, (at, total)


@pytest.mark.parametrize("function", ["commit", "overwriting"])
def test_a_write_that_fails_leaves_everything_as_it_was(tmp_path, monkeypatch, function):
    journal, model = ff.Journal(tmp_path), net()
    ask_class(journal, 0, model)
    before, state = tree(tmp_path), trace(model)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("os.rename" if function == "commit" else "fastforget._weights.overwriting", full)
        with pytest.raises(OSError, match="No space"):
            ask_class(journal, 1, model, inplace=True)
    assert tree(tmp_path) == before and same_trace(trace(model), state)
    ask_class(journal, 1, model)


def test_a_warning_made_an_error_comes_before_the_request_is_written(tmp_path):
    journal, model = ff.Journal(tmp_path), net()
    sure, data = nn.Sequential(nn.Linear(4, 5)), points()
    with torch.no_grad():
        data = (data[0], sure(data[0]).argmax(1))  # a net that is always right
    ask(journal, "first", sure, Shift(1e-6), classes=[0], retain=without(data, 0), test=data)
    before = tree(tmp_path)
    with warnings.catch_warnings(), pytest.raises(ff.RetrainWarning, match=r"after request 'second', of \d+ test samples .* RETRAIN"):
        warnings.simplefilter("error", ff.RetrainWarning)
        journal.unlearn("second", sure, Shift(5.0), classes=[1], retain=without(data, 0, 1), test=data)
    assert tree(tmp_path) == before and not journal.retrain_now
    assert not same(model, sure)
