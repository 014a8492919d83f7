"""The journal of a language model: requests in sequence, each done once, and looked at again by sequences."""

from __future__ import annotations

import json
import statistics
import warnings
from pathlib import Path
from typing import Any

import language_world as w
import pytest
import torch
from torch import Tensor, nn

import fastforget as ff
from fastforget.journal.store import Store

QUICK = {"epochs": 2, "batch_size": 5, "lr": 0.01}
FIRST, SECOND = slice(0, 6), slice(6, 12)


def part(name: str, rows: slice) -> tuple[Tensor, Tensor]:
    ids, labels = w.texts(name)
    return ids[rows], labels[rows]


def ask(journal: ff.Journal, id: str, net: nn.Module, rows: slice, method: str = "npo", **given: Any) -> ff.UnlearnResult:
    """A short request, which forgets little and costs much; that it says so is of no matter here."""
    sets = {"forget": part("forget", rows), "retain": w.texts("retain"), "nonmember": w.texts("nonmember"), **given}
    options = QUICK if method == "npo" else {}
    with warnings.catch_warnings():
        for kind in (ff.methods.NotForgottenWarning, ff.RetrainWarning):
            warnings.simplefilter("ignore", kind)
        return journal.unlearn(id, net, method, seed=3, progress=False, **{**sets, **options})


def two(folder: Path) -> tuple[ff.Journal, nn.Module, list[ff.UnlearnResult]]:
    journal, net = ff.Journal(folder), w.recurrent()
    return journal, net, [ask(journal, id, net, rows) for id, rows in (("one", FIRST), ("two", SECOND))]


@torch.no_grad()
def losses(net: nn.Module, ids: Tensor, labels: Tensor) -> list[float]:
    return (-w.log_probs(net, ids, labels).sum(1) / w.counts(labels)).tolist()


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_each_request_is_unlearn_from_what_the_last_one_left(tmp_path):
    journal, net, results = two(tmp_path / "journal")
    sets = {"retain": w.texts("retain"), "nonmember": w.texts("nonmember")}
    plain = net
    for result, rows in zip(results, (FIRST, SECOND), strict=True):
        with pytest.warns(ff.methods.NotForgottenWarning):
            plain = ff.unlearn(plain, "npo", forget=part("forget", rows), seed=3, progress=False, **sets, **QUICK).model
        assert same(result.model, plain)
    assert journal.ids == ["one", "two"] and journal.verify() == 2
    assert same(journal.model(net), plain) and same(journal.original(net), net)
    assert json.loads((tmp_path / "journal" / "0001" / "request.json").read_text())["sequences"] is True


def test_a_request_that_is_done_is_returned_and_nothing_runs(tmp_path, monkeypatch):
    journal, net, results = two(tmp_path / "journal")
    monkeypatch.setattr(ff.methods.NPO, "run", lambda *_: pytest.fail("it ran again"))
    again = ask(ff.Journal(tmp_path / "journal"), "one", net, FIRST)
    assert again.receipt == results[0].receipt and same(again.model, results[0].model)
    with pytest.raises(ValueError, match="'one' is in the journal as another request: forget was 6 samples"):
        ask(journal, "one", net, SECOND)


@pytest.mark.parametrize("at", ["while it trains", "while it is written"])
def test_a_kill_leaves_the_journal_and_the_same_call_does_it_again(tmp_path, monkeypatch, at):
    _, net, results = two(tmp_path / "whole")
    journal = ff.Journal(tmp_path / "journal")
    ask(journal, "one", net, FIRST)
    before = {path: path.read_bytes() for path in (tmp_path / "journal").rglob("*") if path.is_file()}

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(*((ff.methods.NPO, "loop") if at == "while it trains" else (Store, "commit")), killed)
        with pytest.raises(KeyboardInterrupt):
            ask(journal, "two", net, SECOND)
    assert {path: path.read_bytes() for path in (tmp_path / "journal").rglob("*") if path.is_file()} == before
    assert same(ask(ff.Journal(tmp_path / "journal"), "two", net, SECOND).model, results[1].model)


def test_sequences_that_were_forgotten_are_kept_out_of_later_sets(tmp_path):
    journal, net, _ = two(tmp_path / "journal")
    both = tuple(torch.cat(parts) for parts in zip(w.texts("retain"), part("forget", FIRST), strict=True))
    third = {"forget": w.texts("nonmember"), "retain": both, "nonmember": None}
    with pytest.raises(ValueError, match="retain: it holds samples that the journal forgot .same contents.: 6 of the 6 of request 'one'"):
        ask(journal, "three", net, FIRST, **third)
    result = ask(journal, "three", net, FIRST, drop_forget=True, **third)
    assert result.receipt["journal"]["left_out"]["retain"]["forgotten_samples"]["left_out"] == 6


@pytest.mark.parametrize("capped", [False, True], ids=["by blocks", "from logits"])
def test_what_is_lost_is_counted_in_tokens(tmp_path, capped):
    """The mean over sequences of the share of their tokens that are answered right; its error is that of paired differences."""
    journal, net = ff.Journal(tmp_path / "journal"), w.recurrent(capped)
    result = ask(journal, "one", net, FIRST, test=w.texts("nonmember"), nonmember=None)
    ids, labels = w.texts("nonmember")

    def shares(model: nn.Module) -> list[float]:
        with torch.no_grad():
            hit = (model(ids)[:, :-1].argmax(2) == labels[:, 1:]).sum(1)
        return (hit / w.counts(labels)).double().tolist()

    loss = journal.loss()
    assert loss is not None and (loss.counted, loss.samples, loss.data) == ("sequences", 12, "test")
    before, now = shares(net), shares(result.model)
    assert loss.original == pytest.approx(statistics.fmean(before)) and loss.now == pytest.approx(statistics.fmean(now))
    gained = statistics.fmean(now) > statistics.fmean(before)  # else the first request, the only one, lost nothing more than itself
    less = [(a if gained else b) - b for a, b in zip(before, now, strict=True)]
    assert loss.error == pytest.approx(statistics.pstdev(less) / 12**0.5, abs=1e-9)
    assert str(loss).startswith("of the tokens of 12 test sequences")


def test_a_model_that_was_trained_on_is_looked_at_again(tmp_path):
    """The rows are of the loss attack by sequences, and say what was brought back."""
    journal, net, _ = two(tmp_path / "journal")
    given = {"one": part("forget", FIRST), "two": part("forget", SECOND)}
    found = journal.check(net, given, test=w.texts("nonmember"))
    assert found.state == "original" and [row.figure for row in found.rows] == ["auc", "auc"]
    for row, rows in zip(found.rows, (FIRST, SECOND), strict=True):
        gone, unseen = (
            losses(net, *data)
            for data in (part("forget", rows), w.texts("nonmember"))
        )
        auc = statistics.fmean((a < b) + 0.5 * (a == b) for a in gone for b in unseen)
        assert row.now == pytest.approx(auc, abs=1e-6) and row.gone is False and "12 test sequences" in row.why
    assert "attack AUC" in str(found) and json.loads(found.to_json())["rows"][0]["id"] == "one"
    with pytest.raises(ValueError, match=r"forget\['one'\]: its 6 samples .* aren't the 6 that request 'one' forgot"):
        journal.check(net, {"one": part("forget", SECOND)}, test=w.texts("nonmember"))


def test_padded_loaders(tmp_path):
    """Sequences are known by their content, whatever batch pads them."""
    journal, net = ff.Journal(tmp_path / "journal"), w.recurrent()
    sets = {name: w.ragged(name) for name in ("forget", "retain", "nonmember")}
    ask(journal, "one", net, FIRST, **sets)
    again = ask(journal, "one", net, FIRST, **{**sets, "forget": w.ragged("forget", batch_size=3)})
    assert again.receipt["journal"]["number"] == 1 and journal.ids == ["one"]
    assert journal.check(net, {"one": w.ragged("forget", batch_size=5)}, nonmember=w.ragged("nonmember")).rows[0].samples == 12


def test_one_journal_is_about_one_kind(tmp_path):
    journal, net, _ = two(tmp_path / "journal")
    with pytest.raises(ValueError, match="method: it forgets classes or samples, and the journal's requests are about sequences"):
        ask(journal, "three", net, FIRST, "unsir", classes=[1])
    none = ask(journal, "three", net, FIRST, "none", sequences=True)
    assert none.receipt["method"] == "none" and journal.ids == ["one", "two", "three"]
