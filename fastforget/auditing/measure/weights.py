"""How far a model's weights lie from another's, layer by layer."""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor, nn

from ..._identity import bare_names, fingerprint, outside, packed
from ..figures import LayerDistance, WeightDistance


def weight_distance(model: nn.Module, other: nn.Module) -> WeightDistance:
    """Euclidean distance between two models' parameters, per layer and in all.

    A layer is a module that owns parameters itself (its weight and bias together), named without wrappers' prefixes. Buffers, such as
    batch-norm statistics, are left out; ``identical`` covers them too. Models that can't be laid on each other give a ``reason`` in place
    of figures, and are never called identical unless all their weights have the same hash.
    """
    parameters, others = _parameters(model), _parameters(other)
    reason = _not_plain(model, parameters) or _not_plain(other, others)
    if reason:
        return _by_hash(model, other, reason)
    reason = _mismatch(parameters, others)
    if reason:
        return _without(reason)
    squares: dict[str, list[float]] = {}
    weights_moved = False
    rows = _rows(parameters)
    with torch.no_grad():
        for name, parameter in parameters.items():
            sums = squares.setdefault(_layer(name), [0.0, 0.0])
            reference = others[name].detach().to(parameter.device)
            square = _square(parameter.detach(), reference)
            sums[0] += square
            weights_moved = weights_moved or (square > 0 and not is_bias(name))
            sums[1] += _square(reference, None)
    total, norm = (math.fsum(sums[i] for sums in squares.values()) for i in (0, 1))
    if not math.isfinite(total):
        return _without("the weights hold NaN or infinity, so they can't be compared")
    layers = [LayerDistance(name, math.sqrt(d), _ratio(d, n), rows[name]) for name, (d, n) in squares.items()]
    identical = total == 0 and _same_buffers(model, other)
    return WeightDistance(math.sqrt(total), _ratio(total, norm), identical, layers, biases_only=total > 0 and not weights_moved)


def is_bias(parameter: str) -> bool:
    """Whether a parameter is a bias by its name, as ``bias`` or attention's ``in_proj_bias``.

    >>> [is_bias(name) for name in ("0.bias", "attention.in_proj_bias", "0.weight", "biased.weight")]
    [True, True, False, False]
    """
    return parameter.rpartition(".")[2].endswith("bias")


def _without(reason: str) -> WeightDistance:
    return WeightDistance(math.nan, math.nan, False, [], reason)


def _parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    named = dict(model.named_parameters())
    bare = bare_names(named)
    return {bare[name]: parameter for name, parameter in named.items()}


def _not_plain(model: nn.Module, parameters: dict[str, nn.Parameter]) -> str | None:
    """Why a model's weights can't be compared layer by layer."""
    try:
        hidden = next(iter(packed(model)), None)
    except Exception as error:  # a module's own state_dict may do anything
        return f"a model's state_dict can't be read ({type(error).__name__}: {error}), so weights can't be compared"
    if hidden is not None:
        return f"weights are packed in {hidden} (a quantised layer?), so they can't be compared layer by layer"
    for name, parameter in parameters.items():
        if parameter.is_quantized or parameter.layout is not torch.strided or parameter.is_meta:
            form = "quantised" if parameter.is_quantized else "on the meta device" if parameter.is_meta else parameter.layout
            return f"{name} is {form}, so weights can't be compared layer by layer"
        if hasattr(parameter, "__tensor_flatten__"):
            return f"{name} is a {type(parameter).__name__} (a quantised weight?), so weights can't be compared layer by layer"
    return outside(model) if parameters else outside(model) or "a model has no parameters, so there are no weights to compare"


def _by_hash(model: nn.Module, other: nn.Module, reason: str) -> WeightDistance:
    """Identical where the hashes over everything are the same; else without figures."""
    try:
        same = outside(model) is None and outside(other) is None and fingerprint(model) == fingerprint(other)
    except (RuntimeError, TypeError, NotImplementedError):
        same = False
    return WeightDistance(0.0, 0.0, True, []) if same else _without(reason)


def _layer(parameter: str) -> str:
    return parameter.rpartition(".")[0] or parameter


def layer_rows(model: nn.Module) -> list[tuple[str, int]]:
    """Every layer, in the model's own order, with the first size of its weight."""
    return list(_rows(dict(model.named_parameters())).items())


def _rows(parameters: dict[str, nn.Parameter]) -> dict[str, int]:
    rows: dict[str, int] = {}
    for name, parameter in parameters.items():
        if parameter.dim() > 1 or _layer(name) not in rows:
            rows[_layer(name)] = len(parameter) if parameter.dim() else 1
    return rows


def head(layers: list[tuple[str, int]], classes: int) -> str | None:
    """The classifier's last layer: of the layers (name, rows) in the model's own order the last one with a row for each class.

    >>> head([("body", 64), ("classifier", 10), ("projector", 32)], classes=10)
    'classifier'
    """
    heads = [name for name, rows in layers if rows == classes]
    return heads[-1].partition(".parametrizations")[0] if heads else None


def layer_of(model: nn.Module, weight: Tensor) -> str | None:
    """The layer that a weight is of, by its name in :func:`weight_distance`: of tied weights the first."""
    return next((_layer(name) for name, parameter in _parameters(model).items() if parameter is weight), None)


def moved_below(model: nn.Module, other: nn.Module, last: str | None) -> tuple[float, str | None]:
    """Distance from another model below the last layer, as a share of both norms together: 1 for unrelated weights of one norm. NaN, with
    the reason, where the two can't be laid on each other.

    ``last``: the last layer's name; where it isn't known, the last in the model's own order is taken.
    """
    distance = weight_distance(model, other)
    if distance.reason:
        return math.nan, distance.reason
    if distance.identical:
        return 0.0, None
    last = distance.layers[-1].layer if last is None else last
    moved = math.hypot(*(layer.l2 for layer in distance.layers if _outside(layer.layer, last)))
    held = [p for one in (model, other) for name, p in _parameters(one).items() if _outside(_layer(name), last)]
    with torch.no_grad():
        norm = math.sqrt(math.fsum(_square(p.detach(), None) for p in held))
    return (moved / norm, None) if norm else (math.nan, "no weights lie below the last layer")


def nothing_below(model: nn.Module, last: str | None) -> bool:
    """Whether all weights are those of the last layer, so that what it reads is the inputs."""
    parameters = _parameters(model)
    if last is None or not parameters or _not_plain(model, parameters):
        return False
    return not any(_outside(_layer(name), last) for name in parameters)


def _outside(layer: str, last: str) -> bool:
    """Whether a layer is another than the last one, whose own parametrisations are its weights."""
    return layer.partition(".parametrizations")[0] != last and not (last == "" and "." not in layer)


def other_sizes(reason: str) -> bool:
    """Whether two models can't be laid on each other for their layers' sizes alone: names and kinds are the same."""
    return re.fullmatch(r"\S+ has shape \([0-9, ]*\) in one model and \([0-9, ]*\) in the other", reason) is not None


def _mismatch(parameters: dict[str, nn.Parameter], others: dict[str, nn.Parameter]) -> str | None:
    only = sorted(set(parameters) ^ set(others))
    if only:
        return f"the models differ in structure (first difference: {only[0]})"
    for name, parameter in parameters.items():
        if parameter.shape != others[name].shape:
            return f"{name} has shape {tuple(parameter.shape)} in one model and {tuple(others[name].shape)} in the other"
    return None


def _square(x: Tensor, minus: Tensor | None) -> float:
    if x.is_complex():
        x, minus = torch.view_as_real(x.resolve_conj()), None if minus is None else torch.view_as_real(minus.resolve_conj())
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    difference = x.to(wide) if minus is None else x.to(wide) - minus.to(wide)
    return float(torch.linalg.vector_norm(difference, dtype=torch.float64)) ** 2


def _ratio(square: float, norm: float) -> float:
    if norm == 0:
        return 0.0 if square == 0 else math.inf
    return math.sqrt(square / norm)


def _same_buffers(model: nn.Module, other: nn.Module) -> bool:
    buffers, others = _buffers(model), _buffers(other)
    return buffers.keys() == others.keys() and all(
        b.shape == others[n].shape and torch.equal(b, others[n].to(b.device)) for n, b in buffers.items()
    )


def _buffers(model: nn.Module) -> dict[str, Tensor]:
    named = dict(model.named_buffers())
    bare = bare_names(named)
    return {bare[name]: buffer for name, buffer in named.items()}
