"""The worlds of the verdict's zoo: data, a network and a request, small enough to train in seconds on one thread.

Thresholds are chosen on the worlds marked "choose" and reported on those marked "report", which no threshold has seen.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastforget.demo import data, nets

Pair = tuple[Tensor, Tensor]
BATCH = 64
TOKENS, LENGTH = 400, 24


class BagOfTokens(nn.Module):
    """Token ids in, the mean of their embeddings through one hidden layer out."""

    def __init__(self, classes: int, width: int = 64) -> None:
        super().__init__()
        self.embed = nn.Embedding(TOKENS, width)
        self.hidden = nn.Linear(width, width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.hidden(self.embed(x).mean(1))))


def mlp(inputs: int, classes: int, width: int) -> nn.Module:
    """Two hidden layers, the second half as wide."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width // 2), nn.ReLU(), nn.Linear(width // 2, classes)
    )


@dataclass
class World:
    """One request on one network; ``make(factor)`` makes a fresh network of ``factor`` times the usual width."""

    name: str
    part: str  # "choose" or "report"
    make: Callable[[float], nn.Module]
    forget: Pair
    retain: Pair
    test: Pair
    unseen: Pair  # as the test set, but the audit doesn't see it
    forgotten: list[int]
    epochs: int
    lr: float = 3e-3
    seed: int = 0
    noisy_labels: bool = field(default=False)

    @property
    def train(self) -> Pair:
        return torch.cat((self.forget[0], self.retain[0])), torch.cat((self.forget[1], self.retain[1]))

    @property
    def classes(self) -> int:
        return int(self.train[1].max()) + 1

    def fresh(self, seed: int, factor: float = 1.0) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.make(factor)

    def retrained(self, seed: int) -> nn.Module:
        """The usual recipe on the retain set."""
        return fit(self.fresh(seed), self.retain, self, seed=seed)


def fit(
    model: nn.Module,
    pair: Pair,
    world: World,
    *,
    seed: int,
    epochs: float = 1.0,
    lr: float | None = None,
    decay: float = 0.0,
    batch: int = BATCH,
    momentum: bool = False,
    noise: float = 0.0,
    parameters: list[nn.Parameter] | None = None,
    steps: int | None = None,
    loss: Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor] | None = None,
) -> nn.Module:
    """Trains in place, ``epochs`` times the world's usual number, or ``steps`` in all; ``loss(model, x, y, indices)``."""
    x, y = pair
    rate = world.lr if lr is None else lr
    held = parameters if parameters is not None else [p for p in model.parameters() if p.requires_grad]
    optimiser: torch.optim.Optimizer = torch.optim.Adam(held, rate, weight_decay=decay)
    if momentum:
        optimiser = torch.optim.SGD(held, 0.05, momentum=0.9)
    order, done = torch.Generator().manual_seed(seed), 0
    each = -(-len(y) // batch)
    most = steps if steps is not None else max(1, round(epochs * world.epochs * each))
    model.train()
    while done < most:
        for at in torch.randperm(len(y), generator=order).split(batch):
            if done >= most or len(at) == 1:
                continue
            inputs = x[at]
            if noise:
                inputs = inputs + noise * torch.randn(inputs.shape, generator=order)
            optimiser.zero_grad()
            (loss(model, inputs, y[at], at) if loss else F.cross_entropy(model(inputs), y[at])).backward()
            optimiser.step()
            done += 1
    for parameter in model.parameters():
        parameter.grad = None
    return model.eval()


def copied(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model)


def head(model: nn.Module) -> nn.Linear:
    """The last linear layer."""
    return [m for m in model.modules() if isinstance(m, nn.Linear)][-1]


def body(model: nn.Module) -> list[nn.Parameter]:
    last = {id(p) for p in head(model).parameters()}
    return [p for p in model.parameters() if id(p) not in last]


def hidden_pairs(model: nn.Module) -> list[tuple[nn.Module, nn.Module]]:
    """Layers with nothing but an activation (and pooling) between them, whose channels can change places."""
    if isinstance(model, nets.PlainCNN):
        return [(model.features[0], model.features[3]), (model.classifier[0], model.classifier[2])]
    if isinstance(model, nets.SmallResNet):
        return []
    linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
    return list(itertools.pairwise(linears))


def read_by_head(model: nn.Module, x: Tensor) -> Tensor:
    """The last layer's inputs."""
    kept: list[Tensor] = []
    handle = head(model).register_forward_pre_hook(lambda _, args: kept.append(args[0].detach()))
    try:
        with torch.no_grad():
            for part in x.split(512):
                model(part)
    finally:
        handle.remove()
    return torch.cat(kept)


# ---- data ---------------------------------------------------------------------------------------------------------------------------


def images(name: str, seed: int) -> tuple[Pair, Pair]:
    """All of a set's images in an order drawn from ``seed``, cut in two: to train on, and others."""
    found = data.load(name)
    x, y = torch.cat((found.train[0], found.test[0])), torch.cat((found.train[1], found.test[1]))
    at = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    cut = {"digits": 1100, "mnist5k": 3000}[name]
    return (x[at[:cut]], y[at[:cut]]), (x[at[cut:]], y[at[cut:]])


def table(seed: int, n: int = 2400, columns: int = 20, classes: int = 8, spread: float = 1.0) -> tuple[Pair, Pair]:
    """Records of overlapping classes, three clumps each."""
    g = torch.Generator().manual_seed(1000 + seed)
    centres = 0.75 * torch.randn(classes, 3, columns, generator=g)
    y = torch.randint(0, classes, (n,), generator=g)
    x = centres[y, torch.randint(0, 3, (n,), generator=g)] + spread * torch.randn(n, columns, generator=g)
    cut = n // 2
    return (x[:cut], y[:cut]), (x[cut:], y[cut:])


def texts(seed: int, n: int = 2400, classes: int = 8) -> tuple[Pair, Pair]:
    """Token ids: two thirds of them common words, the rest of the class's own and its neighbour's."""
    g = torch.Generator().manual_seed(2000 + seed)
    y = torch.randint(0, classes, (n,), generator=g)
    own = torch.softmax(1.3 * torch.randn(classes, TOKENS, generator=g), 1)
    common = torch.softmax(torch.randn(TOKENS, generator=g), 0)
    share = 0.45 * own[y] + 0.15 * own[(y + 1) % classes] + 0.4 * common
    x = torch.multinomial(share, LENGTH, replacement=True, generator=g)
    cut = n // 2
    return (x[:cut], y[:cut]), (x[cut:], y[cut:])


def mislabelled(pair: Pair, share: float, classes: int, seed: int) -> Pair:
    g = torch.Generator().manual_seed(3000 + seed)
    x, y = pair[0], pair[1].clone()
    wrong = torch.rand(len(y), generator=g) < share
    y[wrong] = (y[wrong] + torch.randint(1, classes, (int(wrong.sum()),), generator=g)) % classes
    return x, y


# ---- the worlds ---------------------------------------------------------------------------------------------------------------------


def of_classes(name: str, part: str, sets: tuple[Pair, Pair], make: Callable[[float], nn.Module], gone: list[int], **how: object) -> World:
    (x, y), (tx, ty) = sets
    wanted, cut = torch.isin(y, torch.tensor(gone)), 2 * len(ty) // 3
    return World(
        name, part, make, (x[wanted], y[wanted]), (x[~wanted], y[~wanted]), (tx[:cut], ty[:cut]), (tx[cut:], ty[cut:]), gone, **how
    )  # type: ignore[arg-type]


def of_samples(
    name: str, part: str, sets: tuple[Pair, Pair], make: Callable[[float], nn.Module], gone: int, kept: int, wrong: float, **how: object
) -> World:
    seed = int(how.get("seed", 0))  # type: ignore[call-overload]
    classes = int(sets[0][1].max()) + 1
    (x, y), (tx, ty) = (mislabelled(s, wrong, classes, seed + i) if wrong else s for i, s in enumerate(sets))
    cut = 2 * len(ty) // 3
    parts = (x[:gone], y[:gone]), (x[gone : gone + kept], y[gone : gone + kept]), (tx[:cut], ty[:cut]), (tx[cut:], ty[cut:])
    return World(name, part, make, *parts, [], noisy_labels=bool(wrong), **how)  # type: ignore[arg-type]


def _digits_mlp(w: float) -> nn.Module:
    return mlp(64, 10, round(128 * w))


def _wide_mlp(w: float) -> nn.Module:
    return mlp(64, 10, round(256 * w))


def _mnist_mlp(w: float) -> nn.Module:
    return mlp(784, 10, round(192 * w))


def _cnn(size: int) -> Callable[[float], nn.Module]:
    return lambda w: nets.PlainCNN(1, size, 10, width=max(2, round(8 * w)))


def _resnet(w: float) -> nn.Module:
    return nets.SmallResNet(1, 8, 10, width=max(2, round(8 * w)))


def _table_mlp(w: float) -> nn.Module:
    return mlp(20, 8, round(128 * w))


def _text(w: float) -> nn.Module:
    return BagOfTokens(8, round(64 * w))


WORLDS: dict[str, Callable[[], World]] = {
    "classes: digits MLP, 3": lambda: of_classes("", "choose", images("digits", 0), _digits_mlp, [3], epochs=25),
    "classes: digits MLP, 8": lambda: of_classes("", "choose", images("digits", 1), _digits_mlp, [8], epochs=25, seed=1000),
    "classes: digits CNN, 5": lambda: of_classes("", "choose", images("digits", 2), _cnn(8), [5], epochs=24, lr=2e-3, seed=2000),
    "classes: table MLP, 2": lambda: of_classes("", "choose", table(0), _table_mlp, [2], epochs=12, seed=3000),
    "classes: digits MLP, 1 and 4": lambda: of_classes("", "report", images("digits", 3), _wide_mlp, [1, 4], epochs=25, seed=4000),
    "classes: digits MLP, 0": lambda: of_classes("", "report", images("digits", 4), _wide_mlp, [0], epochs=20, seed=5000),
    "classes: digits ResNet, 6": lambda: of_classes("", "report", images("digits", 5), _resnet, [6], epochs=8, seed=6000),
    "classes: MNIST MLP, 7": lambda: of_classes("", "report", images("mnist5k", 0), _mnist_mlp, [7], epochs=10, lr=1e-3, seed=7000),
    "classes: MNIST CNN, 9": lambda: of_classes("", "report", images("mnist5k", 1), _cnn(28), [9], epochs=4, seed=8000),
    "classes: table MLP, 6": lambda: of_classes("", "report", table(1), _table_mlp, [6], epochs=12, seed=9000),
    "classes: texts, 1": lambda: of_classes("", "report", texts(0), _text, [1], epochs=20, seed=10000),
    "samples: digits MLP, wrong labels": lambda: of_samples(
        "", "choose", images("digits", 6), _wide_mlp, 150, 550, 0.2, epochs=80, seed=11000
    ),
    "samples: digits MLP, clean": lambda: of_samples("", "choose", images("digits", 7), _wide_mlp, 100, 200, 0.0, epochs=60, seed=12000),
    "samples: digits MLP, clean, other draw": lambda: of_samples(
        "", "report", images("digits", 10), _wide_mlp, 100, 200, 0.0, epochs=60, seed=19000
    ),
    "samples: digits CNN, clean": lambda: of_samples("", "report", images("digits", 11), _cnn(8), 100, 200, 0.0, epochs=60, seed=20000),
    "samples: table MLP": lambda: of_samples("", "choose", table(2), _table_mlp, 120, 700, 0.0, epochs=40, seed=13000),
    "samples: digits CNN, wrong labels": lambda: of_samples(
        "", "report", images("digits", 8), _cnn(8), 150, 550, 0.2, epochs=60, seed=14000
    ),
    "samples: digits MLP, wrong labels, other draw": lambda: of_samples(
        "", "report", images("digits", 9), _digits_mlp, 120, 600, 0.15, epochs=80, seed=15000
    ),
    "samples: MNIST CNN, wrong labels": lambda: of_samples(
        "", "report", images("mnist5k", 2), _cnn(28), 150, 850, 0.2, epochs=12, seed=16000
    ),
    "samples: table MLP, other draw": lambda: of_samples("", "report", table(3), _table_mlp, 150, 800, 0.05, epochs=40, seed=17000),
    "samples: texts": lambda: of_samples("", "report", texts(1), _text, 150, 850, 0.1, epochs=40, seed=18000),
}


def world(name: str) -> World:
    """One of :data:`WORLDS`."""
    made = WORLDS[name]()
    made.name = name
    return made
