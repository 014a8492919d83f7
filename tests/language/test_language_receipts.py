"""Report, page and receipt of a language model's audit, and what ``verify`` finds out about them."""

from __future__ import annotations

import json
from typing import Any

import language_world as w
import numpy as np
import pytest
import sequences_world
import torch
from torch import nn

import fastforget as ff
from fastforget.auditing.proof import verify
from fastforget.auditing.proof.check import check

SETS = {"forget": "forget", "retain": "retain", "test": "nonmember"}


@pytest.fixture(scope="module")
def world() -> sequences_world.World:
    return sequences_world.world()


def test_report_page_and_receipt(world, tmp_path):
    report = world.audit(unlearned=world.again, controls=True)
    text = str(report)
    assert "sequence-wise request; forget 40, retain 120, test 100 sequences" in text
    for line in ("token accuracy, mean over sequences", "Min-K%++, forget against unseen", "KL from the retrained", "(forget quality)"):
        assert line in text
    report.to_json(tmp_path / "report.json")
    report.to_html(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "Token accuracy, forget set" in page and "The classes predicted" not in page
    assert "Which samples are most exposed?" in page and '<th scope="col">class</th>' not in page
    losses = {net: w.log_probs(net, *world.sets["forget"]).detach().sum(1) for net in (world.again, world.retrained)}
    nearest = (losses[world.again] - losses[world.retrained]).argsort(descending=True)[:12]  # all have as many tokens
    assert [sample["index"] for sample in report.curves["exposed"]] == nearest.tolist()
    receipt = report.write_receipt(tmp_path / "receipt.json")
    assert receipt["request"] == "sequence-wise" and "40 sequences" in (tmp_path / "receipt.html").read_text()
    states = {"original": world.original.state_dict(), "unlearned": world.again.state_dict()}
    written = json.loads((tmp_path / "receipt.json").read_text())
    assert [one for one in check(written, weights=states, forget=world.sets["forget"]) if one.why] == []
    assert len(ff.audit.compare([receipt]).groups) == 1


def build() -> nn.Module:
    return w.Recurrent().double()


def trained(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return w.trained(build(), steps=40)


@pytest.mark.parametrize("form", ["pairs", "loaders that pad"])
def test_verify_measures_again(tmp_path, monkeypatch, capsys, form):
    """From files: the forget set by its hash, every figure on the weights given. Other texts, and class ids, are told."""
    given = w.texts if form == "pairs" else w.ragged
    models = {name: trained(seed) for seed, name in enumerate(("original", "unlearned", "retrained"))}
    report = ff.audit(models, **{name: given(held) for name, held in SETS.items()}, sequences=True, progress=False)
    report.write_receipt(tmp_path / "receipt.json")
    for name, net in models.items():
        torch.save(net.state_dict(), tmp_path / f"{name}.pt")
    for name, held in SETS.items():
        ids, labels = w.texts(held)
        arrays = {"inputs": ids, "labels": labels}
        if form != "pairs":
            arrays = w.padded(w.ragged(held).dataset)  # type: ignore[arg-type]
        np.savez(tmp_path / f"{name}.npz", **{key: array.numpy() for key, array in arrays.items()})
    monkeypatch.chdir(tmp_path)
    sets = [f"--{name}={name}.npz" for name in SETS]
    weights = ["--model=unlearned.pt", "--original=original.pt", "--retrained=retrained.pt", f"--build={__name__}:build"]
    assert verify.main(["receipt.json", *weights, *sets]) == 0
    said = capsys.readouterr().out
    assert "ok        forget_set.samples_sha256" in said and "ok        rows.unlearned.figures, measured again" in said
    assert verify.main(["receipt.json", *weights, "--forget=test.npz", "--retain=retain.npz", "--test=test.npz"]) == 1
    assert "MISMATCH  forget_set.samples_sha256" in capsys.readouterr().out
    np.savez(tmp_path / "classes.npz", inputs=np.zeros((12, 7), int), labels=np.zeros(12, int))
    assert verify.main(["receipt.json", "--model=unlearned.pt", "--forget=classes.npz"]) == 2
    assert "--forget classes.npz: its labels are no token ids" in capsys.readouterr().err


# What is changed in the row of the model, and what must be said of it.
TAMPERED: dict[str, tuple[Any, str]] = {
    "a distance": (lambda row: row["probes"]["ks_to_retrained"].update(value=0.1234), "no distance of 40 losses"),
    "its p-value": (lambda row: row["probes"]["forget_quality"].update(value=0.9), "not the p-value"),
    "a ratio": (lambda row: row["probes"]["mean_perplexity_ratio"].update(value=1.001), "does not follow from mean_loss.forget"),
    "a loss": (lambda row: row["mean_loss"].update(retain=0.0001), "the interval of mean_loss.retain"),
    "an error": (lambda row: row["sequences"]["accuracy_error"].update(retain=0.9), "does not fit accuracy.retain"),
    "tokens": (lambda row: row["sequences"]["tokens"].update(test=3), "fewer tokens than sequences"),
    "as many tokens": (lambda row: row["sequences"]["tokens"].update(test=901), "other models were scored on other tokens"),
    "an interval twice": (lambda row: row["accuracy_intervals"].update(test_retain=[0.1, 0.5]), "all test sequences are of what is kept"),
    "no errors": (lambda row: row.pop("sequences"), "what the figures of sequences rest on is missing"),
    "an AUC": (lambda row: row["attacks"]["forget_vs_test"]["min_k"].update(auc=0.50001), "is no share of 4000 pairs"),
    "a divergence": (lambda row: row["probes"].pop("kl_to_retrained"), "probes are not those of sequences"),
    "a status": (lambda row: row.update(status="PARTIAL"), "give another status"),
}


@pytest.mark.parametrize("case", TAMPERED)
def test_invented_figures_are_found(world, case):
    change, said = TAMPERED[case]
    receipt = json.loads(json.dumps(world.audit(unlearned=world.again).receipt()))
    row = next(row for row in receipt["rows"] if row["model"] == "unlearned")
    change(row)
    assert any(said in one.why for one in check(receipt, weights={}))
