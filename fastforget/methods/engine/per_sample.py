"""The gradient of every single sample of a batch, layer by layer: from the layer's inputs and the gradients of its outputs, as one product.

A layer's parameters get from sample b the gradient that its rows of ``x`` and ``g`` give: g_b^T x_b for a linear layer, the same over the
windows of x_b for a convolution (Goodfellow, "Efficient Per-Example Gradient Computations", arXiv 1510.01799; Rochette, Manoel & Tramel,
"Efficient Per-Example Gradient Computations in Convolutional Neural Networks", arXiv 1912.06015).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

AT_ONCE = {"cpu": 2**19}  # numbers in the windows and gradients of the samples that are worked on together: what a cache holds
ELSEWHERE = 2**26


def refusal(module: nn.Module) -> str | None:
    """Why the layer's gradients can't be had by formula; ``None`` if they can."""
    if type(module) not in GRADIENTS or "forward" in vars(module):
        return "has no formula"
    if not {name for name, p in module._parameters.items() if p is not None} <= {"weight", "bias"}:
        return "has further parameters"
    m: Any = module
    if isinstance(m, nn.modules.batchnorm._NormBase) and type(m) not in INSTANCE and m.running_mean is None:
        return "normalises by the batch"
    if type(m) in INSTANCE and m.running_mean is not None:
        return "keeps running statistics"
    if isinstance(m, (nn.Embedding, nn.EmbeddingBag)) and (m.max_norm is not None or m.scale_grad_by_freq):
        return "has max_norm or scale_grad_by_freq"
    if isinstance(m, nn.EmbeddingBag) and m.mode == "max":
        return "takes the largest of its bag"
    return None


def fits(module: nn.Module, x: Tensor, samples: int) -> bool:
    """Whether each row of the layer's input is a sample."""
    if isinstance(module, nn.modules.conv._ConvNd):
        least = 2 + len(module.kernel_size)
    else:
        least = 1 if isinstance(module, nn.Embedding) else 2
    return x.dim() >= least and len(x) == samples


def add_squares_(total: Tensor, module: nn.Module, name: str, x: Tensor, g: Tensor) -> None:
    """Adds to ``total`` the square of each sample's gradient.

    Args:
        total: in the parameter's shape; its dtype is that of ``g``, and of ``x`` where that isn't ids.
        module: a layer that :func:`refusal` has nothing against.
        name: of its parameter, ``"weight"`` or ``"bias"``.
        x: its inputs [B, ...].
        g: gradients of its outputs [B, ...]: row b of the loss of sample b.

    >>> import torch
    >>> total = torch.zeros(1, 2)
    >>> add_squares_(total, torch.nn.Linear(2, 1), "weight", torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.tensor([[1.0], [2.0]]))
    >>> total
    tensor([[37.,  4.]])
    """
    if isinstance(module, nn.Linear) and x.dim() == 2 and name == "weight":
        total.addmm_(g.square().T, x.square())
    elif isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        _add_squared_rows_(total, module, x, g)
    else:
        for rows in chunks(len(x), numbers(module, name, x, g), x.device):
            total += gradients(module, name, x[rows], g[rows]).square_().sum(0)


def gradients(module: nn.Module, name: str, x: Tensor, g: Tensor) -> Tensor:
    """Each sample's gradient, [B, *shape of the parameter]; arguments as of :func:`add_squares_`."""
    return GRADIENTS[type(module)](module, name, x, g)


def chunks(samples: int, each: int, device: torch.device) -> list[slice]:
    """Rows to be worked on together, where a sample takes so many numbers."""
    size = max(1, AT_ONCE.get(device.type, ELSEWHERE) // max(1, each))
    return [slice(begin, begin + size) for begin in range(0, samples, size)]


def numbers(module: nn.Module, name: str, x: Tensor, g: Tensor) -> int:
    """How many a sample's gradient takes, with its windows."""
    parameter = module._parameters[name]
    assert parameter is not None
    windows = 0
    if isinstance(module, nn.modules.conv._ConvNd) and name == "weight":
        windows = module.in_channels * math.prod(module.kernel_size) * math.prod(g.shape[2:])
    return parameter.numel() + max(windows, x[0].numel())


def _linear(m: Any, name: str, x: Tensor, g: Tensor) -> Tensor:
    g = g.reshape(len(g), -1, m.out_features)
    return g.sum(1) if name == "bias" else g.transpose(1, 2) @ x.reshape(len(x), -1, m.in_features)


def _conv(m: Any, name: str, x: Tensor, g: Tensor) -> Tensor:
    if name == "bias":
        return g.flatten(2).sum(2)
    g_by_group = g.reshape(len(g), m.groups, m.out_channels // m.groups, -1)
    return (g_by_group @ _windows(m, x, g.shape[2:]).transpose(2, 3)).reshape(len(g), *m.weight.shape)


def _windows(m: Any, x: Tensor, places: torch.Size) -> Tensor:
    """What each output looks at, [B, groups, inputs of a group x kernel, places]: ``F.unfold`` in any dimension, with torch's own copy,
    which took a third of its time."""
    if any(m._reversed_padding_repeated_twice):
        x = F.pad(x, m._reversed_padding_repeated_twice, "constant" if m.padding_mode == "zeros" else m.padding_mode)
    x = x.contiguous()
    steps = x.stride()[2:]
    strides = [s * d for s, d in zip(steps, m.dilation, strict=True)] + [s * d for s, d in zip(steps, m.stride, strict=True)]
    seen = x.as_strided((*x.shape[:2], *m.kernel_size, *places), (*x.stride()[:2], *strides), x.storage_offset())
    return seen.reshape(len(x), m.groups, m.in_channels // m.groups * math.prod(m.kernel_size), -1)


def _of_channels(normalised: Callable[[Any, Tensor], Tensor]) -> Callable[..., Tensor]:
    """Norms with a weight and a bias for each channel, [B, C, ...]."""

    def gradient(m: Any, name: str, x: Tensor, g: Tensor) -> Tensor:
        return (g if name == "bias" else g * normalised(m, x)).reshape(*g.shape[:2], -1).sum(2)

    return gradient


def _batch_norm(m: Any, x: Tensor) -> Tensor:
    shape = (1, -1, *[1] * (x.dim() - 2))
    mean, var = m.running_mean.to(x.dtype), m.running_var.to(x.dtype)
    return (x - mean.view(shape)) * (var + m.eps).rsqrt().view(shape)


def _group_norm(m: Any, x: Tensor) -> Tensor:
    return F.group_norm(x, m.num_groups, eps=m.eps)


def _instance_norm(m: Any, x: Tensor) -> Tensor:
    return F.instance_norm(x, eps=m.eps)


def _last_dims(m: Any, name: str, x: Tensor, g: Tensor) -> Tensor:
    """Norms with a weight for each number of the last dimensions."""
    if name == "weight":
        rms = isinstance(m, nn.RMSNorm)
        g = g * (F.rms_norm(x, m.normalized_shape, eps=m.eps) if rms else F.layer_norm(x, m.normalized_shape, eps=m.eps))
    return g.reshape(len(g), -1, *m.normalized_shape).sum(1)


def _rows(m: Any, ids: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Ids [B, T] and the gradient of each one's row [B, T, D]: zero for padding."""
    ids = ids.reshape(len(ids), -1)
    counted = torch.ones_like(ids, dtype=torch.bool) if m.padding_idx is None else ids != m.padding_idx
    if isinstance(m, nn.EmbeddingBag):
        g = g[:, None] / counted.sum(1).clamp_min(1)[:, None, None] if m.mode == "mean" else g[:, None]
    else:
        g = g.reshape(*ids.shape, -1)
    return ids, g * counted[..., None]


def _embedding(m: Any, name: str, x: Tensor, g: Tensor) -> Tensor:
    ids, g = _rows(m, x, g)
    at = ids + m.num_embeddings * torch.arange(len(ids), device=ids.device)[:, None]
    total = g.new_zeros(len(ids) * m.num_embeddings, m.embedding_dim)
    return total.index_add_(0, at.flatten(), g.flatten(0, 1)).view(len(ids), m.num_embeddings, m.embedding_dim)


def _add_squared_rows_(total: Tensor, m: Any, x: Tensor, g: Tensor) -> None:
    """As the squares of :func:`_embedding`, of the rows that samples use: an id that comes twice in a sample is added up first."""
    ids, g = _rows(m, x, g)
    pairs = ids + m.num_embeddings * torch.arange(len(ids), device=ids.device)[:, None]
    used, place = pairs.flatten().unique(return_inverse=True)
    once = g.new_zeros(len(used), m.embedding_dim).index_add_(0, place, g.flatten(0, 1))
    total.index_add_(0, used % m.num_embeddings, once.square_())


INSTANCE = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
GRADIENTS: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.Linear: _linear,
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), _conv),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), _of_channels(_batch_norm)),
    **dict.fromkeys(INSTANCE, _of_channels(_instance_norm)),
    nn.GroupNorm: _of_channels(_group_norm),
    **dict.fromkeys((nn.LayerNorm, nn.RMSNorm), _last_dims),
    **dict.fromkeys((nn.Embedding, nn.EmbeddingBag), _embedding),
}
