"""A plain training loop for the demonstration's small networks."""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn

from .._progress import Progress
from .._progress import progress as progress_bar


def train(
    model: nn.Module,
    data: tuple[Tensor, Tensor],
    *,
    epochs: int,
    seed: int,
    label: str,
    batch_size: int = 64,
    lr: float = 2e-3,
    progress: bool = True,
) -> float:
    """Trains in place with Adam and a rate that rises and falls once; returns the seconds it took."""
    inputs, labels = data
    device = next(model.parameters()).device
    inputs, labels = inputs.to(device), labels.to(device)
    steps = epochs * -(-len(labels) // batch_size)
    optimiser = torch.optim.Adam(model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=lr, total_steps=steps)
    order = torch.Generator().manual_seed(seed)
    began = time.perf_counter()
    model.train()
    bar: Progress[int] = progress_bar(steps, label, progress)
    with bar:
        for epoch in range(epochs):
            for batch in torch.randperm(len(labels), generator=order).to(device).split(batch_size):
                optimiser.zero_grad(set_to_none=True)
                loss = nn.functional.cross_entropy(model(inputs[batch]), labels[batch])
                loss.backward()
                optimiser.step()
                schedule.step()
                bar.step(1, f"epoch {epoch + 1}/{epochs}")
    model.eval()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began
