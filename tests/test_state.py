"""A call leaves the caller's state alone: the model as given, hidden modes, random generators, whatever happens and wherever."""

from __future__ import annotations

import contextlib
import copy
import random
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from digits_world import quiet, trace
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

import fastforget as ff
from fastforget import _random, _weights
from fastforget._caller import Caller
from fastforget.methods import unlearn

METHODS = {
    "unsir paper": ("unsir", {"preset": "paper", "noise_batch": 6, "noise_steps": 2, "copies": 2}),
    "unsir train": ("unsir", {"preset": "paper", "noise_batch": 6, "noise_steps": 2, "copies": 2, "noise_mode": "train"}),
    "unsir auto": ("unsir", {"noise_batch": 6, "noise_steps": 2, "repair_epochs": 1}),
    "unsir samples": ("unsir", {"preset": "samples", "noise_steps": 2}),
    "forsaken": ("forsaken", {"steps": 5}),
    "forsaken coordinate": ("forsaken", {"steps": 5, "generator": "coordinate"}),
    "forsaken dense": ("forsaken", {"steps": 5, "generator": "dense"}),
    "lightweight": ("lightweight", {"steps": 5}),
    "interpolate": ("lightweight", {"steps": 5, "direction": "interpolate", "finetune_epochs": 1}),
    "none": ("none", {}),
}


class Net(nn.Module):
    """With everything that a run could leave moved: batch norm, dropout, a buffer that counts, one outside the state_dict."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.drop, self.last = nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(0.2), nn.Linear(16, 4)
        self.register_buffer("calls", torch.tensor(0))
        self.register_buffer("scale", torch.ones(1), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.last(self.drop(F.relu(self.norm(self.first(x))))) * self.scale


def made(seed: int = 0, make=Net) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


class Blobs:
    """Four classes in eight dimensions, and a net that knows them."""

    def __init__(self) -> None:
        g = torch.Generator().manual_seed(0)
        self.x, self.y = torch.randn(400, 8, generator=g), torch.arange(400) % 4
        self.x[torch.arange(400), self.y] += 4
        self.first = torch.arange(300) < 30
        self.net = made()
        optimiser = torch.optim.Adam(self.net.parameters(), 1e-2)
        with torch.random.fork_rng():
            for _ in range(60):
                optimiser.zero_grad()
                F.cross_entropy(self.net(self.x[:300]), self.y[:300]).backward()
                optimiser.step()
        for p in self.net.parameters():
            p.grad = None
        self.net.eval()

    def sets(self, name: str = "", load=lambda x, y: (x, y)) -> dict:
        x, y = self.x, self.y
        wanted = self.first if name == "unsir samples" else y[:300] == 1
        unseen = load(x[300:], y[300:])
        parts = {"forget": load(x[:300][wanted], y[:300][wanted]), "retain": load(x[:300][~wanted], y[:300][~wanted])}
        return parts | {"nonmember": unseen, "test": unseen}

    def unlearn(self, name: str, model: nn.Module | None = None, load=lambda x, y: (x, y), **options):
        method, own = METHODS[name]
        classes = None if name == "unsir samples" else [1]
        given = {"classes": classes, "seed": 3, "progress": False, **self.sets(name, load), **own, **options}
        return quiet(copy.deepcopy(self.net) if model is None else model, method, **given)

    def audit(self, models: dict[str, nn.Module], load=lambda x, y: (x, y), **options):
        sets = self.sets(load=load)
        del sets["nonmember"]
        return ff.audit(models, **sets, progress=False, **options)


@pytest.fixture(scope="module")
def blobs() -> Blobs:
    torch.set_num_threads(1)
    return Blobs()


def marked(model: nn.Module) -> nn.Module:
    """Mixed flags, a gradient and a hook, so that "as before" means something."""
    model = copy.deepcopy(model)
    model.train()
    model.norm.eval()
    model.last.bias.requires_grad_(False)
    model.first.weight.grad = torch.ones_like(model.first.weight)
    model.first.register_forward_hook(lambda *_: None)
    return model


def state_of(model: nn.Module) -> dict:
    """All that belongs to the caller."""
    weights, training, gradients, grads = trace(model)
    return {
        "weights": weights,
        "training": training,
        "requires_grad": gradients,
        "grads": [None if g is None else g.tolist() for g in grads],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in model.modules()],
        "tensors": [(id(p), p.data_ptr()) for p in (*model.parameters(), *model.buffers())],
        **surroundings(),
    }


def surroundings() -> dict:
    return {
        "torch": torch.get_rng_state().tolist(),
        "python": random.getstate(),
        "numpy": str(np.random.get_state(legacy=False)),
        "grad mode": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.is_autocast_cache_enabled()),
        "device": torch.get_default_device(),
        "dtype": torch.get_default_dtype(),
        "turn": _random.holds_turn(),
    }


def changed(before: dict, after: dict, but: tuple[str, ...] = ()) -> list[str]:
    return [name for name in before if before[name] != after[name] and name not in but]


# ------------------------------------------------------------------ interrupts


class Interrupt:
    """Raises a KeyboardInterrupt at the n-th line that is run in the package, or where it enters and leaves contexts."""

    FILES = (contextlib.__file__, torch.random.__file__, torch.autograd.grad_mode.__file__, random.__file__)
    PACKAGE = str(Path(ff.__file__).parent)

    def __init__(self, at: int) -> None:
        self.at, self.lines = at, 0

    def __call__(self, frame, event, _):
        name = frame.f_code.co_filename
        return self.line if name.startswith(self.PACKAGE) or name in self.FILES else None

    def line(self, frame, event, _):
        if event == "line":
            self.lines += 1
            if self.lines == self.at:
                raise KeyboardInterrupt
        return self.line


def interrupted(call, at: int) -> tuple[bool, int]:
    """Whether the call was cut short by an interrupt at this line, and how many lines were run."""
    interrupt = Interrupt(at)
    sys.settrace(interrupt)
    try:
        call()
        return False, interrupt.lines
    except KeyboardInterrupt:
        return True, interrupt.lines
    finally:
        sys.settrace(None)


def lines_to_try(total: int, head: int, tail: int, others: int) -> list[int]:
    drawn = random.Random(0).sample(range(1, total + 1), others)
    return sorted({*range(1, head), *drawn, *range(total - tail, total + 1)})


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
