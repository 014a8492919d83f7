"""Weights projected away from directions of their layers' inputs: what the inputs of linear and convolution layers span, and its use."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ... import _weights
from ..._data import Source
from ..task import Task

BATCH = 256
_CROP = 3  # of a convolution's kernel: patches are taken from a part of the image so wide


@dataclass
class Inputs:
    """Sums over the rows x that a layer saw of x x^T, float[groups, d, d], by the layer's name."""

    sums: dict[str, Tensor]
    rows: dict[str, int]


def layers(model: nn.Module) -> dict[str, nn.Module]:
    """Linear and 1- and 2-d convolution layers whose weight is a parameter of their own that may change."""
    return {
        name: m
        for name, m in model.named_modules()
        if isinstance(m, (nn.Linear, nn.Conv1d, nn.Conv2d)) and (w := m._parameters.get("weight")) is not None and w.requires_grad
    }


def inputs_of(task: Task, data: Source, patches: int, generator: torch.Generator) -> Inputs:
    """What the layers' inputs span, in eval mode. Of a convolution's patches at most ``patches`` are taken, as many from each batch as its
    share of the samples, from one part of the images that is three kernels wide and drawn for the batch.
    """
    seen = Inputs({}, {})
    most = 0

    def look(name: str, layer: nn.Module, x: Tensor) -> None:
        rows = _rows(layer, x.detach(), most, generator)
        rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
        total = rows.transpose(1, 2) @ rows
        seen.sums[name] = seen.sums[name] + total if name in seen.sums else total
        seen.rows[name] = seen.rows.get(name, 0) + rows.shape[1]

    with _hooks(layers(task.model), look), _weights.evaluating(task.model):
        for x, _ in task.cost.reading(data.batches(device=task.device, batch_size=BATCH)):
            most = -(-patches * min(BATCH, len(data)) // len(data))
            task.forward(task.model, x)
    return seen


@contextlib.contextmanager
def _hooks(of: dict[str, nn.Module], look: Any) -> Iterator[None]:
    """``look(name, layer, x)`` before each of the layers is called with x."""

    def hook(name: str) -> Any:
        return lambda layer, args, kwargs: look(name, layer, args[0] if args else kwargs["input"])

    handles = [layer.register_forward_pre_hook(hook(name), with_kwargs=True) for name, layer in of.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _rows(layer: nn.Module, x: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """[groups, rows, d]: what the weight's rows are multiplied with."""
    if isinstance(layer, nn.Linear):
        return x.reshape(1, -1, x.shape[-1])
    assert isinstance(layer, (nn.Conv1d, nn.Conv2d))
    kernel, stride, dilation = (_two(size, 1) for size in (layer.kernel_size, layer.stride, layer.dilation))
    around = layer._reversed_padding_repeated_twice
    if x.dim() < (4 if isinstance(layer, nn.Conv2d) else 3):
        x = x[None]
    for axis, size in zip(range(2, x.dim()), layer.kernel_size, strict=True):
        width = _CROP * (layer.dilation[axis - 2] * (size - 1) + 1)
        if x.shape[axis] > width:
            x = x.narrow(axis, int(torch.randint(0, x.shape[axis] - width + 1, (), generator=generator)), width)
    x = F.pad(x, around, mode="constant" if layer.padding_mode == "zeros" else layer.padding_mode)
    if isinstance(layer, nn.Conv1d):
        x = x.unsqueeze(2)
    unfolded = F.unfold(x, kernel, dilation=dilation, stride=stride)  # [B, groups * d, L]
    rows = unfolded.unflatten(1, (layer.groups, -1)).permute(1, 0, 3, 2).flatten(1, 2)
    if rows.shape[1] > most:
        rows = rows[:, torch.randperm(rows.shape[1], generator=generator)[:most].to(rows.device)]
    return rows


def _two(size: tuple[int, ...], missing: int) -> tuple[int, int]:
    return (missing, size[0]) if len(size) == 1 else (size[0], size[1])


def important(sums: Tensor, alpha: float) -> Tensor:
    """M = U diag(alpha q / ((alpha - 1) q + 1)) U^T, float64[groups, d, d]: U, s from the singular value decomposition of the rows, and
    q = s^2 / sum s^2.

    With Q = x^T x / trace that is ((alpha - 1) Q + 1)^-1 alpha Q: a solve with a matrix whose condition is at most alpha (or 1 / alpha),
    and no decomposition.

    >>> import torch
    >>> x = torch.tensor([[[3.0, 0.0], [0.0, 4.0]]], dtype=torch.float64)
    >>> important(x.transpose(1, 2) @ x, 100.0)
    tensor([[[0.9825, 0.0000],
             [0.0000, 0.9944]]], dtype=torch.float64)
    """
    sums = sums.double()
    trace = sums.diagonal(dim1=1, dim2=2).sum(1)
    if alpha == 0:
        return torch.zeros_like(sums)
    q = sums / torch.where(trace == 0, 1.0, trace)[:, None, None]
    eye = torch.eye(q.shape[1], dtype=q.dtype, device=q.device)
    return torch.cholesky_solve(alpha * q, torch.linalg.cholesky((alpha - 1) * q + eye))


def project(layer: nn.Module, forget: Tensor, retain: Tensor) -> None:
    """W <- W (1 - M_f + M_f M_r)^T, group by group; the bias stays."""
    weight = layer._parameters["weight"]
    assert weight is not None
    groups = len(forget)
    rows = weight.detach().double().reshape(groups, len(weight) // groups, -1)
    eye = torch.eye(rows.shape[2], dtype=rows.dtype, device=rows.device)
    kept = rows @ (eye - forget + forget @ retain).transpose(1, 2)
    with torch.no_grad():
        weight.copy_(kept.reshape(weight.shape))
