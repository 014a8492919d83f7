"""What ``unlearn`` refuses before anything starts: each error names the argument, and nothing has changed."""

from __future__ import annotations

import pytest
import torch
from digits_world import same_trace, small_mlp, trace
from torch import nn

from fastforget.methods import unlearn


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
        "retain is it": ({"retain": (x[~keep], y[~keep]), "drop_forget": True}, ValueError, "all 4 samples"),
        "integer images": ({"retain": (x[keep].long(), y[keep])}, TypeError, "int64; accepted are floating point"),
        "labels too high": ({"retain": (x[keep], y[keep] + 7)}, ValueError, "label 1[0-6] at sample .* 0 to 9"),
        "float labels": ({"retain": (x[keep], y[keep].float())}, TypeError, "integer class ids"),
        "forget of another class": ({"forget": (x[keep], y[keep])}, ValueError, "forget: holds no sample"),
        "mixed devices": ({"model": mixed}, ValueError, "on cpu but 3.weight on meta"),
        "no parameters": ({"model": nn.Flatten()}, ValueError, "no parameters"),
        "all frozen": ({"model": frozen}, ValueError, "no parameter requires a gradient"),
        "not a model": ({"model": len}, TypeError, "torch.nn.Module"),
        "NaN logits": ({"model": broken}, ValueError, "aren't finite"),
        "no logits": ({"forward": lambda m, x: m(x).sum(1)}, TypeError, r"accepted are logits \[batch, classes\]"),
        "method": ({"method": "scrub"}, ValueError, "method: got 'scrub'"),
        "option": ({"copy": 3}, TypeError, "unknown option 'copy', did you mean 'copies'"),
        "preset": ({"preset": "papers"}, ValueError, "preset: got 'papers'"),
        "choice": ({"label_rule": "mine"}, ValueError, "label_rule: got 'mine'"),
        "number": ({"noise_batch": 0}, ValueError, "noise_batch: got 0"),
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
