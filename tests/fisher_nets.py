"""Small nets for the tests of the diagonal Fisher: every layer that has a formula, and what only a loop over samples can do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

K = 3


class Then(nn.Module):
    """A body, the mean over what isn't [B, C], and a head."""

    def __init__(self, body: nn.Module, width: int, last: bool = False) -> None:
        super().__init__()
        self.body, self.head, self.last = body, nn.Linear(width, K), last

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.body(x))
        if h.dim() > 2:
            h = h.flatten(1, -2).mean(1) if self.last else h.flatten(2).mean(2)
        return self.head(h)


class Positions(nn.Module):
    """A bag of ids whose padding is left out, beside an embedding of the same ids."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(7, 4, mode=mode, padding_idx=2)
        self.each = nn.Embedding(7, 4, padding_idx=0)
        self.head = nn.Linear(4, K)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.bag(x)) * self.each(x).tanh().sum(1))


def conv2(**settings: Any) -> Callable[[], nn.Module]:
    return lambda: Then(nn.Conv2d(4, 6, **{"kernel_size": 3} | settings), 6)


def moved(norm: nn.Module) -> nn.Module:
    """A norm whose weights and running statistics are not those it begins with."""
    for tensor in (*norm.parameters(), *norm.buffers()):
        if tensor.is_floating_point():
            tensor.data.uniform_(0.5, 1.5)
    return norm


def ids(*shape: int) -> Tensor:
    return torch.randint(0, 7, shape)


def x_of(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(shape, dtype=torch.float64)


PICTURES = x_of(5, 4, 7, 9)
BY_LAYERS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "linear": (lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, K, bias=False)), x_of(6, 4)),
    "linear, one sample": (lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, K)), x_of(1, 4)),
    "linear, sequence": (lambda: Then(nn.Linear(4, 5), 5, last=True), x_of(6, 7, 4)),
    "linear, sequence as long as the batch": (lambda: Then(nn.Linear(4, 5), 5, last=True), x_of(6, 6, 4)),
    "linear, grid": (lambda: Then(nn.Linear(4, 5), 5, last=True), x_of(3, 2, 5, 4)),
    "conv": (conv2(), PICTURES),
    "conv, one sample": (conv2(), x_of(1, 4, 5, 5)),
    "conv 1x1": (conv2(kernel_size=1), PICTURES),
    "conv, stride": (conv2(stride=(2, 3), padding=(2, 1)), PICTURES),
    "conv, dilation": (conv2(dilation=(2, 3), padding=2), PICTURES),
    "conv, groups": (conv2(groups=2, padding=1, kernel_size=(3, 2)), PICTURES),
    "conv, depthwise": (lambda: Then(nn.Conv2d(4, 8, 3, groups=4, stride=2, bias=False), 8), PICTURES),
    "conv, same": (conv2(padding="same", kernel_size=(2, 4), dilation=(1, 2)), PICTURES),
    "conv, valid": (conv2(padding="valid"), PICTURES),
    "conv, reflect": (conv2(padding=(2, 1), padding_mode="reflect"), PICTURES),
    "conv, circular": (conv2(padding=(1, 2), padding_mode="circular", stride=2), PICTURES),
    "conv, replicate": (conv2(padding="same", padding_mode="replicate"), PICTURES),
    "conv 1d": (lambda: Then(nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2), 6), x_of(5, 4, 9)),
    "conv 3d": (lambda: Then(nn.Conv3d(2, 3, 2, stride=(1, 2, 1), dilation=(2, 1, 1)), 3), x_of(4, 2, 5, 4, 3)),
    "channels last": (conv2(padding=1), lambda: PICTURES().contiguous(memory_format=torch.channels_last)),
    "batch norm": (lambda: Then(nn.Sequential(nn.Conv2d(4, 6, 3), moved(nn.BatchNorm2d(6))), 6), PICTURES),
    "batch norm 1d": (lambda: Then(nn.Sequential(nn.Linear(4, 6), moved(nn.BatchNorm1d(6))), 6), x_of(5, 4)),
    "group norm": (lambda: Then(nn.Sequential(nn.Conv2d(4, 6, 3), moved(nn.GroupNorm(2, 6))), 6), PICTURES),
    "instance norm": (lambda: Then(moved(nn.InstanceNorm2d(4, affine=True)), 4), PICTURES),
    "layer norm": (lambda: Then(nn.Sequential(nn.Linear(4, 6), moved(nn.LayerNorm(6))), 6, last=True), x_of(5, 7, 4)),
    "layer norm, two dimensions": (lambda: Then(moved(nn.LayerNorm((7, 9))), 4), PICTURES),
    "rms norm": (lambda: Then(moved(nn.RMSNorm(4)), 4, last=True), x_of(5, 7, 4)),
    "embedding": (lambda: nn.Sequential(nn.Embedding(7, 4), nn.Tanh(), nn.Linear(4, K)), lambda: ids(9)),
    "embedding, sparse": (lambda: Then(nn.Embedding(7, 4, sparse=True), 4, last=True), lambda: ids(5, 8)),
    "bags, sum": (lambda: Positions("sum"), lambda: ids(6, 9)),
    "bags, mean": (lambda: Positions("mean"), lambda: ids(6, 9)),
}


class Twice(nn.Module):
    """A layer that is called twice in one pass."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again, self.head = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, K)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.again(torch.tanh(self.again(self.first(x))))))


class Tied(nn.Module):
    """An embedding whose weight is the head's too."""

    def __init__(self) -> None:
        super().__init__()
        self.each, self.head = nn.Embedding(7, 4), nn.Linear(4, 7)
        self.head.weight = self.each.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.each(x).tanh().sum(1))


class Uncalled(nn.Module):
    """A layer that isn't called, one whose answer isn't used, and one that is frozen in part."""

    def __init__(self) -> None:
        super().__init__()
        self.idle, self.unused, self.first, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 5), nn.Linear(5, K)
        self.first.weight.requires_grad_(False)
        self.head.bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        self.unused(x)
        return self.head(torch.tanh(self.first(x)))


BY_LAYERS |= {"called twice": (Twice, x_of(5, 4)), "tied": (Tied, lambda: ids(6, 4)), "uncalled and frozen": (Uncalled, x_of(5, 4))}


class Plain(nn.Module):
    """What a forward pass makes of two layers is given as a function."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], **further: Any) -> None:
        super().__init__()
        self.one, self.two, self.head, self._forward = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, K), forward
        for name, value in further.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self._forward(self, x)))


class Doubled(nn.Linear):
    """A linear layer by its class, and something else."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(2 * x)


class Reversed(torch.autograd.Function):
    """A function of one's own, with a weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return x @ w

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        x, w = ctx.saved_tensors
        return g @ w.T, x.T @ g


def checkpointed(net: Any, x: Tensor) -> Tensor:
    """The layer runs again in the backward pass."""
    return torch.utils.checkpoint.checkpoint(net.one, x, use_reentrant=False)


def without_gradients(net: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        return net.one(x) + x


def flattened(net: Any, x: Tensor) -> Tensor:
    return net.one(x.flatten(0, 1)).view(*x.shape).mean(1)


ONE_BY_ONE: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], str]] = {
    "a class of its own": (lambda: Plain(lambda net, x: net.own(x), own=Doubled(4, 4)), x_of(5, 4), r"own \(Doubled\) has no formula"),
    "own parameter": (lambda: Plain(lambda net, x: x * net.scale, scale=nn.Parameter(torch.ones(4))), x_of(5, 4), "the model"),
    "attention": (
        lambda: Plain(lambda net, x: net.at(x, x, x)[0].mean(1), at=nn.MultiheadAttention(4, 2, batch_first=True)),
        x_of(4, 5, 4),
        "MultiheadAttention",
    ),
    "recurrent": (lambda: Plain(lambda net, x: net.rnn(x)[0][:, -1], rnn=nn.GRU(4, 4, batch_first=True)), x_of(4, 5, 4), "GRU"),
    "weight norm": (
        lambda: Plain(lambda net, x: net.own(x), own=nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))),
        x_of(5, 4),
        "has no formula",
    ),
    "functional beside the call": (lambda: Plain(lambda net, x: net.one(x) + F.linear(x, net.one.weight)), x_of(5, 4), "one.weight"),
    "functional alone": (lambda: Plain(lambda net, x: F.linear(x, net.two.weight)), x_of(5, 4), "two.weight"),
    "forward called directly": (lambda: Plain(lambda net, x: net.one.forward(x)), x_of(5, 4), "one.weight"),
    "function of its own": (lambda: Plain(lambda net, x: Reversed.apply(x, net.one.weight)), x_of(5, 4), "one.weight"),
    "sequence first": (lambda: Plain(lambda net, x: net.one(x.transpose(0, 1)).mean(0)), x_of(5, 7, 4), r"is given \(7, 2, 4\) for 2"),
    "sequence first, as long as the batch": (lambda: Plain(lambda net, x: net.one(x.transpose(0, 1)).mean(0)), x_of(5, 5, 4), "is given"),
    "sequence first, two of two": (lambda: Plain(lambda net, x: net.one(x.transpose(0, 1)).mean(0)), x_of(2, 2, 4), "mixes samples"),
    "positions as rows": (lambda: Plain(flattened), x_of(5, 3, 4), "is given"),
    "positions as rows, one sample": (lambda: Plain(flattened), x_of(1, 3, 4), "is given"),
    "without gradients": (lambda: Plain(without_gradients), x_of(5, 4), "without gradients"),
    "normalised by the batch": (
        lambda: Plain(lambda net, x: net.norm(x).abs().mean(2), norm=nn.BatchNorm1d(4, track_running_stats=False)),
        x_of(5, 4, 6),
        "normalises by the batch",
    ),
    "mixes samples": (lambda: Plain(lambda net, x: net.one(x) - net.one(x).mean(0)), x_of(5, 4), "mixes samples"),
    "further arguments": (
        lambda: Plain(lambda net, x: net.bag(x.long().abs() % 7, per_sample_weights=x), bag=nn.EmbeddingBag(7, 4, mode="sum")),
        x_of(5, 4),
        "more than its inputs",
    ),
    "inputs by name": (lambda: Plain(lambda net, x: net.one(input=x)), x_of(5, 4), "more than its inputs"),
}


BY_LAYERS["checkpoint"] = (lambda: Plain(checkpointed), x_of(5, 4))


def made(net: Callable[[], nn.Module], inputs: Callable[[], Tensor]) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(3)
    model, x = net().double(), inputs()
    return model, x, torch.randint(0, K, (len(x),))
