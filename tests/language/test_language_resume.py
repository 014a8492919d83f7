"""A run that was interrupted goes on from its file, and ends with the bytes of one that wasn't."""

from __future__ import annotations

import copy
import os
import re

import language_world as w
import pytest
import torch
from torch import nn

import fastforget as ff
from fastforget.methods.engine import resume

METHODS = {
    "gradient_difference": {"lr": 0.01},
    "npo": {"lr": 0.01, "hold": "anchor"},
    "simnpo": {"lr": 0.01, "optimizer": "sgd"},
    "rmu": {"lr": 0.01, "layer": "inner.layers.0", "weights": ""},
}
RUN = {"epochs": 3, "batch_size": 5}


class Stops(nn.Module):
    """Its answers need a random draw when it is trained; it stops in the training pass of a number."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.dropout = w.recurrent(), nn.Dropout(0.2)
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))
        self.stop: list[int] = []

    def forward(self, input_ids, attention_mask=None):
        if self.training and torch.is_grad_enabled():
            self.batches += 1
            if int(self.batches) in self.stop:
                raise KeyboardInterrupt
        return self.dropout(self.inner(input_ids, attention_mask))


def outcome(result):
    kept = {name: (phase["trained"], phase["forward"]) for name, phase in result.receipt["cost"]["phases"].items()}
    return result.receipt["weights_sha256"], result.history, result.why, kept, result.receipt["options"]


def options(name):
    found = RUN | METHODS[name]
    return found | ({"steps": 8} if name == "rmu" else {})


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("at", [1, 2, 4, 7, 12])
def test_an_interrupted_run_goes_on_and_ends_with_the_same_bytes(tmp_path, name, at):
    net, sets, file = Stops(), w.request("forget", "retain"), tmp_path / "run.pt"
    whole = outcome(w.run(net, name, sets, **options(name)))
    stopping = copy.deepcopy(net)
    stopping.stop = [at]
    given = copy.deepcopy(stopping.state_dict())
    with pytest.raises(KeyboardInterrupt):
        w.run(stopping, name, sets, **options(name), checkpoint=file, checkpoint_every=0)
    assert all(torch.equal(given[k], v) for k, v in stopping.state_dict().items())
    assert file.exists() is (at > 2)  # two passes a step, of the forget and of the retain batch; the first step is made anew
    assert outcome(w.run(net, name, sets, **options(name), checkpoint=str(file), checkpoint_every=0)) == whole
    assert os.listdir(tmp_path) == ["run.pt"]


def test_a_run_goes_on_as_often_as_it_stops_and_does_no_step_twice(tmp_path):
    net, sets, file = Stops(), w.request("forget", "retain"), tmp_path / "run.pt"
    whole = outcome(w.run(net, "npo", sets, **options("npo"), retain_weight=0))
    steps = [int(torch.load(file, weights_only=True)["step"]) for _ in stopped(net, sets, file, 3, 5, 9)]
    assert steps == [2, 4, 8]
    assert outcome(w.run(net, "npo", sets, **options("npo"), retain_weight=0, checkpoint=file, checkpoint_every=0)) == whole


def stopped(net, sets, file, *at):
    for number in at:
        net.stop = [number]
        with pytest.raises(KeyboardInterrupt):
            w.run(net, "npo", sets, **options("npo"), retain_weight=0, checkpoint=file, checkpoint_every=0)
        yield number
    net.stop = []


def test_what_a_mask_leaves_out_keeps_its_bits_in_a_run_that_goes_on(tmp_path):
    net, sets, file = Stops(), w.request("forget", "retain"), tmp_path / "run.pt"
    name, p = next((n, p) for n, p in net.named_parameters() if p.dim() == 2)
    mask = {name: torch.arange(p.numel()).reshape(p.shape) % 2 == 0}
    whole = w.run(net, "gradient_difference", sets, **options("gradient_difference"), mask=mask)
    net.stop = [5]
    with pytest.raises(KeyboardInterrupt):
        w.run(net, "gradient_difference", sets, **options("gradient_difference"), mask=mask, checkpoint=file, checkpoint_every=0)
    net.stop = []
    again = {"checkpoint": file, "checkpoint_every": 0}
    gone_on = w.run(net, "gradient_difference", sets, **options("gradient_difference"), mask=mask, **again)
    assert outcome(gone_on) == outcome(whole)
    after = dict(gone_on.model.named_parameters())[name]
    assert torch.equal(after[~mask[name]], p[~mask[name]]) and not torch.equal(after, p)
    with pytest.raises(ValueError, match="another call"):
        w.run(net, "gradient_difference", sets, **options("gradient_difference"), mask={name: ~mask[name]}, **again)


@pytest.mark.parametrize("other", ["seed", "option", "model", "forget", "retain", "method"])
def test_a_file_of_another_call_is_refused_and_stays(tmp_path, monkeypatch, other):
    net, sets, file = Stops(), w.request("forget", "retain"), tmp_path / "run.pt"
    w.run(net, "npo", sets, **options("npo"), checkpoint=file, checkpoint_every=0)
    before = file.read_bytes()
    given, name = options("npo") | {"checkpoint": file}, "npo"
    if other == "seed":
        monkeypatch.setattr(w, "SEED", w.SEED + 1)
    elif other == "option":
        given["lr"] = 0.02
    elif other == "model":
        with torch.no_grad():
            next(net.parameters()).view(-1)[0] += 1
    elif other == "method":
        name, given = "simnpo", options("simnpo") | {"checkpoint": file}
    else:
        ids, labels = sets[other]
        sets[other] = ids.clone(), labels
        sets[other][0][0, 0] += 1  # a word that isn't scored
    with pytest.raises(ValueError, match=re.escape(f"checkpoint: {file} is of another call")):
        w.run(net, name, sets, **given)
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "match"),
    [(b"", "can't be read"), (b"PK\x03\x04nothing", "can't be read"), ({"step": 3}, "is no checkpoint"), ([1], "is no checkpoint")],
)
def test_a_file_that_is_no_checkpoint_is_refused_and_stays(tmp_path, content, match):
    file = tmp_path / "run.pt"
    file.write_bytes(content) if isinstance(content, bytes) else torch.save(content, file)
    before = file.read_bytes()
    with pytest.raises(ValueError, match=match):
        w.run(Stops(), "npo", w.request("forget", "retain"), **options("npo"), checkpoint=file)
    assert file.read_bytes() == before


def test_refusals(tmp_path):
    sets = w.request("forget", "retain")
    with pytest.raises(ValueError, match="folder is not there"):
        w.run(Stops(), "npo", sets, **options("npo"), checkpoint=tmp_path / "no" / "run.pt")
    with pytest.raises(ValueError, match="precision='auto'"):
        w.run(Stops(), "npo", sets, **options("npo"), checkpoint=tmp_path / "run.pt", precision="auto")
    for value in (3, "", True):
        with pytest.raises(TypeError, match="checkpoint: got"):
            ff.methods.NPO(checkpoint=value)
    with pytest.raises(ValueError, match="checkpoint_every: got -1"):
        ff.methods.NPO(checkpoint_every=-1)


def test_a_write_that_fails_leaves_the_last_file_and_nothing_else(tmp_path, monkeypatch):
    net, sets, file = Stops(), w.request("forget", "retain"), tmp_path / "run.pt"
    net.stop = [5]
    with pytest.raises(KeyboardInterrupt):
        w.run(net, "npo", sets, **options("npo"), checkpoint=file, checkpoint_every=0)
    before, net.stop = file.read_bytes(), []

    def full(state, opened):
        opened.write(b"a part")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(resume.torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        w.run(net, "npo", sets, **options("npo"), checkpoint=file, checkpoint_every=0)
    assert file.read_bytes() == before and os.listdir(tmp_path) == ["run.pt"]


def test_nothing_is_written_before_it_is_time(tmp_path):
    w.run(Stops(), "npo", w.request("forget", "retain"), **options("npo"), checkpoint=tmp_path / "run.pt")
    assert not os.listdir(tmp_path)
