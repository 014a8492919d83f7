"""python -m fastforget score: figures against the ops on whole arrays, files of every kind and in pieces, and what it refuses."""

from __future__ import annotations

import argparse
import json
import math
import re

import numpy as np
import pytest
import torch

from fastforget import _safetensors as safetensors_io
from fastforget.__main__ import main
from fastforget.auditing.arrays import files as arrays
from fastforget.auditing.arrays import score
from fastforget.auditing.measure import intervals
from fastforget.ops import membership

N, K, M, Z = 60, 5, 6, 31


class Files:
    """A target, shadow models and a population, in memory and in files."""

    def __init__(self, folder, queries: int = 0) -> None:
        self.folder, g = folder, torch.Generator().manual_seed(7)
        shape = (N, queries, K) if queries else (N, K)
        self.labels = torch.randint(0, K, (N,), generator=g)
        self.members = torch.arange(N) % 2 == 0
        self.keep = torch.stack([torch.randperm(M, generator=g) < M // 2 for _ in range(N)], dim=1)
        self.target = torch.randn(shape, generator=g)
        self.shadows = torch.randn((M, *shape), generator=g)
        rows = torch.arange(N)
        self.target[rows, ..., self.labels] += self.members.float().view(-1, *[1] * (len(shape) - 2)) * 2
        self.shadows[:, rows, ..., self.labels] += 0.5
        self.z_labels = torch.randint(0, K, (Z,), generator=g)
        self.z = torch.randn((Z, *shape[1:]), generator=g)
        self.z_shadows = torch.randn((M, Z, *shape[1:]), generator=g)
        (folder / "shadows").mkdir()
        (folder / "zshadows").mkdir()
        for name in ("labels", "members", "keep", "target", "z", "z_labels"):
            np.save(folder / f"{name}.npy", getattr(self, name).numpy())
        for i in range(M):
            np.save(folder / "shadows" / f"{i}.npy", self.shadows[i].numpy())
            np.save(folder / "zshadows" / f"{i}.npy", self.z_shadows[i].numpy())

    def args(self, *more: str, population: bool = False, **changed: str) -> list[str]:
        files = {"logits": "target.npy", "labels": "labels.npy", "shadow-logits": "shadows", "keep": "keep.npy", "members": "members.npy"}
        if population:
            files |= {"population-logits": "z.npy", "population-labels": "z_labels.npy", "population-shadow-logits": "zshadows"}
        files |= {k.replace("_", "-"): v for k, v in changed.items()}
        return ["score", *[part for k, v in files.items() if v for part in (f"--{k}", str(self.folder / v))], *more]

    def run(self, *more: str, **changed):
        """(scores by attack, the JSON)."""
        out, facts = self.folder / "out.npz", self.folder / "out.json"
        assert main(self.args("--out", str(out), "--json", str(facts), *more, **changed)) == 0
        return dict(np.load(out)), json.loads(facts.read_text())

    def scores(self, logits, labels=None):
        labels = self.labels if labels is None else labels
        shape = logits.shape[:-1]
        lead = labels.view(*[1] * (logits.dim() - 2 - (self.target.dim() - 2)), -1, *[1] * (self.target.dim() - 2))
        return membership.membership_scores(logits, lead.expand(shape).contiguous())


@pytest.fixture
def files(tmp_path) -> Files:
    return Files(tmp_path)


def near(got, expected, tolerance=1e-9) -> None:
    torch.testing.assert_close(torch.as_tensor(got), expected.double(), rtol=tolerance, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize("chunk", [[], ["--chunk", "7"]])
def test_every_attack_equals_the_ops_on_whole_arrays(files, chunk):
    got, facts = files.run(*chunk, population=True)
    t, s = files.scores(files.target), files.scores(files.shadows)
    z, zs = files.scores(files.z, files.z_labels), files.scores(files.z_shadows, files.z_labels)
    for name, sign in (("loss", -1), ("entropy", -1), ("modified_entropy", -1), ("confidence", 1), ("margin", 1), ("logit_confidence", 1)):
        near(got[name], sign * getattr(t, name))
    phi, shadow_phi = t.logit_confidence.double(), s.logit_confidence.double()
    near(got["lira"], membership.lira(phi, shadow_phi, files.keep, variance="global"))
    near(got["lira_offline"], membership.lira(phi, shadow_phi, files.keep, variance="global", mode="offline"))
    wide = [-x.double() for x in (t.loss, s.loss, z.loss, zs.loss)]
    near(got["rmia"], membership.rmia(*wide, member=files.keep))
    near(got["rmia_offline"], membership.rmia(*wide, member=files.keep, mode="offline", a=0.3))
    above = (s.loss > t.loss) & ~files.keep
    near(got["attack_r"], above.sum(0).double() / (~files.keep).sum(0))
    near(got["attack_p"], (z.loss[None] > t.loss[:, None]).double().mean(1))
    assert set(got) == {r["attack"] for r in facts["rows"]} == set(facts["conventions"])


@pytest.mark.parametrize("chunk", ["60", "11"])
def test_conventions_reach_the_attacks(files, chunk):
    options = ["--variance", "per_example", "--tail", "density", "--gamma", "1", "--strict", "--a", "0.6", "--chunk", chunk]
    got, facts = files.run("--attack", "lira", "lira_offline", "rmia", "rmia_offline", *options)
    t, s = files.scores(files.target), files.scores(files.shadows)
    phi, shadow_phi = t.logit_confidence.double(), s.logit_confidence.double()
    near(got["lira"], membership.lira(phi, shadow_phi, files.keep))
    near(got["lira_offline"], membership.lira(phi, shadow_phi, files.keep, mode="offline", tail="density"))
    # without a population the samples themselves are compared with, each left out of its own comparison
    wide = [-x.double() for x in (t.loss, s.loss, t.loss, s.loss)]
    own = torch.ones(N, dtype=torch.bool)
    rest = {"member": files.keep, "member_z": files.keep, "gamma": 1.0, "strict": True, "self_in_z": own}
    near(got["rmia"], membership.rmia(*wide, **rest))
    near(got["rmia_offline"], membership.rmia(*wide, mode="offline", a=0.6, **rest))
    assert facts["conventions"]["rmia_offline"]["a"] == 0.6 and facts["conventions"]["rmia"]["population"] == f"the {N} samples themselves"
    assert facts["conventions"]["lira_offline"]["tail"] == "density"


@pytest.mark.parametrize("variance", ["global", "global_in", "pooled", "mean_std"])
def test_variances_common_to_all_samples(files, variance):
    files.keep[:, 4], files.keep[:, 6] = False, True
    np.save(files.folder / "keep.npy", files.keep.numpy())
    got, _ = files.run("--attack", "lira", "lira_offline", "--variance", variance, "--chunk", "7")
    t, s = (files.scores(x).logit_confidence.double() for x in (files.target, files.shadows))
    near(got["lira"], membership.lira(t, s, files.keep, variance=variance))
    near(got["lira_offline"], membership.lira(t, s, files.keep, variance=variance, mode="offline"))


def test_several_queries(tmp_path):
    files = Files(tmp_path, queries=3)
    got, _ = files.run("--chunk", "13", population=True)
    t, s = files.scores(files.target), files.scores(files.shadows)
    z, zs = files.scores(files.z, files.z_labels), files.scores(files.z_shadows, files.z_labels)
    phi, shadow_phi = t.logit_confidence.double(), s.logit_confidence.double()
    near(got["lira"], membership.lira(phi, shadow_phi, files.keep, variance="global"))
    turned = [-x.double().transpose(-1, -2).contiguous() for x in (t.loss, s.loss, z.loss, zs.loss)]
    near(got["rmia"], membership.rmia_vote(*turned, member=files.keep))
    near(got["loss"], -t.loss.double().mean(1))


def test_scores_in_place_of_logits(files):
    t, s = files.scores(files.target), files.scores(files.shadows)
    np.save(files.folder / "phi.npy", t.logit_confidence.numpy())
    (files.folder / "phis").mkdir()
    for i in range(M):
        np.save(files.folder / "phis" / f"{i}.npy", s.logit_confidence[i].numpy())
    got, _ = files.run("--scores", logits="phi.npy", shadow_logits="phis", labels="")
    expected, _ = files.run()
    assert set(got) == set(expected) - {"entropy", "modified_entropy", "margin"}
    for name in ("lira", "lira_offline", "loss"):
        near(got[name], torch.from_numpy(expected[name]), 1e-5)


def test_figures_and_intervals(files, capsys):
    got, facts = files.run("--attack", "loss", "lira", "--seed", "3")
    shown = capsys.readouterr().out
    for row in facts["rows"]:
        scores = torch.from_numpy(got[row["attack"]])
        stats = membership.roc_stats(scores[files.members], scores[~files.members])
        assert row["auc"] == stats.auc.item() and row["balanced_accuracy"] == stats.balanced_accuracy.item()
        assert [row["tpr_at_1pct_fpr"], row["tpr_at_0.1pct_fpr"]] == stats.tpr.tolist()
        drawn = membership.roc_bootstrap(scores[files.members], scores[~files.members], fprs=(), resamples=1000, seed=3)
        assert row["auc_interval"] == [drawn.auc_low.item(), drawn.auc_high.item()]
        hits = round(row["tpr_at_1pct_fpr"] * 30)
        assert row["tpr_at_1pct_fpr_interval"] == pytest.approx(membership.clopper_pearson(hits, 30))
        low, high = row["balanced_accuracy_interval"]
        assert low < row["balanced_accuracy"] < high
        assert row["attack"] in shown and f"{row['auc']:.4f} [{row['auc_interval'][0]:.4f}, " in shown
    assert "30 members, 30 non-members" in shown and "no false positive is allowed" in shown and "6 shadow models" in shown


def test_without_members_it_still_scores(files, capsys):
    got, facts = files.run("--attack", "loss", members="")
    assert facts["rows"][0]["median"] == pytest.approx(float(np.median(got["loss"])))
    assert "AUC" not in capsys.readouterr().out


def test_without_keep_the_models_are_references(files):
    got, _ = files.run(keep="")
    assert {"lira_offline", "rmia_offline", "attack_r"} < set(got) and not {"lira", "rmia"} & set(got)
    s = files.scores(files.shadows).logit_confidence.double()
    none = torch.zeros(M, N, dtype=torch.bool)
    phi = files.scores(files.target).logit_confidence.double()
    near(got["lira_offline"], membership.lira(phi, s, none, mode="offline", variance="global"))


# ------------------------------------------------------------------ kinds of files


@pytest.mark.parametrize("kind", ["npz", "compressed", "safetensors", "fortran", "big endian", "float16", "bfloat16", "float64"])
def test_files_of_every_kind(files, kind):
    expected, _ = files.run("--attack", "loss", "lira")
    values, place = files.target, files.folder / "other.npy"
    if kind in ("npz", "compressed"):
        place = place.with_suffix(".npz")
        save = np.savez if kind == "npz" else np.savez_compressed
        save(place, logits=values.numpy(), labels=np.zeros(3))
    elif kind in ("safetensors", "bfloat16"):
        place = place.with_suffix(".safetensors")
        values = values.bfloat16() if kind == "bfloat16" else values
        safetensors_io.save(place, {"a": torch.zeros(3, dtype=torch.int8), "logits": values})
    else:
        forms = {"fortran": np.asfortranarray, "big endian": lambda a: a.astype(">f4"), "float16": np.float16, "float64": np.float64}
        np.save(place, forms[kind](values.numpy()))
    got, _ = files.run("--attack", "loss", "lira", "--chunk", "17", logits=place.name)
    for name in ("loss", "lira"):
        near(got[name], torch.from_numpy(expected[name]), 0.1 if "16" in kind else 1e-5)


def test_scores_as_safetensors(files):
    out = files.folder / "out.safetensors"
    assert main(files.args("--attack", "loss", "--out", str(out))) == 0
    near(safetensors_io.load(out)[0]["loss"], torch.from_numpy(files.run("--attack", "loss")[0]["loss"]), 0.0)


def test_only_a_piece_is_in_memory_at_a_time(files):
    rows = arrays.open_rows(files.folder / "target.npy", "logits")
    assert rows.shape == (N, K) and rows.row_bytes == 4 * K
    assert torch.equal(rows.read(5, 9), files.target[5:9]) and rows.read(5, 9).untyped_storage().nbytes() == 4 * 4 * K


@pytest.mark.slow
def test_memory_does_not_grow_with_the_models(tmp_path):
    """48 models x 50k samples x 18 queries, 170 MB of files: with one array of all scores it could not stay below 100 MB."""
    from fastforget._bench import shadows

    measured = shadows.scores(argparse.Namespace(n=48, root=tmp_path, threads=1))
    for row in measured["rows"]:
        assert row["exit"] == 0 and row["input_mb"] > 160
        assert 0 < row["peak_mb_above"] < 100, row


# ------------------------------------------------------------------ counted


def test_nan_is_counted_and_the_rest_scored(files, capsys):
    files.target[3, 0] = math.nan
    np.save(files.folder / "target.npy", files.target.numpy())
    files.shadows[2, 10] = math.nan
    np.save(files.folder / "shadows" / "2.npy", files.shadows[2].numpy())
    got, facts = files.run("--attack", "loss", "lira", "rmia", "attack_r")
    assert facts["counts"]["nan_target"] == 1 and facts["counts"]["nan_shadow_scores"] == 1
    for name, scores in got.items():
        assert np.isnan(scores).nonzero()[0].tolist() == [3], name
    assert [r["nan"] for r in facts["rows"]] == [1] * 4 and facts["rows"][0]["members"] + facts["rows"][0]["nonmembers"] == N - 1
    shown = capsys.readouterr().out
    assert "1 of them with NaN logits" in shown and "1 NaN shadow scores left out" in shown
    # the model that had NaN there is left out for that sample alone
    keep, phi = files.keep.clone(), files.scores(files.shadows.nan_to_num()).logit_confidence.double()
    state = membership.Lira(N)
    for i in range(M):
        groups = keep[i].to(torch.int8)
        groups[10] = -1 if i == 2 else groups[10]
        state.update(phi[i], groups)
    near(got["lira"], state.score(files.scores(files.target).logit_confidence.double(), variance="global"))


def test_samples_never_in_or_out_are_counted(files, capsys):
    files.keep[:, 4], files.keep[:, 5], files.keep[:, 6] = False, False, True
    np.save(files.folder / "keep.npy", files.keep.numpy())
    got, facts = files.run("--attack", "lira", "lira_offline", "rmia", "rmia_offline")
    assert facts["counts"]["never_in"] == 2 and facts["counts"]["never_out"] == 1
    for name, missing in (("lira", [4, 5, 6]), ("rmia", [4, 5, 6]), ("lira_offline", [6]), ("rmia_offline", [6])):
        assert np.isnan(got[name]).nonzero()[0].tolist() == missing, name
    shown = capsys.readouterr().out
    assert "1 samples in every model" in shown and "2 samples in none" in shown


# ------------------------------------------------------------------ refused


def cut(path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


def put(files: Files, name: str, value) -> str:
    np.save(files.folder / name, value)
    return name


def only_one(files: Files) -> None:
    for i in range(1, M):
        (files.folder / "shadows" / f"{i}.npy").unlink()


REFUSED = {
    "truncated": (
        lambda f: cut(f.folder / "target.npy"), {}, [], r"target.npy is cut off: shape \(60, 5\), float32, takes 1200 bytes and 1192"),
    "truncated shadow": (lambda f: cut(f.folder / "shadows/4.npy"), {}, [], "4.npy is cut off"),
    "length": (lambda f: put(f, "y.npy", np.zeros(59, int)), {"labels": "y.npy"}, [], "y.npy: 59 labels for 60 samples of .*target.npy"),
    "float labels": (lambda f: put(f, "y.npy", np.zeros(60)), {"labels": "y.npy"}, [], "y.npy: float64 .*integer class ids"),
    "range": (lambda f: put(f, "y.npy", np.full(60, 5)), {"labels": "y.npy"}, [], "label 5 of sample 0; .* has 5 classes, 0 to 4"),
    "one shadow": (only_one, {}, [], "shadows holds 1 shadow model; accepted are 2 or more"),
    "shadow shape": (lambda f: put(f, "shadows/9.npy", np.zeros((60, 4), "f")), {}, [], r"9.npy: shape \[60, 4\]; .*\[60, 5\]"),
    "keep": (lambda f: put(f, "k.npy", np.zeros((60, 6), bool)), {"keep": "k.npy"}, [], r"k.npy: shape \[60, 6\]; accepted is \[6, 60\]"),
    "keep values": (lambda f: put(f, "k.npy", np.full((6, 60), 2)), {"keep": "k.npy"}, [], "numbers other than 0 and 1"),
    "members": (lambda f: put(f, "m.npy", np.ones(60, bool)), {"members": "m.npy"}, [], "all samples are members"),
    "integers": (lambda f: put(f, "t.npy", np.zeros((60, 5), int)), {"logits": "t.npy"}, [], "t.npy: int64; .*floating"),
    "one dimension": (lambda f: put(f, "t.npy", np.zeros(60)), {"logits": "t.npy"}, [], r"t.npy: shape \[60\]; .*--scores"),
    "objects": (lambda f: put(f, "t.npy", np.array([{}] * 60)), {"logits": "t.npy"}, [], "t.npy holds Python objects"),
    "missing": (lambda f: None, {"logits": "none.npy"}, [], "none.npy is not there"),
    "suffix": (lambda f: None, {"logits": "none.pt"}, [], "ends in '.pt'; accepted are .npy, .npz, .safetensors"),
    "names": (lambda f: np.savez(f.folder / "t.npz", a=1, b=2), {"logits": "t.npz"}, [], "t.npz holds a, b; .*called 'logits'"),
    "not npz": (lambda f: (f.folder / "t.npz").write_bytes(b"PK junk"), {"logits": "t.npz"}, [], "t.npz can't be read"),
    "not safetensors": (
        lambda f: (f.folder / "t.safetensors").write_bytes(b"x" * 40), {"logits": "t.safetensors"}, [], "not a safetensors file"),
    "folder": (lambda f: None, {"shadow_logits": "target.npy"}, [], "target.npy is not a folder"),
    "no keep": (lambda f: None, {"keep": ""}, ["--attack", "lira"], "--attack lira needs --keep; lira_offline does without"),
    "no shadows": (lambda f: None, {"keep": "", "shadow_logits": ""}, ["--attack", "rmia"], "--attack rmia needs --shadow-logits"),
    "no population": (lambda f: None, {}, ["--attack", "attack_p"], "--attack attack_p needs --population-logits"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case, files, capsys):
    spoil, changed, more, message = REFUSED[case]
    spoil(files)
    out = files.folder / "out.npz"
    assert main(files.args("--out", str(out), *more, **changed)) == 2
    shown = capsys.readouterr().err
    assert re.search(f"^python -m fastforget score: .*{message}", shown), shown
    assert not out.exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--gamma", "0"], "--gamma: got 0.0"),
        (["--a", "2"], "--a: got 2.0"),
        (["--chunk", "0"], "--chunk: got 0"),
        (["--out", "x.txt"], "--out: x.txt ends in .txt"),
        (["--population-logits", "z.npy"], "need each other"),
        (["--population-shadow-logits", "z"], "needs --population-logits"),
    ],
)
def test_bad_options(more, message, files, capsys):
    with pytest.raises(SystemExit):
        main(files.args(*more))
    assert message in capsys.readouterr().err


def test_labels_or_scores(files, capsys):
    with pytest.raises(SystemExit):
        main(files.args(labels=""))
    assert "--labels is needed with logits" in capsys.readouterr().err


def test_sides_that_do_not_overlap_have_an_interval_all_the_same():
    """Resampling can't vary them: the interval is the exact one that the file's convention names, as in the audit."""
    scores, members = torch.arange(40.0).double(), torch.arange(40) >= 20
    row = score._row("loss", scores, members, argparse.Namespace(seed=0, resamples=None))
    assert row["auc"] == 1.0 and row["auc_interval"] == intervals.share(20, 20)
    assert row["auc_interval"][0] < 0.9
