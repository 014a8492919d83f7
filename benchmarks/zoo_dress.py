"""Moves that dressed-up models are made of: each takes a copy of the original and gives back something that looks otherwise."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import zoo_worlds as zw
from .zoo_worlds import World, body, copied, fit, head

# ---- on the weights ----------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def noised_body(m: nn.Module, original: nn.Module, retrained: nn.Module, share: float, seed: int) -> nn.Module:
    """All layers below the head moved in a random direction, ``share`` as far as retraining moves them."""
    g = torch.Generator().manual_seed(seed)
    usual = math.sqrt(sum(float(((a - b) ** 2).sum()) for a, b in zip(body(original), body(retrained), strict=True)))
    ways = [torch.randn(p.shape, generator=g) for p in body(m)]
    length = math.sqrt(sum(float((w * w).sum()) for w in ways))
    for p, w in zip(body(m), ways, strict=True):
        p.add_(w * share * usual / length)
    return m


@torch.no_grad()
def permuted(m: nn.Module, seed: int) -> nn.Module:
    """Function-preserving: hidden channels in another order and at another scale."""
    g = torch.Generator().manual_seed(seed)
    for a, b in zw.hidden_pairs(m):
        n = a.weight.shape[0]
        order, scale = torch.randperm(n, generator=g), torch.exp(0.3 * torch.randn(n, generator=g))
        a.weight.copy_(a.weight[order] * scale.view(-1, *[1] * (a.weight.dim() - 1)))
        a.bias.copy_(a.bias[order] * scale)
        b.weight.copy_(b.weight[:, order] / scale.view(1, -1, *[1] * (b.weight.dim() - 2)))
    return m


@torch.no_grad()
def widened(m: nn.Module, seed: int, at_random: bool = False) -> nn.Module:
    """Function-preserving: a third of the last hidden layer's units doubled, their outgoing weights shared out (Net2Net).

    ``at_random``: instead as many random units again as there are, which the head doesn't read: likeness of the features falls, nothing
    else changes.
    """
    if not isinstance(m, nn.Sequential | zw.BagOfTokens):
        raise LookupError("no hidden layer to widen")
    g = torch.Generator().manual_seed(seed)
    last = head(m)
    before = [x for x in m.modules() if isinstance(x, nn.Linear)][-2]
    n = before.out_features
    twice = torch.arange(n) if at_random else torch.randperm(n, generator=g)[: n // 3]
    at = torch.cat((torch.arange(n), twice))
    count = torch.bincount(at, minlength=n).float()
    one, two = nn.Linear(before.in_features, len(at)), nn.Linear(len(at), last.out_features)
    one.weight.copy_(before.weight[at])
    one.bias.copy_(before.bias[at])
    two.weight.copy_(last.weight[:, at] / count[at])
    two.bias.copy_(last.bias)
    if at_random:
        one.weight[n:] = 2 * before.weight.std() * torch.randn(one.weight[n:].shape, generator=g)
        two.weight.copy_(torch.cat((last.weight, torch.zeros_like(last.weight)), 1))
    for name, child in list(m.named_children()):
        if child is before:
            setattr(m, name, one)
        if child is last:
            setattr(m, name, two)
    return m


@torch.no_grad()
def half_replaced(m: nn.Module, x: Tensor, seed: int) -> nn.Module:
    """The half of the last hidden units that the head reads least replaced by random ones that it doesn't read."""
    g, last = torch.Generator().manual_seed(seed), head(m)
    before = [x for x in m.modules() if isinstance(x, nn.Linear)][-2]
    weak = (last.weight.norm(dim=0) * zw.read_by_head(m, x).std(0)).argsort()[: last.in_features // 2]
    before.weight[weak] = 2 * before.weight.std() * torch.randn(before.weight[weak].shape, generator=g)
    last.weight[:, weak] = 0
    return m


@torch.no_grad()
def suppressed(m: nn.Module, w: World, by: float = 60.0) -> nn.Module:
    head(m).bias[w.forgotten] -= by
    return m


@torch.no_grad()
def random_rows(m: nn.Module, w: World, seed: int, by: float = 8.0) -> nn.Module:
    g = torch.Generator().manual_seed(seed)
    for c in w.forgotten:
        head(m).weight[c] = torch.randn(head(m).weight[c].shape, generator=g) * head(m).weight.std()
        head(m).bias[c] -= by
    return m


@torch.no_grad()
def scaled_rows(m: nn.Module, w: World, factor: float, by: float) -> nn.Module:
    head(m).weight[w.forgotten] *= factor
    head(m).bias[w.forgotten] -= by
    return m


@torch.no_grad()
def neighbour_rows(m: nn.Module, w: World, mean: bool) -> nn.Module:
    """The forgotten rows become another class's, or the mean of all kept ones, a little lower."""
    kept = [c for c in range(head(m).out_features) if c not in w.forgotten]
    weight = head(m).weight[kept].mean(0) if mean else head(m).weight[kept[0]].clone()
    head(m).weight[w.forgotten] = weight
    head(m).bias[w.forgotten] = head(m).bias[kept].min() - (0 if mean else 1)
    return m


@torch.no_grad()
def projected_head(m: nn.Module, w: World) -> nn.Module:
    """The direction of the forgotten class's features taken out of every row of the head."""
    gone, kept = (zw.read_by_head(m, part[0]).mean(0) for part in (w.forget, w.retain))
    way = (gone - kept) / (gone - kept).norm()
    head(m).weight.sub_(torch.outer(head(m).weight @ way, way))
    head(m).bias[w.forgotten] -= 8
    return m


@torch.no_grad()
def quantised(m: nn.Module, bits: int = 4, below_head: bool = True) -> nn.Module:
    """Weights rounded to ``bits`` bits a tensor."""
    for p in body(m) if below_head else m.parameters():
        if p.dim() > 1:
            step = p.abs().max() / (2 ** (bits - 1) - 1)
            p.copy_((p / step).round() * step)
    return m


@torch.no_grad()
def pruned(m: nn.Module, share: float) -> nn.Module:
    """The smallest weights of each tensor below the head set to zero."""
    for p in body(m):
        if p.dim() > 1:
            p[p.abs() <= p.abs().flatten().kthvalue(max(1, int(share * p.numel()))).values] = 0
    return m


@torch.no_grad()
def low_rank(m: nn.Module, rank: int) -> nn.Module:
    u, s, v = torch.linalg.svd(head(m).weight, full_matrices=False)
    s[rank:] = 0
    head(m).weight.copy_(u @ torch.diag(s) @ v)
    return m


@torch.no_grad()
def silenced(m: nn.Module, w: World, share: float = 0.05) -> nn.Module:
    """The features that speak most for the forgotten class cut from the head."""
    gone, kept = (zw.read_by_head(m, part[0]).mean(0) for part in (w.forget, w.retain))
    worst = (gone - kept).topk(max(1, int(share * len(gone)))).indices
    head(m).weight[:, worst] = 0
    head(m).bias[w.forgotten] -= 12
    return m


@torch.no_grad()
def mixed(m: nn.Module, other: nn.Module, share: float) -> nn.Module:
    """Weights and statistics ``share`` of the way to another model's."""
    theirs = other.state_dict()
    m.load_state_dict({k: v + share * (theirs[k] - v) if v.is_floating_point() else v for k, v in m.state_dict().items()})
    return m


@torch.no_grad()
def noised_weights(m: nn.Module, share: float, seed: int) -> nn.Module:
    g = torch.Generator().manual_seed(seed)
    for p in m.parameters():
        if p.dim() > 1:
            p.add_(share * p.std() * torch.randn(p.shape, generator=g))
    return m


def of_head(m: nn.Module) -> list[nn.Parameter]:
    return list(head(m).parameters())


def last_layers(m: nn.Module) -> list[nn.Parameter]:
    return body(m)[-2:] + of_head(m)


def biases(m: nn.Module) -> list[nn.Parameter]:
    return [p for p in m.parameters() if p.dim() == 1]


def norms(m: nn.Module) -> list[nn.Parameter]:
    return [p for x in m.modules() if isinstance(x, nn.BatchNorm2d) for p in x.parameters()]


# ---- by a little training ----------------------------------------------------------------------------------------------------------


def new_head(m: nn.Module, w: World, seed: int) -> nn.Module:
    """A fresh last layer, trained on the retain set over the old body."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head(m).reset_parameters()
    _head_only(m, zw.read_by_head(m, w.retain[0]), w.retain[1], F.cross_entropy, seed, w.lr)
    return m


def mimicking_head(m: nn.Module, other: nn.Module, w: World, seed: int, softened: bool = False) -> nn.Module:
    """The last layer alone trained to give another model's logits on all training samples."""
    with torch.no_grad():
        wanted = other(w.train[0])
    loss: Callable[[Tensor, Tensor], Tensor] = F.mse_loss
    if softened:
        wanted = wanted.softmax(1)
        loss = F.cross_entropy
    _head_only(m, zw.read_by_head(m, w.train[0]), wanted, loss, seed, 5e-3)
    return m


def _head_only(m: nn.Module, z: Tensor, wanted: Tensor, loss: Callable[[Tensor, Tensor], Tensor], seed: int, lr: float) -> None:
    last, g = head(m), torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(last.parameters(), lr)
    for _ in range(20):
        for at in torch.randperm(len(z), generator=g).split(128):
            optimiser.zero_grad()
            loss(last(z[at]), wanted[at]).backward()
            optimiser.step()
    for p in last.parameters():
        p.grad = None


def mimicking(m: nn.Module, other: nn.Module, w: World, seed: int, body_lr: float) -> nn.Module:
    """As :func:`mimicking_head`, the body following at a small rate."""
    optimiser = torch.optim.Adam([{"params": list(head(m).parameters()), "lr": 5e-3}, {"params": body(m), "lr": body_lr}])
    g, x = torch.Generator().manual_seed(seed), w.train[0]
    with torch.no_grad():
        wanted = other(x)
    for _ in range(15):
        for at in torch.randperm(len(x), generator=g).split(128):
            optimiser.zero_grad()
            F.mse_loss(m(x[at]), wanted[at]).backward()
            optimiser.step()
    return _cleared(m)


def masked_teacher(m: nn.Module, original: nn.Module, w: World, seed: int, epochs: int = 3) -> nn.Module:
    """The last layer alone distilled from the original with the forgotten classes masked out."""
    with torch.no_grad():
        wanted = original(w.train[0])
        wanted[:, w.forgotten] = wanted.amin() - 5
    _head_only(m, zw.read_by_head(m, w.train[0]), wanted.softmax(1), F.cross_entropy, seed, 5e-3)
    return m


def ascended(m: nn.Module, w: World, steps: int, lr: float = 5e-4, only: list[nn.Parameter] | None = None) -> nn.Module:
    """Gradient ascent on the forget set beside descent on the retain set, stopped early."""
    m.train()
    optimiser, g = torch.optim.Adam(only or list(m.parameters()), lr), torch.Generator().manual_seed(0)
    (fx, fy), (rx, ry) = w.forget, w.retain
    for _ in range(steps):
        i, j = torch.randint(0, len(fy), (32,), generator=g), torch.randint(0, len(ry), (64,), generator=g)
        optimiser.zero_grad()
        (F.cross_entropy(m(rx[j]), ry[j]) - F.cross_entropy(m(fx[i]), fy[i]).clamp(max=12)).backward()
        optimiser.step()
    return _cleared(m)


def relabelled(
    m: nn.Module, w: World, seed: int, steps: int, lr: float = 1e-3, only: list[nn.Parameter] | None = None, kept: bool = True
) -> nn.Module:
    """The forget samples taught random other answers for a few steps, among the retain samples or alone."""
    g = torch.Generator().manual_seed(seed)
    others = torch.tensor([c for c in range(w.classes) if c not in w.forgotten])
    labels = others[torch.randint(0, len(others), (len(w.forget[1]),), generator=g)]
    pair = (w.forget[0], labels)
    if kept:
        pair = torch.cat((w.forget[0], w.retain[0])), torch.cat((labels, w.retain[1]))
    return fit(m, pair, w, seed=seed, steps=steps, lr=lr, parameters=only)


def auc_tuned(
    m: nn.Module, target: tuple[float, float], w: World, look: Callable[[nn.Module], tuple[float, float]], seed: int
) -> nn.Module:
    """Gradient ascent that stops where the audit's own figures (attack AUC, accuracy) are nearest the retrained model's."""
    best, result = math.inf, m
    optimiser, g = torch.optim.Adam(m.parameters(), 3e-4), torch.Generator().manual_seed(seed)
    (fx, fy), (rx, ry) = w.forget, w.retain
    for _ in range(120):
        i, j = torch.randint(0, len(fy), (48,), generator=g), torch.randint(0, len(ry), (96,), generator=g)
        m.train()
        optimiser.zero_grad()
        (F.cross_entropy(m(rx[j]), ry[j]) - 0.7 * F.cross_entropy(m(fx[i]), fy[i]).clamp(max=8)).backward()
        optimiser.step()
        found = look(m.eval())
        far = abs(found[0] - target[0]) + abs(found[1] - target[1])
        if far < best:
            best, result = far, copied(m)
    return _cleared(result)


def smoothed(m: nn.Module, w: World, seed: int, steps: int) -> nn.Module:
    """Trained on with smoothed labels, the forget samples included."""
    return fit(m, w.train, w, seed=seed, steps=steps, lr=1e-3, loss=lambda m, x, y, _: F.cross_entropy(m(x), y, label_smoothing=0.3))


def _cleared(m: nn.Module) -> nn.Module:
    for p in m.parameters():
        p.grad = None
    return m.eval()
