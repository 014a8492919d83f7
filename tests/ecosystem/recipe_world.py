"""What the recipes work on: 8x8 digits as images, and made-up texts; and training as people write it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

CLASSES, FORGOTTEN = 4, 2
WORDS, PAD = 40, 0


def digits(side: int = 8, channels: int = 1) -> dict[str, tuple[Tensor, Tensor]]:
    """The digits 0 to 3 as ``train`` and ``test``, and of ``train`` the parts ``forget`` (class 2) and ``retain``."""
    images, labels = load_digits(return_X_y=True, n_class=CLASSES)
    x = torch.from_numpy(images.astype(np.float32)).reshape(-1, 1, 8, 8) / 8 - 1
    x = F.interpolate(x, size=side, mode="nearest").expand(-1, channels, -1, -1).contiguous()
    return _parts(x, torch.from_numpy(labels).long())


def texts() -> dict[str, dict[str, Any]]:
    """Made-up texts of four classes as samples ``{"input_ids", "labels"}``: each class has words of its own between common ones."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(1400) % CLASSES
    samples = []
    for label in labels.tolist():
        length = int(torch.randint(6, 13, (), generator=generator))
        own = torch.randint(1 + 5 * label, 6 + 5 * label, (length,), generator=generator)
        common = torch.randint(1 + 5 * CLASSES, WORDS, (length,), generator=generator)
        ids = torch.where(torch.rand(length, generator=generator) < 0.5, own, common)
        samples.append({"input_ids": ids.tolist(), "labels": label})
    train, test = samples[:1000], samples[1000:]
    return {
        "train": train,
        "test": test,
        "forget": [s for s in train if s["labels"] == FORGOTTEN],
        "retain": [s for s in train if s["labels"] != FORGOTTEN],
    }  # type: ignore[return-value]


def padded(samples: list[dict[str, Any]]) -> dict[str, Tensor]:
    """A batch as a tokeniser's collator makes it: padded to its longest text, with a mask."""
    longest = max(len(s["input_ids"]) for s in samples)
    ids = torch.tensor([s["input_ids"] + [PAD] * (longest - len(s["input_ids"])) for s in samples])
    return {"input_ids": ids, "attention_mask": (ids != PAD).long(), "labels": torch.tensor([s["labels"] for s in samples])}


def _parts(x: Tensor, y: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    train, test = order[200:], order[:200]
    gone = y[train] == FORGOTTEN
    return {name: (x[at], y[at]) for name, at in {"train": train, "test": test, "forget": train[gone], "retain": train[~gone]}.items()}


def loaders(sets: dict[str, Any], batch_size: int = 64) -> dict[str, DataLoader[Any]]:
    """A loader for each set: of pairs of tensors, or of texts."""
    made: dict[str, DataLoader[Any]] = {}
    for name, data in sets.items():
        text = isinstance(data, list)
        made[name] = DataLoader(
            data if text else TensorDataset(*data),  # type: ignore[arg-type]
            batch_size=batch_size,
            shuffle=name in ("train", "retain"),
            collate_fn=padded if text else None,
        )
    return made


def fit(model: nn.Module, batches: DataLoader[Any], epochs: int = 4, lr: float = 2e-3) -> nn.Module:
    """Adam on cross-entropy, in train mode; the model comes back in eval mode."""
    torch.manual_seed(0)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr)
    model.train()
    for _ in range(epochs):
        for batch in batches:
            loss = F.cross_entropy(logits(model, batch), batch["labels"] if isinstance(batch, dict) else batch[1])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


def logits(model: nn.Module, batch: Any) -> Tensor:
    """What a model answers, by its own convention: by name for texts."""
    if not isinstance(batch, dict):
        output = model(batch[0])
    else:
        output = model(**{name: value for name, value in batch.items() if name != "labels"})
    return getattr(output, "logits", output)


@torch.no_grad()
def right(model: nn.Module, batches: DataLoader[Any], only: int | None = None) -> float:
    """Share of right answers (on the samples of one class), counted here and not by the package."""
    model.eval()
    hits = total = 0
    for batch in batches:
        labels = batch["labels"] if isinstance(batch, dict) else batch[1]
        counted = labels == labels if only is None else labels == only
        hits += int(((logits(model, batch).argmax(1) == labels) & counted).sum())
        total += int(counted.sum())
    return hits / total
