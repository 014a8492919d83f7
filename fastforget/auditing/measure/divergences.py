"""How far two models' answers lie apart on the same samples: Jensen-Shannon divergence, ZRF, activation distance.

Everything is computed in float64 from log-softmax, so that no probability is rounded to 0 before its logarithm is taken.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LN2 = math.log(2.0)


def _logs(name: str, logits: Tensor, other: Tensor) -> Tensor:
    if logits.dim() != 2 or logits.shape != other.shape or not logits.is_floating_point():
        raise ValueError(
            f"{name}: got {logits.dtype}{tuple(logits.shape)} beside a tensor of shape {tuple(other.shape)}; accepted are the logits of "
            "both models for the same samples and classes, [N, K] each"
        )
    return torch.log_softmax(logits.detach().cpu().double(), dim=1)


def _kl(p: Tensor, log_p: Tensor, log_q: Tensor) -> Tensor:
    """Terms of KL(p || q); a class of probability 0 adds nothing."""
    return torch.where(p > 0, p * (log_p - log_q), 0.0)


def js_divergence(logits: Tensor, others: Tensor) -> Tensor:
    """Jensen-Shannon divergence of two models' softmax outputs, sample by sample (Lin, IEEE Trans. Inf. Theory 1991).

    JS(p, q) = KL(p || m) / 2 + KL(q || m) / 2 with m = (p + q) / 2, in nats: 0 for equal answers, ln 2 at most.

    Args:
        logits, others: [N, K], any float dtype.

    Returns:
        float64[N] on the CPU.

    Raises:
        ValueError: shapes that differ, or not 2-D.

    >>> import torch
    >>> far = torch.tensor([[50.0, 0.0]]), torch.tensor([[0.0, 50.0]])
    >>> round(js_divergence(*far).item(), 6), js_divergence(far[0], far[0]).item()
    (0.693147, 0.0)
    """
    a, b = _logs("logits", logits, others), _logs("others", others, logits)
    m = torch.logaddexp(a, b) - LN2
    return ((_kl(a.exp(), a, m) + _kl(b.exp(), b, m)).sum(dim=1) / 2).clamp_min(0.0)


def js_of_means(mean: Tensor, other: Tensor) -> float:
    """Jensen-Shannon divergence, in nats, of two mean posteriors [K]."""
    m = (mean + other) / 2
    return float(sum(torch.xlogy(p, p).sum() - torch.xlogy(p, m).sum() for p in (mean.double(), other.double())) / 2)


def zrf(logits: Tensor, teacher: Tensor, variant: str = "nats") -> Tensor:
    """Zero-retrain-forgetting score, sample by sample (Chundawat et al., AAAI'23): 1 - JS(model, randomly initialised teacher).

    The score of a set is the mean. Near 1, the model answers like one that was never trained. Variants:

    - ``"nats"``: JS with natural logarithms; the score lies in [1 - ln 2, 1]
    - ``"bits"``: JS with logarithms of base 2; the score lies in [0, 1]
    - ``"badt"``: what the published code computes under this name: 1 - (KL(m || p) + KL(m || q)) / (2 K), the two divergences the wrong
      way round and averaged over the K classes too. It is near 1 whatever the models do, and has no lower bound

    Args:
        logits, teacher: [N, K], any float dtype.
        variant: "nats", "bits" or "badt".

    Returns:
        float64[N] on the CPU.

    Raises:
        ValueError: shapes that differ, not 2-D, or an unknown variant.

    >>> import torch
    >>> model, teacher = torch.tensor([[6.0, 0.0, 0.0]]), torch.zeros(1, 3)
    >>> [round(zrf(model, teacher, v).item(), 3) for v in ("nats", "bits", "badt")]
    [0.696, 0.561, 0.771]
    """
    if variant not in ("nats", "bits", "badt"):
        raise ValueError(f"variant: got {variant!r}; accepted are 'nats', 'bits' and 'badt'")
    if variant != "badt":
        return 1.0 - js_divergence(logits, teacher) / (1.0 if variant == "nats" else LN2)
    a, b = _logs("logits", logits, teacher), _logs("teacher", teacher, logits)
    log_m = torch.logaddexp(a, b) - LN2
    m = log_m.exp()
    return 1.0 - (_kl(m, log_m, a) + _kl(m, log_m, b)).mean(dim=1) / 2


def activation_distance(logits: Tensor, others: Tensor, norm: int = 2) -> Tensor:
    """Distance of two models' softmax outputs, sample by sample: ``norm`` 2 (Chundawat et al., AAAI'23, and their code) or 1 (Golatkar
    et al., CVPR'20: their notebook's distance).

    Args:
        logits, others: [N, K], any float dtype.
        norm: 1 or 2.

    Returns:
        float64[N] on the CPU; at most sqrt(2) for norm 2 and 2 for norm 1.

    Raises:
        ValueError: shapes that differ, not 2-D, or another norm.

    >>> import torch
    >>> sure = torch.tensor([[50.0, 0.0]]), torch.tensor([[0.0, 50.0]])
    >>> [round(activation_distance(*sure, norm=n).item(), 4) for n in (1, 2)]
    [2.0, 1.4142]
    """
    if norm not in (1, 2):
        raise ValueError(f"norm: got {norm!r}; accepted are 1 and 2")
    a, b = _logs("logits", logits, others), _logs("others", others, logits)
    return torch.linalg.vector_norm(a.exp() - b.exp(), ord=norm, dim=1)
