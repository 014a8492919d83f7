"""How far a model's weights lie from another's, layer by layer."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..figures import LayerDistance, WeightDistance


def weight_distance(model: nn.Module, other: nn.Module) -> WeightDistance:
    """Euclidean distance between two models' parameters, per layer and in all.

    A layer is a module that owns parameters itself (its weight and bias together). Buffers, such as batch-norm statistics, are left out;
    ``identical`` covers them too. Models that can't be laid on each other give a ``reason`` in place of figures.
    """
    parameters, others = dict(model.named_parameters()), dict(other.named_parameters())
    reason = _mismatch(parameters, others)
    if reason:
        return WeightDistance(math.nan, math.nan, False, [], reason)
    squares: dict[str, list[float]] = {}
    rows = dict(layer_rows(model))
    with torch.no_grad():
        for name, parameter in parameters.items():
            sums = squares.setdefault(_layer(name), [0.0, 0.0])
            reference = others[name].detach().to(parameter.device)
            sums[0] += _square(parameter.detach(), reference)
            sums[1] += _square(reference, None)
    total, norm = (math.fsum(sums[i] for sums in squares.values()) for i in (0, 1))
    layers = [LayerDistance(name, math.sqrt(d), _ratio(d, n), rows[name]) for name, (d, n) in squares.items()]
    return WeightDistance(math.sqrt(total), _ratio(total, norm), total == 0 and _same_buffers(model, other), layers)


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
    heads = [name for name, rows in layers if rows == classes]
    return heads[-1].partition(".parametrizations")[0] if heads else None


def _mismatch(parameters: dict[str, nn.Parameter], others: dict[str, nn.Parameter]) -> str | None:
    only = sorted(set(parameters) ^ set(others))
    if only:
        return f"the models differ in structure (first difference: {only[0]})"
    for name, parameter in parameters.items():
        if parameter.shape != others[name].shape:
            return f"{name} has shape {tuple(parameter.shape)} in one model and {tuple(others[name].shape)} "
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
    buffers, others = dict(model.named_buffers()), dict(other.named_buffers())
    return buffers.keys() == others.keys() and all(
        b.shape == others[n].shape and torch.equal(b, others[n].to(b.device)) for n, b in buffers.items()
    )
