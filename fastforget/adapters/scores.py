"""The figures of TOFU (Maini et al., arXiv 2401.06121) and MUSE (Shi et al., arXiv 2407.06460) from losses and AUCs.

Losses are per sample, in nats, the mean over a sample's labels: ``ff.ops.membership.token_scores(logits, labels).loss`` of batches made by
:mod:`fastforget.adapters.tofu` or :mod:`fastforget.adapters.muse`. Formulas as the benchmarks' code computes them
(github.com/locuslab/tofu: ``aggregate_eval_stat.py``, ``evaluate_util.py``; locuslab/open-unlearning: ``src/evals/metrics``); where a paper
says otherwise, that is said. ROUGE isn't here: both benchmarks take it from the package rouge-score, and so can you.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._ks import KS, Floats, two_samples


def answer_probability(loss: Any) -> Tensor:
    """p(answer | question) ** (1 / tokens), float64 in the shape of ``loss`` (TOFU, section 2.2.1, for the forget and the retain set).

    >>> import math
    >>> answer_probability([0.0, math.log(4)]).tolist()
    [1.0, 0.25]
    """
    return torch.from_numpy(np.exp(-_floats("loss", loss)))


def option_probability(right: Any, wrong: Any) -> Tensor:
    """P(right) / (P(right) + the sum over wrong answers), each P as :func:`answer_probability`: TOFU's probability on real authors and
    world facts.

    Args:
        right: losses of the right answers [N].
        wrong: losses of the wrong ones [N, K].

    >>> import math
    >>> option_probability([math.log(2)], [[math.log(4), math.log(4)]]).tolist()
    [0.5]
    """
    ours, theirs = _two("right", right, "wrong", wrong)
    true = np.exp(-ours)
    return torch.from_numpy(true / (true + np.exp(-theirs).sum(1)))


def truth_ratio(right: Any, wrong: Any, *, mean: str = "geometric") -> Tensor:
    """How much more probable wrong answers are than the right one said otherwise: mean of P(wrong) / P(right), [N] float64.

    Args:
        right: losses of paraphrased right answers [N] (``paraphrased_answer``; on real authors and world facts ``answer``).
        wrong: losses of wrong answers in the same words [N, K] (``perturbed_answer``).
        mean: over the wrong ones: ``"geometric"``, as the codes have it, or ``"arithmetic"``, equation 1 of the paper.

    >>> import math
    >>> truth_ratio([math.log(2)], [[math.log(4), math.log(16)]]).round(decimals=9).tolist()
    [0.25]
    """
    if mean not in ("geometric", "arithmetic"):
        raise ValueError(f"mean: got {mean!r}; accepted are 'geometric', 'arithmetic'")
    ours, theirs = _two("right", right, "wrong", wrong)
    top = np.exp(-theirs.mean(1)) if mean == "geometric" else np.exp(-theirs).mean(1)
    return torch.from_numpy(top / np.exp(-ours))


def truth_score(ratio: Any, *, forget: bool = False) -> float:
    """The mean over samples that tables show: of max(0, 1 - R), or on the forget set of min(R, 1 / R).

    >>> truth_score([0.25, 2.0]), truth_score([0.25, 2.0], forget=True)
    (0.375, 0.375)
    """
    r = _floats("ratio", ratio)
    if (r < 0).any():
        raise ValueError(f"ratio: got {r.min()}; accepted are truth ratios, 0 or more")
    with np.errstate(divide="ignore"):
        return float(np.minimum(r, 1 / r).mean() if forget else np.maximum(0, 1 - r).mean())


def forget_quality(unlearned: Any, retained: Any) -> KS:
    """TOFU's forget quality is the p-value (section 2.2.2): could the truth ratios on the forget set of the unlearned model be those of a
    model trained without it? Above 0.05 the two can't be told apart; published tables often show its logarithm to base 10.

    Args:
        unlearned, retained: truth ratios [N], [M]; or any two samples of numbers.

    Returns:
        :class:`KS`. The p-value is the exact one: the share of all orders of N + M different values with a distance as large (Hodges,
        Arkiv för Matematik 3, 1958), summed without cancellation, so that tiny ones are right. Above N x M = 10^8, where that takes long,
        it is Kolmogorov's limit.

    >>> forget_quality([1.0, 2.0], [3.0, 4.0])  # 2 of 6 orders
    KS(statistic=1.0, pvalue=0.3333333333333333)
    """
    return two_samples(_floats("unlearned", unlearned).ravel(), _floats("retained", retained).ravel())


def model_utility(values: Iterable[float]) -> float:
    """The harmonic mean (TOFU, section 2.2.1: of probability, ROUGE and truth score on the retain set, real authors and world facts, nine
    values); 0 where one of them is 0.

    >>> round(model_utility([0.5, 1.0, 1.0]), 6)
    0.75
    """
    found = _floats("values", list(values))
    if (found < 0).any():
        raise ValueError(f"values: got {found.min()}; accepted are figures of 0 or more")
    return float(len(found) / (1 / found).sum()) if found.all() else 0.0


def privleak(auc: float, retrained_auc: float) -> float:
    """MUSE's PrivLeak, in percent: ((1 - auc) - (1 - retrained_auc)) / (1 - retrained_auc) * 100.

    0 is retraining; below 0 the forget set still looks like members, above 0 it stands out as less like them than unseen data.

    Args:
        auc: of an attack (MUSE: Min-40%) that tells the forget set, the positives, from the holdout set. MUSE's own code counts the
            holdout set as positives; its AUCs are 1 minus these.
        retrained_auc: the same on the retrained model.

    >>> privleak(1.0, 0.5), privleak(0.5, 0.5), privleak(0.25, 0.5)
    (-100.0, 0.0, 50.0)
    """
    for name, value, most in (("auc", auc, "1"), ("retrained_auc", retrained_auc, "less than 1")):
        if not 0 <= value <= 1 or (value == 1 and name == "retrained_auc"):
            raise ValueError(f"{name}: got {value}; accepted is 0 to {most}")
    return ((1 - auc) - (1 - retrained_auc)) / (1 - retrained_auc) * 100


def _floats(name: str, values: Any) -> Floats:
    found = np.asarray(values.detach().double().cpu() if isinstance(values, Tensor) else values, dtype=np.float64)
    if found.size == 0:
        raise ValueError(f"{name}: it is empty; accepted is one number at least")
    if not np.isfinite(found).all():
        raise ValueError(f"{name}: it has NaN or infinite values; accepted are finite numbers")
    return found


def _two(name: str, one: Any, other: str, many: Any) -> tuple[Floats, Floats]:
    first, second = _floats(name, one), _floats(other, many)
    if first.ndim != 1 or second.ndim != 2 or len(first) != len(second):
        raise ValueError(f"{name}, {other}: got shapes {list(first.shape)} and {list(second.shape)}; accepted are [N] and [N, K]")
    return first, second
