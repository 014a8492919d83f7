"""What ``unlearn`` refuses before anything starts: each error names the argument, and nothing has changed."""

from __future__ import annotations

import inspect
import re

import pytest
import torch
from digits_world import quiet, same_trace, small_mlp, trace
from torch import nn
from torch.utils.data import Dataset, Subset, TensorDataset

from fastforget import _overlap as overlap
from fastforget._data import source
from fastforget.methods import unlearn
from fastforget.methods.registry import ARGUMENTS, METHODS


def refusals():
    x, y = torch.zeros(40, 1, 8, 8), torch.arange(40) % 10
    keep = y != 3
    good = {"retain": (x[keep], y[keep]), "classes": [3]}
    mixed = small_mlp()
    mixed[3].to("meta")
    broken = small_mlp()
    nn.init.constant_(broken[1].weight, float("nan"))
    frozen = small_mlp().requires_grad_(False)
    cases = {
        "no classes": ({"classes": None}, ValueError, "classes: not given"),
        "empty classes": ({"classes": []}, TypeError, r"classes: got \[\]"),
        "unknown class": ({"classes": [3, 12]}, ValueError, r"classes: \[12\] unknown .* 0 to 9"),
        "negative class": ({"classes": [-1]}, TypeError, "classes: got"),
        "no retain": ({"retain": None}, ValueError, "retain: not given"),
        "empty retain": ({"retain": (x[:0], y[:0])}, ValueError, "retain: the set is empty"),
        "retain holds it": ({"retain": (x, y)}, ValueError, "4 of its 40 samples .* drop_forget=True"),
        "samples for whole classes": ({"classes": None, "forget": (x[:4], y[:4])}, ValueError, "12 of its 36 .* unsir .* take 'sweep'"),
        "retain is it": ({"retain": (x[~keep], y[~keep]), "drop_forget": True}, ValueError, "all 4 samples"),
        "integer images": ({"retain": (x[keep].long(), y[keep])}, TypeError, "int64; accepted are floating point"),
        "labels too high": ({"retain": (x[keep], y[keep] + 7)}, ValueError, "label 1[0-6] at sample .* 0 to 9"),
        "lists": ({"retain": (x[keep].tolist(), y[keep].tolist())}, TypeError, "retain: got a tuple of 2: .*lists: torch.tensor"),
        "float labels": ({"retain": (x[keep], y[keep].float())}, TypeError, "integer class ids"),
        "forget of another class": ({"forget": (x[keep], y[keep])}, ValueError, "forget: holds no sample"),
        "mixed devices": ({"model": mixed}, ValueError, "on cpu but 3.weight on meta"),
        "no parameters": ({"model": nn.Flatten()}, ValueError, "no parameters"),
        "all frozen": ({"model": frozen}, ValueError, "no parameter requires a gradient"),
        "not a model": ({"model": len}, TypeError, "torch.nn.Module"),
        "NaN logits": ({"model": broken}, ValueError, "aren't finite"),
        "no logits": ({"forward": lambda m, x: m(x).sum()}, TypeError, r"accepted are logits \[batch, classes\]"),
        "method": ({"method": "scrubbing"}, ValueError, "method: got 'scrubbing'"),
        "option": ({"copy": 3}, TypeError, "unknown option 'copy', did you mean 'copies'"),
        "preset": ({"preset": "papers"}, ValueError, "preset: got 'papers'"),
        "choice": ({"label_rule": "mine"}, ValueError, "label_rule: got 'mine'"),
        "number": ({"noise_batch": 0}, ValueError, "noise_batch: got 0"),
        "whole number": ({"noise_batch": True}, ValueError, "noise_batch: got True; accepted is an int >= 1"),
        "rate": ({"method": "salun", "lr": True}, ValueError, "lr: got True; accepted is a finite number >= 0"),
        "seed": ({"seed": -1}, ValueError, "seed: got -1"),
    }
    return [pytest.param({**good, **given}, error, says, id=name) for name, (given, error, says) in cases.items()]


@pytest.mark.parametrize(("given", "error", "says"), refusals())
def test_refusals(given, error, says):
    given = {"model": small_mlp(), **given}
    model = given.pop("model")
    before = trace(model) if isinstance(model, nn.Module) and not any(p.is_meta for p in model.parameters()) else None
    with pytest.raises(error, match=says):
        unlearn(model, given.pop("method", "unsir"), inplace=True, **given)
    assert before is None or same_trace(trace(model), before)


# Sets that the model can't take


class Listed(Dataset):
    """A map-style data set that isn't made of tensors."""

    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.y)

    def __getitem__(self, i):
        return self.x[i].clone(), int(self.y[i])


def spoilt(data, at=7):
    x = data[0].clone()
    x[at, 0, 3, 3] = float("nan")
    return x, data[1]


def unfit():
    x, y = torch.zeros(40, 1, 8, 8), torch.arange(40) % 10
    keep = y != 3
    sets = {"retain": (x[keep], y[keep]), "forget": (x[~keep], y[~keep]), "nonmember": (x, y), "test": (x, y)}
    for name, (inputs, labels) in sets.items():
        failed = f"{name}: the model's forward failed on a tensor of shape (2, 1, 8, 8), torch.float64 of it with RuntimeError: mat1"
        yield pytest.param(sets | {name: (inputs.double(), labels)}, RuntimeError, failed, id=f"{name} float64")
        failed = f"{name}: the model's forward failed on a tensor of shape (2, 1, 8, 7), torch.float32 of it with RuntimeError: mat1"
        yield pytest.param(sets | {name: (inputs[..., :7], labels)}, RuntimeError, failed, id=f"{name} narrow")
        at = min(7, len(labels) - 1)
        failed = f"{name}: the model's logits on sample {at} aren't finite"
        yield pytest.param(sets | {name: spoilt((inputs, labels), at)}, ValueError, failed, id=f"{name} NaN")
        unlike = [(list(image.flatten()), int(label)) for image, label in zip(inputs, labels, strict=True)]
        failed = f"{name}: the model's forward failed on a list of 64: (Tensor, Tensor, Tensor, Tensor) of it with AttributeError"
        yield pytest.param(sets | {name: unlike}, RuntimeError, failed, id=f"{name} lists")
    listed = Listed(*spoilt(sets["forget"], 2))
    said = "forget: the model's logits on sample 2 aren't finite"
    yield pytest.param(sets | {"forget": listed}, FloatingPointError, said, id="listed NaN")
    shown = Subset(TensorDataset(*spoilt((x, y))), range(7, 40, 10))
    yield pytest.param(sets | {"test": shown}, ValueError, "test: the model's logits on sample 0 aren't finite", id="part NaN")


@pytest.mark.parametrize(("sets", "error", "says"), list(unfit()))
def test_a_set_that_the_model_can_t_take_is_named(sets, error, says):
    model = small_mlp()
    before = trace(model)
    with pytest.raises(error, match=re.escape(says)):
        unlearn(model, "lightweight", classes=[3], inplace=True, progress=False, **sets)
    assert same_trace(trace(model), before)


def test_inputs_with_nan_that_the_model_takes_are_no_matter():
    class Imputes(nn.Module):
        def __init__(self):
            super().__init__()
            self.inside = small_mlp()

        def forward(self, x):
            return self.inside(x.nan_to_num(0.5))

    x, y = torch.zeros(40, 1, 8, 8), torch.arange(40) % 10
    sets = {name: spoilt((x[mask], y[mask]), 1) for name, mask in (("forget", y == 3), ("retain", y != 3))}
    assert quiet(Imputes(), "lightweight", classes=[3], nonmember=spoilt((x, y)), progress=False, steps=2, **sets).cost.passes > 0


def test_logits_that_a_method_made_nan_are_no_answers():
    """The weights are finite, and class 3's samples would be answered with class 0: NaN is argmax's choice."""

    class Overflows:
        name, scope, learns_noise, gradients = "overflows", "samples", False, ()

        def receipt(self):
            return {}

        def run(self, task):
            with torch.no_grad():
                task.model.weight[0] = torch.tensor([3e38, 3e38])
            return {}

    x = torch.tensor([[1.0, 1.0]] * 20 + [[0.5, 0.0]] * 20)
    sets = {"forget": (x[:20], torch.full((20,), 3)), "retain": (x[20:], torch.zeros(20, dtype=torch.int64))}
    with pytest.raises(FloatingPointError, match="forget: the model's logits on sample 0 aren't finite"):
        unlearn(nn.Linear(2, 4), Overflows(), classes=[3], progress=False, **sets)


def test_an_unknown_option_is_named_by_every_method():
    x, y = torch.zeros(40, 1, 8, 8), torch.arange(40) % 10
    names = inspect.signature(unlearn).parameters.keys() - {"model", "method", "options"}
    assert set(ARGUMENTS) == names
    for method in METHODS:
        with pytest.raises(TypeError, match=f"{method}: unknown option 'nonmembers', did you mean 'nonmember'"):
            unlearn(small_mlp(), method, classes=[3], retain=(x, y), nonmembers=(x, y))


# Samples to forget that are in another set too


def samples(n=120, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 1, 8, 8, generator=generator), torch.randint(0, 10, (n,), generator=generator)


def cut(data, a, b):
    return data[0][a:b], data[1][a:b]


def overlapping():
    data, others = samples(), samples(60, 1)
    listed, tensors = Listed(*data), TensorDataset(*data)
    inner = Subset(listed, range(18, 120))
    clean = {"forget": cut(data, 0, 20), "retain": cut(data, 20, 120), "nonmember": others}
    cases = {
        "retain": ({"retain": cut(data, 10, 120)}, r"forget: 10 of its 20 samples are in retain too .* check_overlap=False"),
        "nonmember": ({"nonmember": tuple(torch.cat(p) for p in zip(others, cut(data, 4, 8), strict=True))}, "4 of its 20 .* in nonmember"),
        "test": ({"test": tuple(torch.cat(p) for p in zip(cut(data, 0, 3), others, strict=True))}, "3 of its 20 .* in test .* would hide"),
        "one is too many of few": ({"forget": cut(data, 0, 5), "retain": cut(data, 4, 120)}, "1 of its 5 samples are in retain"),
        "data sets": ({"forget": Listed(*cut(data, 0, 20)), "retain": Listed(*cut(data, 15, 120))}, r"5 of its 20 .* \(same contents"),
        "parts of one": ({"forget": Subset(listed, range(20)), "retain": Subset(listed, range(17, 120))}, r"3 of its 20 .* \(same indices"),
        "parts of tensors": (
            {"forget": Subset(tensors, range(20)), "retain": Subset(tensors, range(19, 120))},
            r"1 of its 20 .* \(same indices",
        ),
        "parts of parts": ({"forget": Subset(listed, range(20)), "retain": Subset(inner, range(50))}, "2 of its 20"),
        "another order": ({"retain": tuple(t.flip(0) for t in cut(data, 12, 120))}, "8 of its 20 samples"),
    }
    return [pytest.param({**clean, **given}, says, id=name) for name, (given, says) in cases.items()]


@pytest.mark.parametrize("method", ["lightweight", "unsir"])
@pytest.mark.parametrize(("given", "says"), overlapping())
def test_a_forget_set_in_another_set_is_refused(given, says, method):
    model = small_mlp()
    before = trace(model)
    with pytest.raises(ValueError, match=says):
        unlearn(model, method, inplace=True, progress=False, **given, **({"preset": "samples"} if method == "unsir" else {}))
    assert same_trace(trace(model), before)


def test_samples_that_differ_in_label_or_one_bit_are_not_shared():
    x, y = samples()
    bit = x[:20].clone()
    bit.view(torch.int32)[:, 0, 7, 7] ^= 1
    twins = torch.cat((bit, x[:20])), torch.cat((y[:20], (y[:20] + 1) % 10))
    sets = {"retain": twins, "nonmember": samples(30, 2), "test": samples(30, 3)}
    result = quiet(small_mlp(), "none", forget=(x[:20], y[:20]), progress=False, **sets)
    none = {"how": "contents", "shared": 0, "allowed": pytest.approx(0.2 + 2 * 0.2**0.5)}
    assert result.receipt["overlap"] == {"retain": none, "nonmember": none, "test": none}


def test_twins_within_the_data_explain_shared_samples():
    """A tenth of the data are copies: as many of the forget samples may be shared, twice over, and the receipt counts them."""
    x, y = samples(400)
    x[200:220], y[200:220] = x[300:320], y[300:320]  # twins within retain: 40 of 300
    x[0:6], y[0:6] = x[110:116], y[110:116]  # and across: 6 of 100
    result = quiet(small_mlp(), "none", forget=cut((x, y), 0, 100), retain=cut((x, y), 100, 400), progress=False)
    overlap_of_retain = result.receipt["overlap"]["retain"]
    assert overlap_of_retain["shared"] == 6
    expected = (0.01 + 2 * 40 / 300) * 100
    assert overlap_of_retain["allowed"] == pytest.approx(expected + 2 * expected**0.5)
    x[200:220] = torch.randn(20, 1, 8, 8)
    with pytest.raises(ValueError, match="6 of its 100 samples are in retain"):
        unlearn(small_mlp(), "none", forget=cut((x, y), 0, 100), retain=cut((x, y), 100, 400), progress=False)


def test_the_check_can_be_switched_off_and_does_not_read_large_sets(monkeypatch):
    data = samples()
    sets = {"forget": cut(data, 0, 20), "retain": cut(data, 10, 120), "progress": False}
    assert "check_overlap=False" in quiet(small_mlp(), "none", check_overlap=False, **sets).receipt["overlap"]["how"]
    monkeypatch.setattr(overlap, "READ_LIMIT", 100)
    sets["retain"] = Listed(*sets["retain"])
    assert quiet(small_mlp(), "none", **sets).receipt["overlap"]["retain"]["how"].startswith("not checked: 110 samples")
    # whole classes: labels keep the sets apart and test only measures, nothing is read
    x, y = data
    whole = {"forget": (x[y == 3], y[y == 3]), "retain": (x[y != 3], y[y != 3]), "test": data}
    assert quiet(small_mlp(), "none", classes=[3], progress=False, **whole).receipt["overlap"] == {}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.uint8, torch.int64])
def test_fingerprints_tell_samples_apart(dtype):
    """Every pair of 20,000 nearly equal samples differs: one value changed, at every place and by the smallest step."""
    base = torch.zeros(20_000, 7, 13, dtype=dtype)
    where = torch.arange(20_000)
    base.view(20_000, -1)[where, where % 91] = (where // 91 + 1).to(dtype)
    prints = overlap.fingerprints(source((base, torch.zeros(20_000, dtype=torch.int64)), name="forget"))
    assert len(prints.unique()) == len(base.view(20_000, -1).unique(dim=0))


@pytest.mark.parametrize("repeats", [1, 2, 4])
def test_fingerprints_tell_enlarged_images_apart(repeats):
    """Few values, each written several times side by side: the halves of 64-bit words are the same, and most of their bits are zero."""
    small = torch.arange(16**4).view(-1, 1).bitwise_right_shift(torch.arange(0, 16, 4)) % 16 / 8 - 1
    prints = overlap.fingerprints(source((small.repeat_interleave(repeats, dim=1), torch.zeros(16**4, dtype=torch.int64)), name="forget"))
    assert len(small.unique(dim=0)) == len(prints.unique()) == 16**4


@pytest.mark.parametrize("method", ["forsaken", "lightweight"])
def test_what_these_methods_refuse(method):
    data = samples()
    good = {"forget": cut(data, 0, 20), "retain": cut(data, 20, 120), "nonmember": samples(60, 1), "progress": False}
    wide = nn.Sequential(nn.Flatten(), nn.Linear(64, 30_000), nn.Linear(30_000, 10))
    cases = [
        (small_mlp(), {"nonmember": None}, {}, "nonmember: not given"),
        (small_mlp(), {"forget": None, "classes": [3]}, {}, "forget: not given"),
        (small_mlp().requires_grad_(False), {}, {}, "no parameter requires a gradient"),
    ]
    if method == "forsaken":
        cases.append((wide, {}, {"generator": "dense"}, r"generator: 'dense' needs \d+\.\d GiB .* Use generator='neuron'"))
    for model, change, options, says in cases:
        before = trace(model)
        with pytest.raises(ValueError, match=says):
            unlearn(model, method, inplace=True, **{**good, **change}, **options)
        assert same_trace(trace(model), before)


def test_a_wrecked_model_has_not_forgotten():
    """A class isn't answered any more because nothing is: the verdict says so."""
    data = samples(400)
    x, y = data[0] + torch.nn.functional.one_hot(data[1], 64).view(-1, 1, 8, 8) * 6, data[1]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = small_mlp()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    keep = y != 3

    class Wreck:
        name, scope, learns_noise = "wreck", "classes", False

        def run(self, task):
            with torch.no_grad():
                task.model[3].weight.zero_()
                task.model[3].bias.copy_(torch.arange(10.0))
            return {}

        def receipt(self):
            return {}

    result = quiet(model, Wreck(), classes=[3], forget=(x[~keep], y[~keep]), retain=(x[keep], y[keep]), progress=False)
    assert not result.forgot and "lost more than it was to forget" in result.why
