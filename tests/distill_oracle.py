"""The distillation loss as users write it and in extended precision, for the tests of every implementation."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch.nn import functional as F

FORMS = ["all", "classes", "one a row"]


def left_out(form, shape):
    """``drop`` and the same as bool[B, K]."""
    batch, classes = shape
    if form == "all" or classes == 1:
        return None, torch.zeros(shape, dtype=torch.bool)
    if form == "classes":
        mask = torch.arange(classes) % 3 == 1
        return mask, mask.expand(shape)
    labels = torch.randint(-1, classes, (batch,))
    return labels, torch.arange(classes) == labels[:, None]


def plain_loss(z, t, out, temperature):
    """As users write it, in the tensors' dtype."""
    log_p = F.log_softmax(z / temperature, 1)
    q = F.softmax(t.masked_fill(out, -math.inf) / temperature, 1)
    return F.kl_div(log_p, q, reduction="none").sum(1), (log_p.exp() - q) / (temperature * max(len(z), 1))


def exact_loss(z, t, out, temperature):
    """The same in extended precision, rounded to float64."""

    def log_softmax(x):
        d = x - x.max(axis=1, keepdims=True, initial=-np.inf)
        return d - np.log(np.exp(d).sum(axis=1, keepdims=True))

    T = np.longdouble(temperature)
    z, t = (x.to(torch.float64).numpy().astype(np.longdouble) / T for x in (z, t))
    log_p, log_q = log_softmax(z), log_softmax(np.where(out.numpy(), -np.inf, t))
    q = np.exp(log_q)
    with np.errstate(invalid="ignore"):
        loss = np.where(q == 0, 0, q * (log_q - log_p)).sum(axis=1)
    gradient = (np.exp(log_p) - q) / (T * max(len(z), 1))
    return tuple(torch.from_numpy(a.astype(np.float64)) for a in (loss, gradient))
