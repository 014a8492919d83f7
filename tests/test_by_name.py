"""Batches that are dicts with a "labels" entry, inputs that go into the model by name, and loaders and sets of other packages: all without
``unpack=`` or ``forward=``. Stand-ins for what tests/ecosystem has of the packages themselves.
"""

from __future__ import annotations

import copy

import pytest
import torch
from digits_world import fit, right
from torch import nn
from torch.utils.data import DataLoader, Dataset

import fastforget as ff
from fastforget import _identity, _outputs
from fastforget._data import source

X, Y = torch.arange(40.0).reshape(10, 4), torch.arange(10) % 3


class Named(nn.Module):
    """Takes its inputs by name and returns what Hugging Face's classifiers return: an object with ``.logits``."""

    def __init__(self, extra: bool = False) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 3))
        if extra:  # as those take further keywords that go on to inner layers
            self.forward = self._with_more  # type: ignore[method-assign]

    def forward(self, ids, mask=None):
        return {"logits": self.layer(ids * mask), "loss": None}

    def _with_more(self, ids, mask=None, **more):
        assert not more or set(more) == {"other"}
        return {"logits": self.layer(ids * mask)}


class Wrapper(nn.Module):
    """As data parallelism wraps a model."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs, **more):
        return self.module(*inputs, **more)


class Rows(Dataset):
    """Rows as a data set of Hugging Face's gives them: lists of numbers, or tensors where the format says so."""

    def __init__(self, kind: str | None = None) -> None:
        self.format = {"type": kind}

    def with_format(self, kind: str, columns: list[str] | None = None) -> Rows:
        return Rows(kind)

    def __len__(self) -> int:
        return len(Y)

    def __getitem__(self, i: int):
        made = (lambda v: v) if self.format["type"] == "torch" else (lambda v: v.tolist())
        return {"ids": made(X[i]), "mask": made(torch.ones(4)), "label": int(Y[i]), "text": f"number {i}"}


class Foreign:
    """As Lightning Fabric's loader: no DataLoader, but with one inside."""

    def __init__(self, loader: DataLoader) -> None:
        self._dataloader = loader

    def __len__(self) -> int:
        return len(self._dataloader)

    def __iter__(self):
        raise AssertionError("its order is for training")


def rows(key: str = "labels") -> list[dict]:
    return [{"ids": x, "mask": torch.ones(4), key: int(y)} for x, y in zip(X, Y, strict=True)]


@pytest.mark.parametrize(
    "data",
    [rows(), rows("label"), rows("label_ids"), DataLoader(rows(), batch_size=4), Rows(), Rows("torch"), DataLoader(Rows(), batch_size=3),
     Foreign(DataLoader(rows(), batch_size=4))],
    ids=["list", "label", "label_ids", "loader", "rows of numbers", "rows of tensors", "loader of rows", "loader in a loader"],
)  # fmt: skip
def test_dicts_are_read_by_their_labels_entry(data) -> None:
    held = source(data, name="retain")
    assert held.labels().tolist() == Y.tolist() and "entry 'label" in held.read_from
    batches = list(held.batches(batch_size=4))
    assert all(set(inputs) == {"ids", "mask"} for inputs, _ in batches)
    assert torch.equal(torch.cat([inputs["ids"] for inputs, _ in batches]), X)


def test_a_single_entry_is_the_input_itself() -> None:
    held = source([{"pixel_values": x, "labels": int(y)} for x, y in zip(X, Y, strict=True)], name="retain")
    inputs, _ = next(iter(held.batches(batch_size=10)))
    assert torch.equal(inputs, X)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"ids": X[0], "target": 1}, "its labels can't be found"),
        ({"ids": X[0], "label": 1, "labels": 1}, "'labels' and 'label' could both be the labels"),
        ({"text": "a", "label": 1}, "no other entry holds tensors"),
    ],
)
def test_dicts_whose_labels_cant_be_told_are_refused(row, said) -> None:
    with pytest.raises(TypeError, match=f"forget: .*{said}.*accepted"):
        source([row] * 3, name="forget").labels()


def test_splits_are_refused_by_name() -> None:
    splits = type("DatasetDict", (dict,), {})(train=rows(), test=rows())
    with pytest.raises(TypeError, match="forget: got a DatasetDict.*one of its splits: 'train'"):
        source(splits, name="forget")


@pytest.mark.parametrize("wrap", [lambda m: m, Wrapper, lambda m: Wrapper(Wrapper(m))], ids=["bare", "wrapped", "twice"])
@pytest.mark.parametrize("extra", [False, True], ids=["named", "further keywords"])
def test_inputs_go_in_by_name(wrap, extra) -> None:
    inner = Named(extra)
    model, inputs = wrap(inner), {"ids": X, "mask": torch.ones(10, 4)}
    assert torch.equal(_outputs.reading(None)(model, inputs), inner.layer(X))
    # in another order, too
    assert torch.equal(_outputs.reading(None)(model, dict(reversed(inputs.items()))), inner.layer(X))


def test_a_model_that_takes_the_whole_dict_gets_it() -> None:
    class Whole(nn.Module):
        def forward(self, batch):
            return batch["ids"] @ torch.ones(4, 3)

    assert torch.equal(_outputs.reading(None)(Whole(), {"ids": X, "mask": X}), X @ torch.ones(4, 3))


def test_entries_that_the_model_doesnt_take_are_named() -> None:
    with pytest.raises(TypeError, match=r"Named takes 'ids', 'mask' of a batch's entries, but not 'idx'\. Take these out"):
        _outputs.reading(None)(Named(), {"ids": X, "mask": X, "idx": Y})


def test_a_classifier_of_dicts_is_unlearned_and_audited_in_two_lines() -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(900) % 3
    x = torch.randn(900, 4, generator=generator) + 4 * torch.eye(4)[y]
    net = Named()
    fit(net.layer, x, y)
    data = [{"ids": a, "mask": torch.ones(4), "labels": int(b)} for a, b in zip(x, y, strict=True)]
    forget, retain, test = [r for r in data[:600] if r["labels"] == 1], [r for r in data[:600] if r["labels"] != 1], data[600:]
    given = copy.deepcopy(net.state_dict())
    result = ff.unlearn(net, "sweep", classes=[1], forget=forget, retain=retain, test=test, progress=False)
    report = ff.audit({"original": net, "unlearned": result.model}, forget=forget, retain=retain, test=test, progress=False)
    assert result.forgot, result.why
    accuracy = report.rows[1]["accuracy"]
    assert accuracy["forget"] == right(result.model.layer, (x[:600][y[:600] == 1], y[:600][y[:600] == 1])) == 0
    assert all(torch.equal(value, given[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("place", ["module_", "model"])
def test_what_holds_a_model_is_refused_with_the_place_inside(place) -> None:
    """As skorch's nets and Hugging Face's Trainer do."""
    holder = type("Holder", (), {place: nn.Linear(4, 3)})()
    with pytest.raises(TypeError, match=rf"got Holder; accepted is a torch\.nn\.Module\. Pass the one inside of it: model\.{place} "):
        ff.unlearn(holder, "sweep", classes=[1], forget=(X, Y), retain=(X, Y))


def test_a_model_that_wants_its_own_backward_is_refused_with_the_way_out() -> None:
    """As Lightning Fabric's module does in mixed precision."""

    class Strategic(Wrapper):
        def forward(self, x):
            logits = self.module(x)
            if logits.requires_grad:
                logits.register_hook(self._refuse)
            return logits

        def _refuse(self, grad):
            raise RuntimeError("The current strategy and precision selection requires you to call `fabric.backward(loss)`")

    with pytest.raises(RuntimeError, match=r"Nothing was changed\. Lightning Fabric wraps it .* pass model\.module"):
        ff.unlearn(Strategic(nn.Linear(4, 3)), "sweep", classes=[1], forget=(X, Y), retain=(X, Y), drop_forget=True)


def test_a_forward_that_is_bound_to_the_model_as_given_is_refused() -> None:
    """As people wrap one: the copy's forward would still train the original."""
    net = nn.Sequential(nn.Linear(4, 3))
    inner, before = net.forward, copy.deepcopy(net.state_dict())
    net.forward = lambda x: inner(x).float()  # type: ignore[method-assign]
    with pytest.raises(TypeError, match="no parameter gets a gradient; nothing was changed.*was replaced by a function"):
        ff.unlearn(net, "sweep", classes=[1], forget=(X, Y), retain=(X, Y), drop_forget=True)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.filterwarnings("ignore:torch.ao.quantization:DeprecationWarning")
def test_a_base_with_quantised_layers_keeps_them_and_its_head_is_trained() -> None:
    """torch's dynamic quantisation gives no gradient to what lies before it, so what lies behind is what can move."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(900) % 3
    x = torch.randn(900, 4, generator=generator) + 4 * torch.eye(4)[y]
    base, head = nn.Sequential(nn.Linear(4, 32), nn.ReLU()), nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3))
    net = fit(nn.Sequential(base, head), x, y)
    net[0] = torch.ao.quantization.quantize_dynamic(net[0], {nn.Linear}, dtype=torch.qint8)
    before = _identity.digest(_identity.packed(net))
    assert right(net, (x, y)) > 0.95
    gone = y == 1
    sets = {"forget": (x[:600][gone[:600]], y[:600][gone[:600]]), "retain": (x[:600][~gone[:600]], y[:600][~gone[:600]])}
    result = ff.unlearn(net, "sweep", classes=[1], **sets, test=(x[600:], y[600:]), progress=False)
    assert right(result.model, sets["forget"]) <= 0.01 < 0.9 < right(result.model, sets["retain"])
    assert _identity.packed(net) and _identity.digest(_identity.packed(result.model)) == before
