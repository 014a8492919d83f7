"""A call leaves the model as given alone, whatever happens and wherever."""

from __future__ import annotations

import copy
import threading
import warnings

import pytest
import torch
from digits_world import quiet
from interrupts import interrupted, lines_to_try
from state_world import METHODS, Blobs, Net, changed, made, marked, state_of
from torch import nn

import fastforget as ff
from fastforget import _weights
from fastforget.methods import unlearn


@pytest.fixture(scope="module")
def blobs() -> Blobs:
    torch.set_num_threads(1)
    return Blobs()


# ------------------------------------------------------------------ interrupts


@pytest.mark.parametrize(("name", "inplace"), [("unsir paper", True), ("unsir paper", False), ("none", True), ("lightweight", True)])
def test_an_interrupt_at_any_line_of_unlearn_changes_nothing(blobs, name, inplace):
    model = marked(blobs.net)

    def call(target=None):
        return blobs.unlearn(name, model if target is None else target, inplace=inplace)

    call(marked(blobs.net))  # what is made once is made
    _, total = interrupted(lambda: call(marked(blobs.net)), -1)
    before = state_of(model)
    # the first lines set the caller's state aside, the last ones put it back, judge, and write
    for at in lines_to_try(total, 70, 130, 40):
        cut, _ = interrupted(call, at)
        found = changed(before, state_of(model))
        assert not found or (not cut and inplace), (at, total, found)
        if found:
            assert found == ["weights"]
            model = marked(blobs.net)
            before = state_of(model)


@pytest.mark.parametrize("kind", ["audit", "controls", "relearn"])
def test_an_interrupt_at_any_line_of_an_audit_changes_nothing(blobs, kind):
    model = marked(blobs.net)
    sets = blobs.sets()
    calls = {
        "audit": lambda: blobs.audit({"original": model}, intervals=False),
        "controls": lambda: ff.audit.controls(model, forget=sets["forget"], retain=sets["retain"]),
        "relearn": lambda: ff.audit.relearn_time(
            model, train=(blobs.x, blobs.y), forget=sets["forget"], original_accuracy=1.0, cap=2, progress=False
        ),
    }
    calls[kind]()
    _, total = interrupted(calls[kind], -1)
    before = state_of(model)
    for at in lines_to_try(total, 60, 60, 60):
        interrupted(calls[kind], at)
        assert not changed(before, state_of(model)), (at, total)


def test_a_write_that_is_interrupted_is_undone(blobs, monkeypatch):
    """A signal that arrives during the write itself is raised after it, before anything else runs."""
    model, real, calls = marked(blobs.net), torch._foreach_copy_, []
    before = state_of(model)

    def signalled(*args):
        real(*args)
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(torch, "_foreach_copy_", signalled)
    with pytest.raises(KeyboardInterrupt):
        blobs.unlearn("unsir paper", model, inplace=True)
    assert len(calls) == 2 and not changed(before, state_of(model))


@pytest.mark.parametrize("name", ["unsir paper", "lightweight", "none"])
def test_a_warning_raised_as_an_error_changes_nothing(blobs, name):
    model = marked(blobs.net)
    before = state_of(model)
    method, options = METHODS[name]
    small = options | {"unsir paper": {"impair_lr": 1e-6, "repair_lr": 1e-6}, "lightweight": {"step_size": 1e-6}}.get(name, {})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ff.NotForgottenWarning):
            unlearn(model, method, classes=[1], inplace=True, progress=False, **blobs.sets(), **small)
    assert not changed(before, state_of(model))


def test_a_run_that_leaves_another_structure_is_refused_in_place(blobs):
    class Regrown:
        name, scope, learns_noise = "regrown", "samples", False

        def receipt(self):
            return {}

        def run(self, task):
            task.model.scale = torch.ones(2)
            task.model.forward = lambda x: Net.forward(made(), x)
            return {}

    model = marked(blobs.net)
    before = state_of(model)
    with pytest.raises(RuntimeError, match=r"the run left shape \(2,\) for scale of shape \(1,\); with inplace=False"):
        quiet(model, Regrown(), classes=[1], inplace=True, progress=False, **blobs.sets())
    assert not changed(before, state_of(model))


# ------------------------------------------------------------------ what a forward pass moves


@pytest.mark.parametrize("inplace", [False, True])
def test_buffers_that_count_do_not_move_in_the_given_model(blobs, inplace):
    model = copy.deepcopy(blobs.net)
    given = int(model.calls)
    result = quiet(model, "none", classes=[1], inplace=inplace, progress=False, **blobs.sets())
    prints = result.receipt["weights_sha256"]
    assert int(model.calls) == int(result.model.calls) == given and prints["before"] == prints["after"]
    blobs.unlearn("lightweight", model)
    assert int(model.calls) == given


def test_a_buffer_that_is_replaced_counts_too():
    class Replaces(nn.Linear):
        def __init__(self):
            super().__init__(4, 3)
            self.register_buffer("calls", torch.tensor(0))

        def forward(self, x):
            self.calls = self.calls + 1
            return super().forward(x)

    model = made(0, Replaces)
    with _weights.evaluating(model):
        model(torch.zeros(1, 4))
    assert int(model.calls) == 0


def test_an_audit_calls_copies(blobs):
    model, other = marked(blobs.net), marked(made(1))
    before = state_of(model), state_of(other)
    report = blobs.audit(
        {"original": model, "unlearned": other, "retrained": model},
        teacher=other, controls=True, relearn=["ain"], train=(blobs.x, blobs.y), oracles={"loss": ff.audit.oracles.LossThreshold(0.5)},
    )  # fmt: skip
    assert not changed(before[0], state_of(model)) and not changed(before[1], state_of(other))
    assert report.settings["models"]["original"]["weights_sha256"] == before[0]["weights"]
    assert report.rows[0]["weight_distance"] is not None
    ff.audit.oracles.logits_of(model, (blobs.x, blobs.y))
    assert not changed(before[0], state_of(model))


def test_a_model_that_cannot_be_copied_is_audited_all_the_same(blobs):
    model = copy.deepcopy(blobs.net)
    model.kept = threading.Lock()
    with pytest.raises(TypeError):
        copy.deepcopy(model)
    assert _weights.reading_copy(model) is model
    model.train()
    assert blobs.audit({"original": model}).rows[0]["accuracy"]["test"] > 0.9
    assert model.training and model.norm.training


def test_a_reading_copy_shares_memory_and_keeps_assignments_to_itself():
    class Renormed(nn.Linear):
        def forward(self, x):
            self.weight.data = torch.renorm(self.weight.data, 2, 0, 0.1)
            return super().forward(x)

    model = made(0, lambda: Renormed(4, 3))
    before, copied = _weights.fingerprint(model), _weights.reading_copy(model)
    assert copied.weight.data_ptr() == model.weight.data_ptr()
    copied(torch.ones(1, 4))
    assert _weights.fingerprint(model) == before
