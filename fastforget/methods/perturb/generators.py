"""Forsaken's mask-gradient generators: what turns a gradient into the change of the weights (the mask gradient, delta).

The papers describe one trainable generator with an output as large as the model ("dense" here); the others are our readings of it that
fit models of any size. All of them learn from the same signal: delta changes the weights by -eta * delta, so the objective's derivative
by delta is -eta times the gradient at the changed weights, which the next iteration computes anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..._random import own_randomness
from ...ops import mask
from ..task import Task

DENSE_LIMIT = 2 * 2**30  # bytes of a dense generator with its optimiser state
# the dense generator must turn every weight's output round when the run goes over from forgetting to recovering
SHARED_LR, DENSE_LR = 1e-2, 1e-1
_CHUNK = 1 << 16  # coordinates at a time: bounds the activations of the shared net
_FLOOR = 1e-3  # of a tensor's scale: a zero bias must be able to move


class Generator(Protocol):
    """Applies one change to the weights, and learns from the gradient found there."""

    def apply(self, params: list[Tensor], grads: list[Tensor], context: Context) -> dict[str, float]: ...

    def learn(self, grads: list[Tensor]) -> None: ...


@dataclass
class Context:
    """What a generator may look at.

    Attributes:
        eta: the step size.
        threshold: of the l1 term.
        distance: the objective's, at the weights as they are.
        difference: P - V, the reference distribution minus that of the forget data.
        importance: for each tensor, mean |retain gradient| of each output neuron; empty without retain data.
    """

    eta: float
    threshold: float
    distance: float
    difference: Tensor
    importance: list[Tensor]


class Options(Protocol):
    """What a generator reads of :class:`fastforget.methods.Forsaken`."""

    l1: float
    hidden: int | None
    generator_lr: float | None


def rows(x: Tensor) -> Tensor:
    """The tensor with its output neurons as rows (a 0-d tensor is one neuron)."""
    return x.view(1) if x.dim() == 0 else x


def matrix(x: Tensor) -> Tensor:
    """The tensor as one row of numbers for each output neuron."""
    return rows(x).flatten(1) if x.dim() > 1 else rows(x)[:, None]


def scales(params: Sequence[Tensor]) -> list[float]:
    """Root mean square of each tensor, at least a thousandth."""
    stats = mask.neuron_stats([rows(p.detach()) for p in params])
    means = [total.sum() / max(p.numel(), 1) for total, p in zip(stats.sum_sq, params, strict=True)]
    return [max(float(m) ** 0.5, _FLOOR) for m in torch.stack(means).tolist()]


def relative(params: Sequence[Tensor], grads: Sequence[Tensor]) -> list[float]:
    """Scales every gradient, in place, to the root mean square of its weights; returns those. One step size then fits all layers."""
    weight = scales(params)
    total = mask.neuron_stats([rows(g) for g in grads]).sum_sq
    for g, w, s in zip(grads, weight, total, strict=True):
        norm = float((s.sum() / max(g.numel(), 1)).sqrt())
        g.mul_(w / norm if norm > 0 else 0.0)
    return weight


def _shrink(deltas: list[Tensor], threshold: float, weight: Sequence[float]) -> dict[str, float]:
    """The proximal step of the l1 term on the mask gradient."""
    shrunk = mask.soft_threshold_(deltas, [threshold * w for w in weight])
    return {"l1": float(shrunk.l1), "changed": float(shrunk.nnz) / sum(d.numel() for d in deltas)}


class Direct:
    """No network: proximal gradient descent on the whole change D = theta0 - theta, min dist(theta0 - D) + threshold * |D|_1."""

    def __init__(self, task: Task, params: list[Tensor], options: Options) -> None:
        assert task.original is not None
        given = dict(task.original.named_parameters())
        self.start = [given[name].detach() for name, p in task.model.named_parameters() if p.requires_grad]

    def apply(self, params: list[Tensor], grads: list[Tensor], context: Context) -> dict[str, float]:
        weight = relative(params, grads)
        for p, g, start in zip(params, grads, self.start, strict=True):
            g.mul_(context.eta).add_(start).sub_(p)  # D + eta * gradient
        figures = _shrink(grads, context.eta * context.threshold, weight)
        for p, d, start in zip(params, grads, self.start, strict=True):
            torch.sub(start, d, out=p)
        return figures

    def learn(self, grads: list[Tensor]) -> None:
        pass


def _linear(features: int, outputs: int) -> nn.Linear:
    """A layer of a generator: in float32 whatever the caller's default is."""
    return nn.Linear(features, outputs, dtype=torch.float32)


def _net(features: int, hidden: int, seed: int, device: torch.device) -> nn.Sequential:
    """A small net whose last layer starts at zero: factors start at one, so the first change is the gradient itself."""
    with own_randomness(seed):
        net = nn.Sequential(_linear(features, hidden), nn.ReLU(), _linear(hidden, 1))
    _zero_last(net)
    return net.to(device)


def _zero_last(net: nn.Sequential) -> Tensor:
    """Zeroes the last layer; returns its bias."""
    last = net[-1]
    assert isinstance(last, nn.Linear)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return last.bias


class Neuron:
    """One factor for each output neuron, from a net shared by all: delta[o, :] = s_o * gradient[o, :], s_o in (0, 2).

    A neuron's weight and bias have the same factor. The neuron mask of the paper's third version, as we read it.
    """

    def __init__(self, task: Task, params: list[Tensor], options: Options) -> None:
        names = [name for name, p in task.model.named_parameters() if p.requires_grad]
        self.l1 = options.l1
        keys = [(name.rpartition(".")[0], rows(p).shape[0]) for name, p in zip(names, params, strict=True)]
        order = list(dict.fromkeys(keys))
        self.group = [order.index(key) for key in keys]
        self.depth = [(i + 0.5) / len(order) for i in range(len(order))]
        self.net = _net(4, options.hidden or 16, task.seed, params[0].device)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=options.generator_lr or SHARED_LR)
        self.last: list[Tensor] | None = None

    def apply(self, params: list[Tensor], grads: list[Tensor], context: Context) -> dict[str, float]:
        weight = relative(params, grads)
        figures = _shrink(grads, context.threshold, weight)
        size = [m.detach() for m in mask.neuron_stats([rows(g) for g in grads]).mean_abs]
        self.features = [self._features(i, size, weight, context) for i in range(len(self.depth))]
        with torch.no_grad():
            factors = [2 * torch.sigmoid(self.net(f)[:, 0]) for f in self.features]
            # which neurons change is the generator's choice, how far the step size's: on average they keep their size
            mean = torch.cat(factors).mean().clamp_min(1e-6)
            factors = [f / mean for f in factors]
        mask.masked_sgd_(
            [rows(p) for p in params], [rows(g) for g in grads], [factors[k].to(torch.float32) for k in self.group], lr=context.eta
        )
        self.last, self.scale, self.penalty = grads, weight, self.l1 * context.eta
        return figures | {"factor": float(torch.cat(factors).mean())}

    def _features(self, group: int, size: list[Tensor], weight: list[float], context: Context) -> Tensor:
        """[neurons, 4]: size of its gradient and of its retain gradient (logarithms, relative to the layer), depth, distance."""
        first = self.group.index(group)
        own = (size[first] / weight[first]).clamp_min(1e-6).log()
        kept = torch.zeros_like(own)
        if context.importance:
            used = context.importance[first]
            kept = (used / used.mean().clamp_min(1e-12)).clamp_min(1e-6).log()
        flat = torch.ones_like(own)
        return torch.stack((own, kept, flat * self.depth[group], flat * context.distance), dim=1).float()

    def learn(self, grads: list[Tensor]) -> None:
        if self.last is None:
            return
        upstream = [torch.zeros(len(f), dtype=torch.float32, device=f.device) for f in self.features]
        for g, d, k, w in zip(grads, self.last, self.group, self.scale, strict=True):
            now, before = matrix(g), matrix(d)
            norm = (now.norm() * before.norm()).clamp_min(1e-12)
            upstream[k] += self.penalty * before.abs().mean(dim=1) / w - (now * before).sum(dim=1) / norm
        factors = 2 * torch.sigmoid(self.net(torch.cat(self.features))[:, 0])
        self.optimizer.zero_grad()
        factors.backward(torch.cat(upstream))
        self.optimizer.step()
        self.last = None


class Coordinate:
    """One factor for each weight, from a net shared by all: delta_i = s(gradient_i, theta_i, layer, distance) * gradient_i."""

    def __init__(self, task: Task, params: list[Tensor], options: Options) -> None:
        self.l1 = options.l1
        self.net = _net(5, options.hidden or 16, task.seed, params[0].device)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=options.generator_lr or SHARED_LR)
        self.last: list[Tensor] | None = None

    def _features(self, p: Tensor, g: Tensor, weight: float, depth: float, distance: float) -> Tensor:
        g, p = g / weight, p / weight
        flat = torch.ones_like(g)
        return torch.stack((g, g.abs().clamp_min(1e-6).log(), p, flat * depth, flat * distance), dim=1).float()

    def apply(self, params: list[Tensor], grads: list[Tensor], context: Context) -> dict[str, float]:
        weight = relative(params, grads)
        figures = _shrink(grads, context.threshold, weight)
        self.last, self.scale, self.distance, self.eta = grads, weight, context.distance, context.eta
        self.before = params  # read again by learn(): theta' = theta - eta * delta, and theta is near enough to it as a feature
        with torch.no_grad():
            for i, (p, g, w) in enumerate(zip(params, grads, weight, strict=True)):
                ordered = p.detach().contiguous()  # the parameter itself, unless its memory has another order (channels_last)
                for a, b in zip(ordered.view(-1).split(_CHUNK), g.view(-1).split(_CHUNK), strict=True):
                    factor = 2 * torch.sigmoid(self.net(self._features(a, b, w, i / len(params), context.distance))[:, 0])
                    a.sub_(context.eta * factor.to(b.dtype) * b)
                if not p.is_contiguous():
                    p.copy_(ordered)
        return figures

    def learn(self, grads: list[Tensor]) -> None:
        if self.last is None:
            return
        self.optimizer.zero_grad()
        for i, (p, now, before, w) in enumerate(zip(self.before, grads, self.last, self.scale, strict=True)):
            norm = (now.norm() * before.norm()).clamp_min(1e-12)
            pieces = zip(*(t.reshape(-1).split(_CHUNK) for t in (p.detach(), now, before)), strict=True)
            for a, n, b in pieces:
                factor = 2 * torch.sigmoid(self.net(self._features(a, b, w, i / len(grads), self.distance))[:, 0])
                upstream = self.l1 * self.eta * b.abs() / (w * before.numel()) - n * b / norm
                factor.backward(upstream.to(factor.dtype))
        self.optimizer.step()
        self.last = None


class Dense:
    """The generator as described: [theta, V] -> hidden -> ReLU -> |theta|. Its size is 2 * hidden * |theta|, so small nets only."""

    def __init__(self, task: Task, params: list[Tensor], options: Options) -> None:
        hidden, n, classes = options.hidden or 64, sum(p.numel() for p in params), task.outputs
        numbers = hidden * (n + classes + 1) + n * (hidden + 1)
        size = 4 * 4 * numbers  # weights, gradients and Adam's two moments
        if size > DENSE_LIMIT:
            raise ValueError(
                f"generator: 'dense' needs {size / 2**30:.1f} GiB for this model ({numbers:,} weights for {n:,} parameters, with its "
                f"optimiser); accepted is up to {DENSE_LIMIT / 2**30:.0f} GiB. Use generator='neuron', 'coordinate' or 'direct', or a "
                "smaller hidden="
            )
        with own_randomness(task.seed):
            self.net = nn.Sequential(_linear(n + classes, hidden), nn.ReLU(), _linear(hidden, n)).to(task.device)
        self.bias = _zero_last(self.net)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=options.generator_lr or DENSE_LR)
        self.l1 = options.l1
        self.out: Tensor | None = None

    def apply(self, params: list[Tensor], grads: list[Tensor], context: Context) -> dict[str, float]:
        weight = relative(params, grads)
        if self.out is None:
            self.learn_from(grads, weight)
        flat = torch.cat([(p / w).reshape(-1).float() for p, w in zip(params, weight, strict=True)])
        with torch.enable_grad():
            self.out = self.net(torch.cat((flat, context.difference)))
        deltas = [
            (o.detach() * w).view_as(p).to(p.dtype)
            for o, p, w in zip(self.out.split([p.numel() for p in params]), params, weight, strict=True)
        ]
        figures = _shrink(deltas, context.threshold, weight)
        for p, d in zip(params, deltas, strict=True):
            p.sub_(d, alpha=context.eta)
        self.scale, self.penalty = weight, self.l1 * context.eta
        return figures

    def learn_from(self, grads: list[Tensor], weight: list[float]) -> None:
        """Before the first change there is nothing to learn from but the gradient: the output's bias starts as it."""
        with torch.no_grad():
            self.bias.copy_(torch.cat([(g / w).reshape(-1).float() for g, w in zip(grads, weight, strict=True)]))

    def learn(self, grads: list[Tensor]) -> None:
        if self.out is None:
            return
        now = torch.cat([(g / g.norm().clamp_min(1e-12)).reshape(-1).float() for g in grads])
        self.optimizer.zero_grad()
        self.out.backward(self.penalty * self.out.detach().sign() / self.out.numel() - now)
        self.optimizer.step()


GENERATORS: dict[str, Any] = {"neuron": Neuron, "coordinate": Coordinate, "direct": Direct, "dense": Dense}
