"""Sets that share sequences, and "retrained" models that were trained on what is to be forgotten: neither supports a verdict."""

from __future__ import annotations

import copy
import json
import warnings
from dataclasses import replace
from typing import Any

import language_world as w
import numpy as np
import pytest
import sequences_world
import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.utils.data import Subset, TensorDataset

import fastforget as ff
from fastforget.auditing.proof import verify
from fastforget.auditing.proof.check import check
from fastforget.auditing.sequence_rule import doubted

Pair = tuple[Tensor, Tensor]


@pytest.fixture(scope="module")
def world() -> sequences_world.World:
    return sequences_world.world()


# ------------------------------------------------------------------ sequences in two sets


def longer(pair: Pair, left: int = 0, right: int = 0) -> Pair:
    """The same sequences in a tensor that was padded before, on either side."""
    ids, labels = pair
    return pad(ids, (left, right), value=w.PAD), pad(labels, (left, right), value=-100)


def joined(*pairs: Pair) -> Pair:
    return torch.cat([ids for ids, _ in pairs]), torch.cat([labels for _, labels in pairs])


def part(pair: Pair, count: int) -> Pair:
    return pair[0][:count], pair[1][:count]


def audited(**change: Any) -> Any:
    options = {name: change.pop(name) for name in ("check_overlap", "models") if name in change}
    sets = {"forget": w.texts("forget"), "retain": w.texts("retain"), "test": w.texts("nonmember")} | change
    return ff.audit(options.pop("models", {"original": w.recurrent()}), **sets, sequences=True, progress=False, **options)


def unlearned(**change: Any) -> Any:
    return w.run(w.recurrent(), "npo", w.request() | change, epochs=1)


FORGET, RETAIN = w.texts("forget"), w.texts("retain")
SHARED = {
    "as they are": ({"retain": joined(part(FORGET, 5), RETAIN)}, "5 of its 12 samples are in retain too .same scored tokens, 0.8 accepted"),
    "padded on the right": ({"retain": longer(joined(RETAIN, part(FORGET, 4)), right=3)}, "4 of its 12 samples are in retain"),
    "padded on the left": ({"retain": longer(joined(RETAIN, part(FORGET, 4)), left=2)}, "4 of its 12 samples are in retain"),
    "cut and padded by a loader": ({"forget": w.ragged("forget"), "retain": w.ragged("forget", 5)}, "12 of its 12 samples are in retain"),
    "after another prompt": (
        {"retain": (FORGET[0].where(FORGET[1] != -100, 1), FORGET[1])},
        "12 of its 12 samples are in retain",
    ),
    "parts of one": (
        {"forget": Subset(TensorDataset(*FORGET), range(7)), "retain": Subset(TensorDataset(*FORGET), range(6, 12))},
        "1 of its 7 samples are in retain too .same indices, 0.0 accepted",
    ),
}


@pytest.mark.parametrize("call", [audited, unlearned])
@pytest.mark.parametrize("case", SHARED)
def test_sequences_of_two_sets_are_refused(case: str, call: Any) -> None:
    """By the audit in the words of the unlearning, which has one rule with it."""
    sets, text = SHARED[case]
    with pytest.raises(ValueError, match=f"forget: {text}.*: training on them would keep .* check_overlap=False"):
        call(**sets)


def test_what_is_said_to_be_unseen_is_looked_at() -> None:
    test = joined(w.texts("nonmember"), part(FORGET, 2))
    with pytest.raises(ValueError, match="forget: 2 of its 12 samples are in test too .*: they are not unseen, and would hide"):
        audited(test=test)
    with pytest.raises(ValueError, match="forget: 2 of its 12 samples are in nonmember too .*: they are not unseen"):
        unlearned(nonmember=test)


def test_counts_stand_in_report_and_receipt() -> None:
    none = {"how": "scored tokens", "shared": 0, "allowed": pytest.approx(0.12 + 2 * 0.12**0.5)}
    report = audited()
    assert report.settings["overlap"] == {"retain": none, "test": none} and "forget sequences in" not in str(report)
    twice = joined(RETAIN, RETAIN, part(FORGET, 3))  # nearly all of that set are twins, so that as many may be
    report = audited(retain=twice)
    expected = none | {"shared": 3, "allowed": pytest.approx(21.453 + 2 * 21.453**0.5, rel=1e-4)}
    assert report.settings["overlap"] == {"retain": expected, "test": none}
    assert "forget sequences in the retain set too: 3 (same scored tokens, 30.7 accepted)." in " ".join(str(report).split())
    report = audited(retain=joined(RETAIN, part(FORGET, 3)), check_overlap=False)
    assert report.settings["overlap"] == {"how": "not checked: check_overlap=False"}
    assert "forget sequences in other sets: not checked: check_overlap=False." in " ".join(str(report).split())
    with pytest.raises(TypeError, match="check_overlap: got str; accepted are True and False"):
        audited(check_overlap="no")


def test_tokens_that_are_not_scored_are_no_content() -> None:
    """A first token, and one that padding stands before, is answered by nothing; one that is scored otherwise is another sequence."""
    ids, labels = FORGET
    other = labels.clone()
    other[:, -1] = -100
    assert audited(retain=(ids, other)).settings["overlap"]["retain"]["shared"] == 0
    first = ids.clone()
    first[:, 0] = first[:, 0] % 10 + 1
    with pytest.raises(ValueError, match="12 of its 12 samples are in retain"):
        audited(forget=(ids, ids), retain=(first, first))


def test_verify_counts_again(tmp_path, monkeypatch, capsys) -> None:
    """From the files; and what can't be is found."""
    models = {name: w.trained(w.Recurrent().double(), steps=20) for name in ("original", "unlearned", "retrained")}
    receipt = audited(models=models).write_receipt(tmp_path / "receipt.json")
    assert "forget sequences in the retain set too" in (tmp_path / "receipt.html").read_text()
    for name, held in {"forget": "forget", "retain": "retain", "test": "nonmember"}.items():
        ids, labels = w.texts(held)
        np.savez(tmp_path / f"{name}.npz", inputs=ids.numpy(), labels=labels.numpy())
    torch.save(models["unlearned"].state_dict(), tmp_path / "unlearned.pt")
    monkeypatch.chdir(tmp_path)
    given = ["receipt.json", "--model=unlearned.pt", f"--build={__name__}:build", "--forget=forget.npz", "--retain=retain.npz"]
    assert verify.main([*given, "--test=test.npz"]) == 0
    assert "ok        settings.overlap.retain, counted again" in capsys.readouterr().out
    assert verify.main([*given, "--test=forget.npz"]) == 1
    assert "MISMATCH  settings.overlap.test, counted again" in capsys.readouterr().out
    for change, said in (
        (lambda overlap: overlap["retain"].update(shared=1), "1 are shared, and such an audit is refused"),
        (lambda overlap: overlap["test"].update(how="not checked: many"), "a count that was not made"),
        (lambda overlap: overlap.pop("test"), "it is not of the retain and the test set"),
    ):
        invented = copy.deepcopy(receipt)
        change(invented["settings"]["overlap"])
        assert any(said in one.why for one in check(json.loads(json.dumps(invented)), weights={})), said


def build() -> nn.Module:
    return w.Recurrent().double()


# ------------------------------------------------------------------ models that are called retrained


def trained_on_all(world: sequences_world.World, steps: int) -> nn.Module:
    return sequences_world.fit(torch.cat((world.words["forget"], world.words["retain"])), 7, steps)


AS_ORIGINAL = "the loss attack tells the forget sequences from the test set's as it does on the original"
AS_KEPT = "the loss attack tells the forget sequences from the test set's as it tells those of the retain set"
HALF = "one half of the forget sequences is known after steps on the other half as it is in the original"
DISHONEST = {
    "the original by another name": (lambda world: copy.deepcopy(world.original), "its weights are the original's"),
    "some noise": (lambda world: world.changed(lambda p: p + 0.02 * p.std() * torch.randn(p.shape)), AS_ORIGINAL),
    "another seed": (lambda world: trained_on_all(world, 200), AS_ORIGINAL),
    "trained for long": (lambda world: trained_on_all(world, 400), AS_ORIGINAL),
    "trained less": (lambda world: trained_on_all(world, 40), AS_KEPT),
}


@pytest.mark.parametrize("kind", DISHONEST)
def test_a_retrained_model_that_knows_the_forget_set_is_not_believed(world, kind: str) -> None:
    """Nor does it support a PASS, alone or as a further one: beside the last two a copy of them would pass otherwise."""
    make, why = DISHONEST[kind]
    torch.manual_seed(0)
    net = make(world)
    alike = world.changed(lambda p: p) if kind.startswith("the original") else copy.deepcopy(net)
    report = ff.audit({"original": world.original, "unlearned": alike, "retrained": net}, **world.sets, sequences=True, progress=False)
    assert report.verdict in ("PARTIAL", "FAIL")
    assert any(f"PARTIAL: 'retrained' is not believed to be retrained: {why}" in reason for reason in report.reasons), report.reasons
    beside = world.audit(unlearned=world.again, **{"retrained 2": net})
    assert beside.verdict == "PARTIAL"
    assert any(f"'retrained 2' is not believed to be retrained: {why}" in reason for reason in beside.reasons)
    assert [text for text in beside.reasons if ": PARTIAL" in text or ": FAIL" in text] == [
        text for text in beside.reasons if "not believed" in text
    ]


def test_one_that_only_hides_them_is_not_believed(world) -> None:
    """A net whose answers forgot and whose other half comes back: by figures, as few nets hide so well."""
    rows = {row.model: row for row in world.audit(unlearned=world.again).figures}
    known, original = rows["retrained"], rows["original"]
    assert doubted(known, original) is None

    def of(loss: float, kept: float, half: float) -> str | None:
        row = copy.deepcopy(known)
        for name, value in (("forget_vs_test", loss), ("retain_vs_test", kept)):
            row.attacks[name]["loss"].auc = replace(row.attacks[name]["loss"].auc, value=value)
        row.probes["other_half_auc"] = replace(row.probes["other_half_auc"], value=half)
        return doubted(row, original)

    # the tolerance: two standard errors of a difference of AUCs, 2 sqrt(2) sqrt((40 + 100 + 1) / (12 * 40 * 100))
    allowed = 2 * 2**0.5 * (141 / 48_000) ** 0.5
    first, half = (row.value for row in (original.attacks["forget_vs_test"]["loss"].auc, original.probes["other_half_auc"]))
    assert HALF in (of(0.5, 1.0, half - allowed + 0.001) or "") and of(0.5, 1.0, half - allowed - 0.001) is None
    assert AS_ORIGINAL in (of(first - allowed + 0.001, 1.0, 0.5) or "") and of(first - allowed - 0.001, 1.0, 0.5) is None
    assert AS_KEPT in (of(0.7, 0.7 + allowed - 0.001, 0.5) or "") and of(0.7, 0.7 + allowed + 0.001, 0.5) is None
    # a net that doesn't know its own retain set either says nothing
    assert of(0.5 + allowed - 0.001, 0.5 + allowed + 0.1, 0.5) is None and of(0.7, 0.5 + allowed - 0.001, 0.5) is None


def test_honest_models_are_believed(world) -> None:
    for net in (world.again, sequences_world.fit(world.words["retain"], 8, 60)):
        report = world.audit(unlearned=world.again, **{"retrained 2": net})
        assert not any("not believed" in reason for reason in report.reasons)


def test_small_sets_tell_nothing_of_a_retrained_model(world) -> None:
    """Of three sequences on each side an AUC of 1 is chance."""
    sets = {name: (words[:3], words[:3]) for name, words in world.words.items()}
    models = {"original": world.original, "unlearned": world.again, "retrained": trained_on_all(world, 200)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = ff.audit(models, **sets, sequences=True, progress=False)
    assert not any("not believed" in reason for reason in report.reasons)


@pytest.mark.slow
def test_how_often_a_retrained_model_is_told() -> None:
    """What docs/language.md says: nets trained on both sets for half, as long and twice as long as the original, and honest ones."""
    told = {"dishonest": 0, "little": 0, "honest": 0}
    for draw in (0, 10, 20):
        for steps in (30, 50, 80, 200):
            world = sequences_world.World(draw=draw, steps=steps, seeds=3)
            everything = torch.cat((world.words["forget"], world.words["retain"]))
            dishonest = [sequences_world.fit(everything, seed, k) for seed, k in ((7, steps), (8, steps // 2), (9, 2 * steps))]
            models = {"original": world.original}
            models |= {f"honest {i}": net for i, net in enumerate(world.all_retrained)}
            models |= {f"dishonest {i}": net for i, net in enumerate(dishonest)}
            report = ff.audit(models, **world.sets, sequences=True, intervals=False, progress=False)
            original = report.figures_of("original")
            for row in report.judged_figures():
                kind = row.model.split()[0]
                told["little" if steps == 30 and kind == "dishonest" else kind] += doubted(row, original) is not None
    assert told["dishonest"] >= 25 and told["little"] >= 4 and told["honest"] == 0, told
