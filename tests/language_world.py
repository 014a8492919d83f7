"""Small causal models in float64, sequences to forget, and plain loops' data in the engine's order."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import fastforget as ff
from fastforget.methods.engine.passes import EPOCHS
from fastforget.methods.language.base import RETAIN_ORDER
from fastforget.methods.task import derived_seed

WORDS, LENGTH, SEED, PAD = 11, 7, 5, 0
Sequence = dict[str, Tensor]


class Recurrent(nn.Module):
    """Embedding, GRU, head: the head's product is found. ``capped`` logits (tanh) aren't a product: the logits are read."""

    def __init__(self, capped: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, 6)
        self.layers = nn.ModuleList(nn.GRU(size, 8, batch_first=True) for size in (6, 8, 8, 8))
        self.head = nn.Linear(8, WORDS)
        self.capped = capped

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        x = self.embedding(input_ids)
        for layer in self.layers:
            x = layer(x)[0]
        logits = self.head(x)
        return 3 * torch.tanh(logits / 3) if self.capped else logits


class Bigram(nn.Module):
    """The next word by the last one: logits are a row of a table, so a step can be worked out by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(WORDS, WORDS)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.table(input_ids)


def bigram() -> nn.Module:
    torch.manual_seed(3)
    return Bigram().double()


def trained(net: nn.Module, steps: int = 60) -> nn.Module:
    """Fitted to what is to be forgotten and kept."""
    known = torch.cat([texts(name)[0] for name in ("forget", "retain")])
    optimizer = torch.optim.Adam(net.parameters(), 0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(known)[:, :-1].flatten(0, 1), known[:, 1:].flatten()).backward()
        optimizer.step()
    optimizer.zero_grad()
    return net.eval()


def recurrent(capped: bool = False) -> nn.Module:
    return copy.deepcopy(_recurrent(capped))


@functools.cache
def _recurrent(capped: bool) -> nn.Module:
    torch.manual_seed(1)
    return trained(Recurrent(capped).double())


def texts(name: str, n: int = 12) -> tuple[Tensor, Tensor]:
    """Words, and as labels the same but for a first part that isn't scored."""
    generator = torch.Generator().manual_seed(("forget", "retain", "nonmember").index(name))
    ids = torch.randint(1, WORDS, (n, LENGTH), generator=generator)
    labels = ids.clone()
    labels[:, :2] = -100
    labels[::3, 4] = -100
    return ids, labels


def request(*names: str) -> dict[str, Any]:
    return {name: texts(name) for name in names or ("forget", "retain", "nonmember")}


def ragged(name: str, batch_size: int = 4) -> DataLoader[Any]:
    """The same texts cut to different lengths, as dicts that a loader pads."""
    pairs = zip(*texts(name), strict=True)
    samples = [{"input_ids": ids[: 4 + i % 4], "labels": labels[: 4 + i % 4]} for i, (ids, labels) in enumerate(pairs)]
    return DataLoader(samples, batch_size=batch_size, collate_fn=padded)  # type: ignore[arg-type]


def padded(samples: list[Sequence]) -> Sequence:
    """A batch as a collator of Hugging Face's makes it."""
    longest = max(len(s["input_ids"]) for s in samples)

    def filled(name: str, value: int) -> Tensor:
        return torch.stack([nn.functional.pad(s[name], (0, longest - len(s[name])), value=value) for s in samples])

    ids = filled("input_ids", PAD)
    return {"input_ids": ids, "attention_mask": (ids != PAD).long(), "labels": filled("labels", -100)}


def run(net: nn.Module, method: Any, sets: dict[str, Any], **options: Any) -> ff.UnlearnResult:
    """Our engine's run."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ff.methods.NotForgottenWarning)
        return ff.unlearn(net, method, seed=SEED, progress=False, **sets, **options)


def log_probs(net: nn.Module, ids: Tensor, labels: Tensor) -> Tensor:
    """[N, T - 1], 0 where a token isn't scored: from one table of log-probabilities."""
    table = net(ids).log_softmax(2)[:, :-1]
    wanted = labels[:, 1:]
    return torch.where(wanted == -100, 0.0, table.gather(2, wanted.clamp_min(0)[..., None])[..., 0])


def counts(labels: Tensor) -> Tensor:
    return (labels[:, 1:] != -100).sum(1)


def nll(net: nn.Module, ids: Tensor, labels: Tensor, mean: str = "tokens") -> Tensor:
    per = log_probs(net, ids, labels).sum(1)
    return -(per / counts(labels)).mean() if mean == "sequences" else -per.sum() / counts(labels).sum()


def kl(net: nn.Module, teacher: nn.Module, ids: Tensor, labels: Tensor) -> Tensor:
    """Mean over scored tokens of KL(teacher || net)."""
    with torch.no_grad():
        p = teacher(ids).log_softmax(2)[:, :-1]
    q = net(ids).log_softmax(2)[:, :-1]
    return ((p.exp() * (p - q)).sum(2))[labels[:, 1:] != -100].mean()


def order(n: int, purpose: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(derived_seed(SEED, purpose)))


def steps(size: int, epochs: int) -> Iterator[tuple[Tensor, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]]:
    """Rows and data of each forget batch, and the retain batch beside it."""
    (f, fy), (r, ry) = texts("forget"), texts("retain")
    kept = cycled(len(r), size)
    for epoch in range(epochs):
        for rows in order(len(f), EPOCHS + 1_000 * epoch).split(size):
            at = next(kept)
            yield rows, (f[rows], fy[rows]), (r[at], ry[at])


def cycled(n: int, size: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(derived_seed(SEED, RETAIN_ORDER))
    while True:
        yield from torch.randperm(n, generator=generator).split(size)


def plain_loop(net: nn.Module, loss: Callable[..., Tensor], size: int, epochs: int, lr: float, wd: float) -> nn.Module:
    """``loss(net, rows, forget, retain)`` by torch.optim.AdamW, on the net itself."""
    optimizer = torch.optim.AdamW(net.parameters(), lr, weight_decay=wd)
    for rows, forget, retain in steps(size, epochs):
        optimizer.zero_grad()
        loss(net, rows, forget, retain).backward()
        optimizer.step()
    return net


def agree(ours: nn.Module, plain: nn.Module, start: nn.Module) -> None:
    """Both went the same way, to rounding; and there was a way to go."""
    for (name, a), b in zip(ours.state_dict().items(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")
    assert max(float((a - s).detach().abs().max()) for a, s in zip(plain.parameters(), start.parameters(), strict=True)) > 1e-4


def logits_gradient(net: nn.Module, ids: Tensor, labels: Tensor) -> list[Tensor]:
    """Of the bigram table: for each sequence d log p(y) / d table, summed over its scored tokens: rows of words get e_next - p."""
    grads = []
    with torch.no_grad():
        p = net.table.weight.softmax(1)
        for words, wanted in zip(ids, labels, strict=True):
            g = torch.zeros_like(p)
            for t in range(1, len(words)):
                if wanted[t] != -100:
                    g[words[t - 1]] += torch.eye(WORDS, dtype=p.dtype)[wanted[t]] - p[words[t - 1]]
            grads.append(g)
    return grads
