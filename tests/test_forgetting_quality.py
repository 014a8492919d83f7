"""The NeurIPS'23 score: the op's forgetting quality times what is left of the accuracies."""

from __future__ import annotations

import math

import pytest
import torch

import fastforget as ff
from fastforget.ops.membership import forget_quality

HALF = {"retain_accuracy": (0.45, 0.9), "test_accuracy": (0.8, 0.8)}


def ensembles(shift: float, models: int = 40, examples: int = 15) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(models, examples, generator=g) + shift, torch.randn(models, examples, generator=g)


@pytest.mark.parametrize("rules", [("single",), ("double",), ("single", "double")])
def test_score_is_the_op_s_times_both_ratios(rules: tuple[str, ...]) -> None:
    scores = ensembles(1.0)
    quality = ff.audit.forgetting_quality(*scores, retain_accuracy=(0.45, 0.9), test_accuracy=(0.6, 0.8), rules=rules)
    op = forget_quality(*scores, rules=rules)
    assert torch.equal(quality.epsilon, op.epsilon) and quality.forgetting == op.score.item()
    assert (quality.retain_ratio, quality.test_ratio) == pytest.approx((0.5, 0.75))
    assert quality.score == pytest.approx(op.score.item() * 0.375)
    by_hand = [2.0 ** -math.floor(e / 0.5) for e in op.epsilon.tolist()]
    assert quality.forgetting == pytest.approx(sum(by_hand) / len(by_hand))
    error = 1.96 * torch.tensor(by_hand, dtype=torch.float64).std().item() / math.sqrt(len(by_hand))
    assert quality.forgetting_interval[1] == pytest.approx(quality.forgetting + error, rel=1e-4)


def test_a_gap_lowers_it_and_lost_accuracy_too() -> None:
    near, far = (ff.audit.forgetting_quality(*ensembles(shift), **HALF) for shift in (0.0, 6.0))
    assert far.score < 1e-9 < near.score and near.retain_ratio == 0.5
    full = ff.audit.forgetting_quality(*ensembles(0.0), retain_accuracy=(0.9, 0.9), test_accuracy=(0.8, 0.8))
    assert full.score == pytest.approx(2 * near.score)


def test_accuracies_of_every_model_are_averaged() -> None:
    each = torch.tensor([0.4, 0.5]), [0.9, 0.9]
    quality = ff.audit.forgetting_quality(*ensembles(0.0), retain_accuracy=each, test_accuracy=(0.8, 0.8))
    assert quality.retain_ratio == pytest.approx(0.5)


def test_bad_calls_name_themselves() -> None:
    scores = ensembles(0.0)
    with pytest.raises(ValueError, match=r"retain_accuracy, unlearned: got 45; accepted are shares"):
        ff.audit.forgetting_quality(*scores, retain_accuracy=(45, 90), test_accuracy=(0.8, 0.8))
    with pytest.raises(ValueError, match=r"test_accuracy, retrained: got 0"):
        ff.audit.forgetting_quality(*scores, retain_accuracy=(0.9, 0.9), test_accuracy=(0.8, 0.0))
    with pytest.raises(ValueError, match=r"test_accuracy, unlearned: got nan"):
        ff.audit.forgetting_quality(*scores, retain_accuracy=(0.9, 0.9), test_accuracy=(math.nan, 0.8))
    with pytest.raises(TypeError, match="retain_accuracy: got float; accepted is a pair"):
        ff.audit.forgetting_quality(*scores, retain_accuracy=0.9, test_accuracy=(0.8, 0.8))
    with pytest.raises(ValueError, match=r"unlearned: 1 of 600 values are NaN"):
        broken = scores[0].clone()
        broken[0, 0] = math.nan
        ff.audit.forgetting_quality(broken, scores[1], **HALF)
    with pytest.raises(ValueError, match="retrained: got shape"):
        ff.audit.forgetting_quality(scores[0], scores[1][:, :3], **HALF)
