"""MIA-efficacy: the features as defined and as published, the threshold and the SVC, the sign."""

from __future__ import annotations

import importlib
import math
import time

import numpy as np
import pytest
import torch
from audit_world import World

from fastforget.auditing.measure import svc


def draw(n: int, k: int, seed: int = 0, scale: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return scale * torch.randn(n, k, generator=g), torch.randint(k, (n,), generator=g)


def softmax(logits: torch.Tensor) -> np.ndarray:
    z = logits.double().numpy()
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def song_mittal(p: np.ndarray, y: int) -> float:
    others = [k for k in range(len(p)) if k != y]
    return -(1 - p[y]) * math.log(p[y]) - math.fsum(p[k] * math.log(1 - p[k]) for k in others)


def published(p: np.ndarray, occurring: set[int]) -> float:
    weights = [1 - v if k in occurring else v for k, v in enumerate(p)]
    return -math.fsum(w * math.log(v if v > 0 else 1e-30) for w, v in zip(weights, p, strict=True))


def test_features_are_their_formulas() -> None:
    logits, labels = draw(60, 5)
    measured, p = svc.svc_features(logits.double(), labels), softmax(logits)
    assert measured.prob.numpy() == pytest.approx(p, abs=1e-12)
    for i, y in enumerate(labels.tolist()):
        assert measured.correctness[i] == float(p[i].argmax() == y)
        assert measured.confidence[i].item() == pytest.approx(p[i, y])
        assert measured.entropy[i].item() == pytest.approx(-math.fsum(v * math.log(v) for v in p[i]))
        assert measured.m_entropy[i].item() == pytest.approx(song_mittal(p[i], y))


@pytest.mark.parametrize("present", [(0, 1, 2, 3, 4), (1, 3), (2,)])
def test_published_entropy_is_reproduced_with_its_mistake(present: tuple[int, ...]) -> None:
    logits, _ = draw(40, 5, seed=1)
    labels = torch.tensor(present)[torch.arange(40) % len(present)]
    p = softmax(logits)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        measured = svc.svc_features(logits.to(dtype), labels, m_entropy="published").m_entropy
        assert measured.tolist() == pytest.approx([published(row, set(present)) for row in p], rel=tolerance)


def test_published_entropy_ignores_the_label_and_the_definition_does_not() -> None:
    """With every class in the batch the label makes no difference any more; that is the defect."""
    logits, labels = draw(30, 3, seed=2)
    turned = labels.roll(1)
    by_label, by_batch = (
        [svc.svc_features(logits, y, m_entropy=m).m_entropy for y in (labels, turned)] for m in ("song_mittal", "published")
    )
    assert torch.equal(*by_batch) and not torch.equal(*by_label)
    sure = torch.tensor([[9.0, 0.0, 0.0], [0.0, 9.0, 0.0], [0.0, 0.0, 9.0]])
    right = svc.svc_features(sure, torch.arange(3)).m_entropy
    wrong = svc.svc_features(sure, torch.arange(3), m_entropy="published").m_entropy
    assert right.max() < 0.01 and wrong.min() > 15
    # log 0 is log 1e-30, as published
    zero = svc.svc_features(torch.tensor([[0.0, -math.inf]]), torch.tensor([0]), m_entropy="published").m_entropy
    assert zero.item() == pytest.approx(0.0)
    zero = svc.svc_features(torch.tensor([[0.0, -math.inf]] * 2), torch.tensor([0, 1]), m_entropy="published").m_entropy
    assert zero[0].item() == pytest.approx(69.0776, rel=1e-5)


def test_published_entropy_does_not_take_quadratic_memory() -> None:
    logits, labels = draw(40_000, 10)
    began = time.process_time()  # what others do on this machine takes no part of it
    svc.svc_features(logits, labels, m_entropy="published")  # as published: 40,000 x 40,000 floats, twice
    assert time.process_time() - began < 5


def test_threshold_against_a_slow_scan_and_the_sign() -> None:
    g = torch.Generator().manual_seed(0)
    retain, test, forget = torch.rand(300, generator=g) + 0.2, torch.rand(200, generator=g), torch.rand(50, generator=g)
    members = retain[:200]  # as many as there are test samples
    tried = sorted({float(v) for v in torch.cat((members, test))}, reverse=True)
    best = max(tried, key=lambda t: int((members >= t).sum()) - int((test >= t).sum()))
    share, reason = svc.mia_efficacy(retain, test, forget)
    assert reason is None and share == pytest.approx(sum(float(v) < best for v in forget) / 50)
    assert svc.mia_efficacy(-retain, -test, -forget, higher="nonmember")[0] == share
    # efficacy: 1 where no forget sample looks like a member
    assert svc.mia_efficacy(retain, test, forget * 0)[0] == 1.0 and svc.mia_efficacy(retain, test, forget * 0 + 9)[0] == 0.0
    value, reason = svc.mia_efficacy(torch.zeros(5), torch.ones(5), forget)
    assert math.isnan(value) and "no threshold" in reason


def test_svc_is_the_published_machine() -> None:
    sklearn_svm = pytest.importorskip("sklearn.svm")
    sets = [svc.svc_features(*draw(n, 4, seed=n)) for n in (150, 100, 60)]
    measured = svc.all_features(*sets, classifier="svc")
    assert set(measured) == set(svc.SvcFeatures._fields)
    for name, value in measured.items():
        x = [getattr(features, name).double().numpy().reshape(len(features.prob), -1) for features in sets]
        machine = sklearn_svm.SVC(C=3, gamma="auto", kernel="rbf")
        machine.fit(np.concatenate((x[0][:100], x[1])), np.r_[np.ones(100), np.zeros(100)])
        assert value == pytest.approx(np.mean(machine.predict(x[2]) == 0))
    assert set(svc.all_features(*sets)) == set(svc.SIGN)


def test_without_scikit_learn_the_threshold_is_offered(monkeypatch) -> None:
    def refuse(name: str, *rest: object) -> None:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", refuse)
    x = torch.rand(9)
    with pytest.raises(ImportError, match="pip install scikit-learn, or use classifier='threshold'"):
        svc.mia_efficacy(x, x, x, classifier="svc")
    assert svc.mia_efficacy(x + 1, x, x) == (1.0, None)


def test_bad_calls_name_themselves() -> None:
    x = torch.rand(9)
    with pytest.raises(ValueError, match="m_entropy: got 'wrong'; accepted are 'song_mittal', 'published'"):
        svc.svc_features(*draw(3, 3), m_entropy="wrong")
    with pytest.raises(ValueError, match="classifier: got 'knn'"):
        svc.mia_efficacy(x, x, x, classifier="knn")
    with pytest.raises(ValueError, match="higher: got 'up'"):
        svc.mia_efficacy(x, x, x, higher="up")
    with pytest.raises(ValueError, match=r"forget: got shape \(0,\)"):
        svc.mia_efficacy(x, x, x[:0])
    with pytest.raises(ValueError, match=r"retain: got shape \(9, 1\); accepted is \[N\], one feature a sample, at least one"):
        svc.mia_efficacy(x[:, None], x, x)
    with pytest.raises(ValueError, match="test: 1 values are NaN"):
        svc.mia_efficacy(x, torch.tensor([math.nan]), x)


def test_in_the_audit_it_is_the_threshold_on_the_confidence() -> None:
    world = World()
    report = world.audit(unlearned=world.retrained_again)
    for row, model in zip(report.rows, (world.original, world.retrained_again, world.retrained), strict=True):
        with torch.no_grad():
            sets = [svc.svc_features(model(x).double(), y).confidence for x, y in (world.retain, world.test, world.forget)]
        measured = row["probes"]["mia_efficacy"]
        assert measured["value"] == pytest.approx(svc.mia_efficacy(*sets)[0], abs=0.011)
        assert measured["interval"][0] <= measured["value"] <= measured["interval"][1] and "NON-member" in measured["convention"]
    assert report.row("original")["probes"]["mia_efficacy"]["value"] < 0.5
    assert report.row("retrained")["probes"]["mia_efficacy"]["value"] == 1.0
