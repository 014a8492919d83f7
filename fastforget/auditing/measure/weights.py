"""How far a model's weights lie from another's, layer by layer."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn


def weight_distance(model: nn.Module, other: nn.Module) -> dict[str, Any]:
    """Euclidean distance between two models' parameters, per layer and in all.

    A layer is a module that owns parameters itself (its weight and bias together). ``relative`` divides by
    the norm of ``other``'s layer; ``rows`` is the first size of its weight, such as the number of classes in a
    classifier's head. Buffers, such as batch-norm statistics, are left out; ``identical`` covers them too.
    Models that can't be laid on each other give ``{"reason": ...}`` instead of figures.
    """
    mine, theirs = dict(model.named_parameters()), dict(other.named_parameters())
    reason = _mismatch(mine, theirs)
    if reason:
        return {"total": math.nan, "relative": math.nan, "identical": False, "layers": [], "reason": reason}
    layers: dict[str, list[float]] = {}
    rows = dict(layer_rows(model))
    with torch.no_grad():
        for name, parameter in mine.items():
            sums = layers.setdefault(_layer(name), [0.0, 0.0])
            reference = theirs[name].detach().to(parameter.device)
            sums[0] += _square(parameter.detach(), reference)
            sums[1] += _square(reference, None)
    total, norm = (math.fsum(sums[i] for sums in layers.values()) for i in (0, 1))
    return {
        "total": math.sqrt(total),
        "relative": _ratio(total, norm),
        "identical": total == 0 and _same_buffers(model, other),
        "layers": [{"layer": name, "l2": math.sqrt(d), "relative": _ratio(d, n), "rows": rows[name]} for name, (d, n) in layers.items()],
        "reason": None,
    }


def _layer(parameter: str) -> str:
    return parameter.rpartition(".")[0] or parameter


def layer_rows(model: nn.Module) -> list[tuple[str, int]]:
    """Every layer, in the model's own order, with the first size of its weight."""
    rows: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 or _layer(name) not in rows:
            rows[_layer(name)] = len(parameter) if parameter.dim() else 1
    return list(rows.items())


def head(layers: list[tuple[str, int]], classes: int) -> str | None:
    """The classifier's last layer: of the layers (name, rows) in the model's own order the last one with a row for each class.

    >>> head([("body", 64), ("classifier", 10), ("projector", 32)], classes=10)
    'classifier'
    """
    found = [name for name, rows in layers if rows == classes]
    return found[-1].partition(".parametrizations")[0] if found else None


def _mismatch(mine: dict[str, nn.Parameter], theirs: dict[str, nn.Parameter]) -> str | None:
    only = sorted(set(mine) ^ set(theirs))
    if only:
        return f"the models differ in structure (first difference: {only[0]})"
    for name, parameter in mine.items():
        if parameter.shape != theirs[name].shape:
            return f"{name} has shape {tuple(parameter.shape)} in one model and {tuple(theirs[name].shape)} "
            "in the other"
    return None


def _square(x: Tensor, minus: Tensor | None) -> float:
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    difference = x.to(wide) if minus is None else x.to(wide) - minus.to(wide)
    return float(torch.linalg.vector_norm(difference, dtype=torch.float64)) ** 2


def _ratio(square: float, norm: float) -> float:
    if norm == 0:
        return 0.0 if square == 0 else math.inf
    return math.sqrt(square / norm)


def _same_buffers(model: nn.Module, other: nn.Module) -> bool:
    mine, theirs = dict(model.named_buffers()), dict(other.named_buffers())
    return mine.keys() == theirs.keys() and all(
        b.shape == theirs[n].shape and torch.equal(b, theirs[n].to(b.device)) for n, b in mine.items()
    )
