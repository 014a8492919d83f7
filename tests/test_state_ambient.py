"""A call leaves the caller's random generators and ambient modes alone, is not moved by them, and keeps frozen statistics."""

from __future__ import annotations

import contextlib
import copy
import random
import threading

import numpy as np
import pytest
import torch
from state_world import METHODS, Blobs, changed, made, surroundings
from torch import nn
from torch.utils.data import DataLoader, Dataset

import fastforget as ff
from fastforget import _random, _weights
from fastforget._caller import Caller


@pytest.fixture(scope="module")
def blobs() -> Blobs:
    torch.set_num_threads(1)
    return Blobs()


# ------------------------------------------------------------------ random state


class Augmented(Dataset):
    def __init__(self, x, y, kind: str) -> None:
        self.x, self.y, self.kind = x, y, kind

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, i):
        drawn = {
            "torch": lambda: torch.randn(8),
            "numpy": lambda: torch.from_numpy(np.random.randn(8)).float(),
            "python": lambda: torch.tensor([random.gauss(0, 1) for _ in range(8)]),
        }[self.kind]()
        return self.x[i] + 0.3 * drawn, int(self.y[i])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["torch", "numpy", "python"])
def test_augmentation_is_seeded_whatever_it_draws_from(blobs, kind, workers):
    if workers and kind == "torch":
        pytest.skip("as with numpy")

    def load(x, y):
        return DataLoader(Augmented(x, y, kind), batch_size=100, num_workers=workers)

    prints, figures, before = [], [], surroundings()
    for burn in range(2):
        result = blobs.unlearn("unsir paper", load=load, classes=None, drop_forget=True)
        prints.append(result.receipt["weights_sha256"]["after"])
        report = blobs.audit({"original": blobs.net}, load, intervals=False).to_dict()
        del report["settings"]["seconds"]
        figures.append(report)
        assert not changed(before, surroundings())
        torch.rand(burn + 1), random.random(), np.random.rand()
        before = surroundings()
    assert prints[0] == prints[1] and figures[0] == figures[1]


def test_a_generator_of_another_kind_in_numpy_is_seeded_and_restored():
    old = np.random.get_bit_generator()
    try:
        np.random.set_bit_generator(np.random.PCG64(1))
        before = surroundings()
        drawn = []
        for _ in range(2):
            with _random.own_randomness(5):
                drawn.append(np.random.rand())
        assert drawn[0] == drawn[1] and not changed(before, surroundings())
    finally:
        np.random.set_bit_generator(old)


@pytest.mark.filterwarnings("ignore::fastforget.NotForgottenWarning")  # which warnings are shown isn't a thread's own
@pytest.mark.parametrize("name", ["unsir paper", "lightweight"])
def test_threads_give_the_bytes_of_a_run_alone(blobs, name):
    alone, out = blobs.unlearn(name).receipt["weights_sha256"]["after"], []
    report = blobs.audit({"original": blobs.net}, intervals=False).rows
    before = surroundings()

    def both() -> None:
        out.append(blobs.unlearn(name).receipt["weights_sha256"]["after"] == alone)
        out.append(blobs.audit({"original": blobs.net}, intervals=False).rows == report)

    for _ in range(3):
        threads = [threading.Thread(target=both) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert out == [True] * 18 and not changed(before, surroundings())


def test_a_thread_waits_for_its_turn_and_a_fork_does_not():
    order, entered, leave = [], threading.Event(), threading.Event()

    def first() -> None:
        with _random.own_randomness(1):
            entered.set()
            leave.wait(10)
            order.append("first")

    def second() -> None:
        with _random.own_randomness(2):
            order.append("second")

    one, two = threading.Thread(target=first), threading.Thread(target=second)
    one.start()
    entered.wait(10)
    two.start()
    with_fork = torch.multiprocessing.get_context("fork").Process(target=second)
    with_fork.start()
    with_fork.join(10)
    assert with_fork.exitcode == 0
    leave.set()
    one.join()
    two.join()
    assert order == ["first", "second"]


# ------------------------------------------------------------------ ambient modes


@contextlib.contextmanager
def default(what: str, value, back):
    getattr(torch, what)(value)
    try:
        yield
    finally:
        getattr(torch, what)(back)


AMBIENT = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "inference": torch.inference_mode,
    "no_grad": torch.no_grad,
    "default device": lambda: default("set_default_device", "meta", None),
    "device": lambda: torch.device("meta"),
    "default dtype": lambda: default("set_default_dtype", torch.float64, torch.float32),
    "deterministic": lambda: default("use_deterministic_algorithms", True, False),
}


@pytest.mark.parametrize("ambient", AMBIENT)
@pytest.mark.parametrize("name", METHODS)
def test_methods_give_the_same_bytes_under_any_mode(blobs, name, ambient):
    expected = blobs.unlearn(name).receipt["weights_sha256"]["after"]
    with AMBIENT[ambient]():
        before = surroundings()
        model = copy.deepcopy(blobs.net)
        result = blobs.unlearn(name, model, inplace=True)
        assert not changed(before, surroundings())
    assert result.receipt["weights_sha256"]["after"] == expected == _weights.fingerprint(model)


@pytest.mark.parametrize("ambient", AMBIENT)
def test_audits_give_the_same_figures_under_any_mode(blobs, ambient):
    other = made(1)

    def figures():
        models = {"original": blobs.net, "unlearned": other, "retrained": other}
        report = blobs.audit(models, controls=True, relearn=["ain"], train=(blobs.x, blobs.y)).to_dict()
        del report["settings"]["seconds"]
        held = ff.audit.shadows(
            lambda _: nn.Linear(8, 4, dtype=torch.float32, device="cpu"), (blobs.x, blobs.y), n=2, epochs=1, progress=False
        )
        return report, held

    expected, shadows = figures()
    with AMBIENT[ambient]():
        before = surroundings()
        again, other_shadows = figures()
        assert again == expected and not changed(before, surroundings())
    there, here = shadows.tensors(), other_shadows.tensors()
    assert all(torch.equal(there[name], here[name]) for name in there)


def test_a_model_s_own_autocast_sees_its_weights_as_they_are(blobs):
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = copy.deepcopy(blobs.net)

        def forward(self, x):
            with torch.autocast("cpu", torch.bfloat16):
                return self.net(x).float()

    expected = blobs.unlearn("unsir paper", Half()).receipt["weights_sha256"]["after"]
    model = Half()
    with torch.autocast("cpu", torch.bfloat16):
        model.net(blobs.x[:8])  # the block's cache now holds its weights
        model.net.calls.copy_(blobs.net.calls)
        assert blobs.unlearn("unsir paper", model, inplace=True).receipt["weights_sha256"]["after"] == expected
        within = model(blobs.x[:8])
    assert torch.equal(within, model(blobs.x[:8]))


def test_the_caller_s_functions_run_on_his_default_device(blobs):
    seen = set()

    def forward(model, x):
        seen.add(torch.zeros(1).device.type)
        return model(x)

    with torch.device("meta"):
        blobs.unlearn("none", forward=forward)
        blobs.audit({"original": blobs.net}, forward=forward)
    assert seen == {"meta"}


@pytest.mark.parametrize("call", ["unlearn", "audit", "controls", "relearn_time", "shadows"])
def test_transforms_are_refused_by_name(blobs, call):
    sets = blobs.sets()
    pair = {"forget": sets["forget"], "retain": sets["retain"]}
    calls = {
        "unlearn": lambda: blobs.unlearn("none"),
        "audit": lambda: blobs.audit({"original": blobs.net}),
        "controls": lambda: ff.audit.controls(blobs.net, **pair),
        "relearn_time": lambda: ff.audit.relearn_time(blobs.net, train=pair["retain"], forget=pair["forget"], original_accuracy=1.0),
        "shadows": lambda: ff.audit.shadows(lambda _: nn.Linear(8, 4), (blobs.x, blobs.y), n=2, epochs=1, progress=False),
    }
    before = surroundings()
    with pytest.raises(RuntimeError, match=rf"^{call}: called inside a transform of torch.func"):
        torch.func.grad(lambda x: (calls[call](), x)[1])(torch.tensor(1.0))
    assert not changed(before, surroundings())


def test_the_outer_context_puts_back_what_the_inner_one_could_not(monkeypatch):
    before = surroundings()
    with Caller() as caller:
        aside = caller.aside("test", 1)
        aside.__enter__()
        torch.rand(3), random.random(), np.random.rand()
        assert changed(before, surroundings())
    assert not changed(before, surroundings())


# ------------------------------------------------------------------ frozen batch norm


@pytest.mark.parametrize("by", ["parameters", "flag", "around"])
@pytest.mark.parametrize("name", [name for name in METHODS if name != "none"])
def test_frozen_batch_norm_keeps_its_statistics(blobs, name, by):
    model = frozen(blobs.net, by)
    result = blobs.unlearn(name, model)
    for part in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(getattr(result.model.norm, part), getattr(model.norm, part))
    assert [m.training for m in result.model.modules()] == [m.training for m in model.modules()]


def frozen(net: nn.Module, by: str) -> nn.Module:
    model = copy.deepcopy(net)
    if by == "parameters":
        model.norm.requires_grad_(False)
    elif by == "flag":
        model.train()
        model.norm.eval()
    else:  # a norm without parameters in a frozen body
        norm = nn.BatchNorm1d(16, affine=False)
        norm.load_state_dict({k: v for k, v in model.norm.state_dict().items() if "running" in k or "num" in k})
        model.norm = norm.eval()
        model.first.requires_grad_(False)
        model.last.requires_grad_(True)
        body = nn.Sequential(model.first, norm)
        model.body = body.requires_grad_(False)
    return model


def test_batch_norm_that_is_trained_still_moves(blobs):
    for name in ("unsir paper", "unsir samples"):
        result = blobs.unlearn(name)
        assert not torch.equal(result.model.norm.running_mean, blobs.net.norm.running_mean)


@pytest.mark.parametrize("by", ["parameters", "flag"])
def test_frozen_batch_norm_in_what_an_audit_trains(blobs, by, monkeypatch):
    model, seen = frozen(blobs.net, by), []
    real = nn.BatchNorm1d.forward
    monkeypatch.setattr(nn.BatchNorm1d, "forward", lambda self, x: (seen.append(self.training), real(self, x))[1])
    sets = blobs.sets()
    made_of_it = ff.audit.controls(model, forget=sets["forget"], retain=sets["retain"])
    assert torch.equal(made_of_it["fine_tuned"].norm.running_mean, model.norm.running_mean)
    goal = {"original_accuracy": 1.0, "definition": "ain", "tolerance": 0.0, "cap": 1}
    ff.audit.relearn_time(model, train=(blobs.x, blobs.y), forget=sets["forget"], progress=False, **goal)

    def make_model(seed):
        return frozen(made(seed), by)

    ff.audit.shadows(make_model, (blobs.x, blobs.y), n=2, epochs=1, progress=False)
    assert seen and not any(seen)
