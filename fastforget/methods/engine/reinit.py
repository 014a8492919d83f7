"""Weights drawn anew, or turned: what the first places of the NeurIPS'23 unlearning challenge begin with.

All are drawn on the CPU, so that a seed gives the same weights on every device.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def kaiming_(weight: Tensor, mask: Tensor, generator: torch.Generator) -> None:
    """Where the mask is on: N(0, 2 / fan_out), He's initialisation for ReLU by the number of outputs."""
    drawn = torch.empty(weight.shape, dtype=weight.dtype)
    nn.init.kaiming_normal_(drawn, mode="fan_out", nonlinearity="relu", generator=generator)
    with torch.no_grad():
        weight.copy_(torch.where(mask, drawn.to(weight.device), weight))


def default_bias_(layer: nn.Module, generator: torch.Generator) -> None:
    """The layer's bias as torch makes it for convolutions and linear layers: U(-b, b), b = 1 / sqrt(inputs of one output)."""
    weight, bias = layer.get_parameter("weight"), layer.get_parameter("bias")
    bound = weight[0].numel() ** -0.5
    with torch.no_grad():
        bias.copy_(torch.empty(bias.shape, dtype=bias.dtype).uniform_(-bound, bound, generator=generator))


def transpose_kernels_(model: nn.Module) -> int:
    """Swaps height and width of every square 2-d convolution kernel larger than 1x1 that may be trained; returns how many (one that two
    layers share counts once).
    """
    kernels = {}
    for module in model.modules():
        kernel = module._parameters.get("weight") if isinstance(module, nn.Conv2d) else None
        if kernel is not None and kernel.requires_grad and kernel.shape[2] == kernel.shape[3] > 1:
            kernels[id(kernel)] = kernel
    with torch.no_grad():
        for kernel in kernels.values():
            kernel.copy_(kernel.transpose(2, 3).clone())
    return len(kernels)
