"""Labels, class ids and seeds, and where in a batch the labels are."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import fastforget as ff

from . import case, refusal
from .blobs import X, Y, audited, plain, same, sets, unlearned, weights


def _accuracy(make):
    return round(audited(plain(), sets(make), intervals=False).rows[0]["accuracy"]["retain"], 2)


FORMS = {
    "int32": lambda y: y.int(),
    "uint8": lambda y: y.to(torch.uint8),
    "[N, 1]": lambda y: y[:, None],
    "numpy": lambda y: y.numpy(),
    "numpy, backwards": lambda y: y.numpy()[::-1].copy()[::-1],
}
for _name, _form in FORMS.items():
    case(f"labels: {_name}", True)(
        lambda form=_form: _accuracy(lambda x, y: (x if isinstance(form(y), torch.Tensor) else x.numpy(), form(y))) > 0.9
    )
for _name, _form in {"one-hot integers": lambda y: F.one_hot(y, 3), "one-hot floats": lambda y: F.one_hot(y, 3).float()}.items():
    case(f"labels: {_name}", "refused")(
        lambda form=_form: refusal(lambda: audited(plain(), sets(lambda x, y: (x, form(y)))), "forget", "one-hot", "argmax(1)")
    )

CLASSES = {
    "numpy integer": np.int64(0), "list of them": [np.int32(0)], "numpy array": np.array([0]), "tensor": torch.tensor([0]),
    "list of tensors": [torch.tensor(0)], "range": range(1), "0-d array": np.array(0),
}  # fmt: skip
for _name, _given in CLASSES.items():
    case(f"classes: {_name}", [0])(
        lambda given=_given: unlearned(plain(), "unsir", classes=given, preset="paper", noise_steps=1).receipt["classes"]
    )
for _name, _given in {"floats": [0.0], "truth value": True, "array of truth values": np.array([True])}.items():
    case(f"classes: {_name}", "refused")(lambda given=_given: refusal(lambda: unlearned(plain(), "unsir", classes=given), "classes: got"))


@case("seed: numpy integer", True)
def _():
    a, b = (unlearned(plain(), "unsir", preset="paper", noise_steps=2, seed=seed) for seed in (3, np.int64(3)))
    return same(weights(a.model), weights(b.model)) and type(b.receipt["seed"]) is int


# (x, y, third)

GROUP = torch.arange(600) // 7 % 2
THIRD = {"group 0/1": GROUP, "index": torch.arange(600), "column [N, 1]": GROUP[:, None]}
for _name, _third in THIRD.items():
    case(f"three elements: third is {_name}", "refused")(
        lambda third=_third: refusal(
            lambda: audited(plain(), {k: TensorDataset(X[p], Y[p], third[p]) for k, p in _parts().items()}), "forget", "unpack="
        )
    )


def _parts():
    from .blobs import PARTS

    return PARTS


SECOND = {"labels as floats": Y.float(), "one-hot labels": F.one_hot(Y), "labels as truth values": Y > 1}
for _name, _second in SECOND.items():
    case(f"three elements: second is {_name}", "refused")(
        lambda second=_second: refusal(
            lambda: unlearned(plain(), "forsaken", {k: TensorDataset(X[p], second[p], GROUP[p]) for k, p in _parts().items()}), "unpack="
        )
    )


@case("three elements: second can't be the label", True)
def _():
    given = {k: TensorDataset(X[p], X[p], Y[p]) for k, p in _parts().items()}
    return audited(plain(), given).rows[0]["accuracy"]["retain"] > 0.9


@case("three elements: third is a name", "refused")
def _():
    given = {k: [(x, int(y), "a.png") for x, y in zip(X[p], Y[p], strict=True)] for k, p in _parts().items()}
    return refusal(lambda: audited(plain(), given), "forget", "last of a batch's 3 elements", "unpack=")


@case("label out of range: says which element was read", "refused")
def _():
    given = {k: TensorDataset(X[p], X[p], Y[p] + 1) for k, p in _parts().items()}
    return refusal(lambda: audited(plain(), given), "label 3", "last of 3 tensors", "unpack=")


# Outputs


def _two(m, x):
    return torch.cat((torch.zeros(len(x), 1), m(x)), 1)


def _single():
    from torch import nn

    from .blobs import trained

    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))
    return trained(net, y=(Y > 0).long(), forward=_two)


BINARY = {"[B, 1]": None, "[B]": lambda m, x: m(x)[:, 0], "squeezed": lambda m, x: m(x).squeeze(), "two columns": _two}
for _name, _forward in BINARY.items():
    case(f"one logit: {_name}", 1.0)(
        lambda forward=_forward: round(audited(_single(), sets(y=(Y > 0).long()), forward=forward).rows[0]["accuracy"]["test"], 1)
    )


@case("one logit: the same bytes as of two columns", True)
def _():
    options = {"given": sets(y=(Y > 0).long()), "preset": "paper", "noise_steps": 3}
    a, b = (unlearned(_single(), "unsir", forward=forward, **options) for forward in (None, _two))
    return same(weights(a.model), weights(b.model))


@case("one logit: a last batch of one sample, squeezed", True)
def _():
    given = {k: (x[:257], y[:257]) for k, (x, y) in sets(y=(Y > 0).long()).items()}
    return audited(_single(), given, forward=BINARY["squeezed"]).rows[0]["accuracy"]["test"] > 0.9


PROBABILITIES = {"softmax": lambda m, x: m(x).softmax(1), "half softmax": lambda m, x: m(x).softmax(1).bfloat16()}


def _warned(call):
    import warnings

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        call()
    return [str(w.message) for w in seen if "probabilities" in str(w.message)]


for _name, _forward in PROBABILITIES.items():
    case(f"probabilities: {_name}, audit", "1 warning, forward=")(
        lambda forward=_forward: _told(_warned(lambda: audited(plain(), forward=forward, intervals=False)))
    )


def _told(messages):
    return f"{len(messages)} warning, forward=" if messages and all("forward=" in m for m in messages) else str(messages)


@case("probabilities: sigmoid of one logit, audit", "1 warning, forward=")
def _():
    return _told(_warned(lambda: audited(_single(), sets(y=(Y > 0).long()), forward=lambda m, x: m(x).sigmoid(), intervals=False)))


@case("probabilities: softmax, unlearn", "1 warning, forward=")
def _():
    return _told(_warned(lambda: unlearned(plain(), "unsir", preset="paper", noise_steps=1, forward=PROBABILITIES["softmax"])))


@case("probabilities: softmax, shadow models", "1 warning, forward=")
def _():
    options = {"n": 2, "epochs": 1, "forward": PROBABILITIES["softmax"], "progress": False}
    return _told(_warned(lambda: ff.audit.shadows(lambda seed: plain(), (X, Y), **options)))


@case("probabilities: logits and log-softmax give no warning", [])
def _():
    return _warned(lambda: audited(plain())) + _warned(lambda: audited(plain(), forward=lambda m, x: m(x).log_softmax(1)))
