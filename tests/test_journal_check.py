"""The journal looks again: what came back, what all requests lost, and its page."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from digits_world import World, fit
from journal_world import Shift, ask, ask_class, net, points, two_done, without
from torch import nn

import fastforget as ff
from fastforget import _weights
from fastforget.journal import call, loss

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.fixture
def two(tmp_path):
    return two_done(tmp_path / "journal")


def test_check_finds_a_class_that_a_later_fine_tune_brought_back(world, tmp_path):
    journal, model = ff.Journal(tmp_path), world.net("mlp")
    x, y = world.train
    for c in (3, 5):
        kept = world.part(world.train, [3, 5] if c == 5 else [3], False)
        model = journal.unlearn(f"no {c}", model, forget=(x, y), classes=[c], retain=kept, test=world.test, progress=False).model
    forget = {"no 3": (x, y), "no 5": world.part(world.train, [5], True)}
    checked = journal.check(model, forget, test=world.test)
    assert checked.forgotten and checked.brought_back == [] and checked.state == "after no 5"
    tuned = fit(model, *world.part(world.train, [5], False), epochs=2)
    checked = journal.check(tuned, forget, test=world.test)
    with torch.no_grad():
        answers = tuned(x).argmax(1)
    share = (answers[y == 3] == 3).double().mean().item()
    assert checked.brought_back == ["no 3"] and not checked.forgotten and checked.state == "none of the journal's"
    assert checked.rows[0].now >= share > 0.5 and checked.rows[1].gone
    assert re.search(r"no 3 .*BROUGHT BACK", str(checked)) and re.search(r"no 5 .* forgotten ", str(checked))
    written = tmp_path.parent / "check.json"
    assert json.loads(checked.to_json(written)) == json.loads(written.read_text())
    assert json.loads(checked.to_json())["brought_back"] == ["no 3"]
    alone = journal.check(tuned, test=world.test)  # on test samples of the classes
    assert alone.brought_back == ["no 3"]
    nothing = journal.check(tuned, {"no 5": (x, y)})
    assert [row.gone for row in nothing.rows] == [None, True] and not nothing.forgotten and nothing.loss is None
    original = journal.check(journal.original(tuned), forget)
    assert original.state == "original" and original.brought_back == ["no 3", "no 5"]


def test_check_takes_what_was_forgotten_and_nothing_else(two):
    journal, model = two
    x, y = points()
    flipped = (x.flip(0), y.flip(0))
    assert journal.check(model, {"class 0": flipped}).rows[0].samples == 20  # in any order
    for wrong in (points(90), (x + 1e-3, y), (x.double(), y)):
        with pytest.raises(ValueError, match=r"forget\['class 0'\]: its \d+ samples .* aren't the 20 that request 'class 0' forgot"):
            journal.check(model, {"class 0": wrong})
    with pytest.raises(ValueError, match="holds no sample of the classes"):
        journal.check(model, {"class 0": without(points(), 0)})
    with pytest.raises(ValueError, match="forget: 'class 9' is no request of this journal; accepted are class 0, class 1"):
        journal.check(model, {"class 9": points()})


@dataclass
class Becomes(Shift):
    """A method for tests that makes the model another one."""

    other: nn.Module | None = None

    def run(self, task):
        _weights.put_back(task.model, _weights.save(self.other))
        return {}


def test_check_of_single_samples_is_the_loss_attack_by_hand(tmp_path):
    """On a net that learned random labels by heart, and one that did so without the samples."""
    (x, y), test = points(120), points(90, 2)
    made = [nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 5)) for _ in range(2)]
    original, retrained = fit(made[0], x, y, epochs=60), fit(made[1], x[30:], y[30:], epochs=60)
    forget, given = (x[:30], y[:30]), {"retain": (x[30:], y[30:]), "nonmember": points(50, 3), "test": test}
    journal = ff.Journal(tmp_path)
    assert ask(journal, "thirty", original, Becomes(other=retrained), forget=forget, **given).forgot
    outcomes = []
    for model in (original, retrained):
        row = journal.check(model, {"thirty": forget}, test=test).rows[0]
        with torch.no_grad():
            inside, outside = (nn.functional.cross_entropy(model(a), b, reduction="none").double().numpy() for a, b in (forget, test))
        by_hand = (inside[:, None] < outside[None]).mean() + 0.5 * (inside[:, None] == outside[None]).mean()
        error = np.sqrt((30 + 90 + 1) / (12 * 30 * 90))
        assert (row.now, row.low, row.high) == pytest.approx((by_hand, 0.5 - 2 * error, 0.5 + 2 * error), abs=1e-6)
        assert row.gone == (row.low <= row.now <= row.high) and row.samples == 30
        outcomes.append(row.outcome)
    assert outcomes == ["BROUGHT BACK", "forgotten"]
    assert journal.check(original, {"thirty": forget}).rows[0].outcome == "not measured"  # without unseen data
    not_unseen = tuple(torch.cat(parts) for parts in zip(forget, test, strict=True))
    row = journal.check(retrained, {"thirty": forget}, test=not_unseen).rows[0]
    assert row.outcome == "not shown" and "30 of its samples are in test too" in row.why


def test_samples_of_classes_forgotten_later_are_left_out(tmp_path):
    (x, y), test, journal, model = points(), points(60, 2), ff.Journal(tmp_path), net()
    first = ask(journal, "ten", model, forget=(x[:10], y[:10]), retain=(x[10:], y[10:]), nonmember=points(50, 3), test=test)
    assert first.receipt["verdict"]["known_before"] is False
    ask_class(journal, 0, model, retain=without((x[10:], y[10:]), 0))
    row = journal.check(journal.model(model), {"ten": (x[:10], y[:10])}, test=test).rows[0]
    assert row.samples == 8 and "against 48 test samples" in row.why
    assert row.outcome == "not shown" and "couldn't be told before the request either" in row.why


def test_a_request_that_brings_an_earlier_class_back_is_said(tmp_path):
    class Restores(Shift):
        def run(self, task):
            *_, last = task.model.parameters()
            with torch.no_grad():
                last.add_(1e3 * (last < -500))
                last[task.classes] -= 1e3
            return {}

    journal, data = ff.Journal(tmp_path), points()
    sure = nn.Sequential(nn.Linear(4, 5))
    with torch.no_grad():
        data = (data[0], sure(data[0]).argmax(1))
    first = ask(journal, "a", sure, Shift(1e-6), classes=[0], forget=data, retain=without(data, 0), test=data)
    assert first.forgot
    with pytest.warns(ff.NotForgottenWarning, match="request 'b' brought back what 'a' forgot"):
        result = journal.unlearn("b", sure, Restores(), classes=[1], forget=data, retain=without(data, 0, 1), test=data)
    row = result.receipt["journal"]["earlier"]["a"]
    assert row["now"] > 0.9 and row["gone"] is False and row["then"] == 0.0 and row["samples"] == int((data[1] == 0).sum())


def test_loss_without_test_data_is_measured_on_what_is_kept(tmp_path, monkeypatch):
    journal, model = ff.Journal(tmp_path), net()
    assert journal.loss() is None and not journal.retrain_now
    ask_class(journal, 0, model, test=None)
    assert (journal.loss().data, journal.loss().samples) == ("retain", 80)
    monkeypatch.setattr(call, "MOST", 30)
    ask_class(journal, 1, model, test=None)
    assert (journal.loss().data, journal.loss().samples) == ("retain", 30)
    ask_class(journal, 2, model)
    assert (journal.loss().data, journal.loss().samples) == ("test", 24)
    assert journal.receipts["class 2"]["loss"].keys() == {"test", "retain"}


def test_a_first_request_that_gained_allows_no_more_than_a_point():
    true, false = torch.ones(1000, dtype=torch.bool), torch.zeros(1000, dtype=torch.bool)

    def share(n):
        return torch.where(torch.arange(1000) < n, true, false)

    gained = loss.loss_of("test", share(900), share(950), share(890))
    assert not gained.retrain and gained.more == pytest.approx(0.01)  # a point less than the original
    assert gained.error == pytest.approx(np.sqrt(0.01 * 0.99 / 1000))  # 10 of 1,000 answers differ from the original's
    assert loss.loss_of("test", share(900), share(950), share(870)).retrain
    assert loss.loss_of("test", share(900), share(880), share(850)).retrain
    assert not loss.loss_of("test", share(900), share(880), share(865)).retrain  # 1.5 points, error 0.4
    shown = str(loss.loss_of("test", share(900), share(880), share(850)))
    assert "85.0 %" in shown and "5.0 points lost, 2.0 of them by the first request; beyond that 3.0 ± 0.5. RETRAIN" in shown


# ---------------------------------------------------------------------- the page


@pytest.mark.slow
def test_the_pages_example_runs(tmp_path):
    code = re.search(r"```python\n(.*?)```", (ROOT / "docs/journal.md").read_text(), re.DOTALL).group(1)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=False, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "weights: after ticket 2" in result.stdout
    again = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=False, cwd=tmp_path)
    assert again.stdout == result.stdout
