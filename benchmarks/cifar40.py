"""ResNet-20, 40 classes of CIFAR-100, and the requests to forget: what the nets under ``benchmarks/models`` are made of.

The images lie in a folder of lossless webp files of 32x32 tiles (``train_*.webp``, ``test_*.webp``, read row by row) with ``labels.npz``
(``train``, ``test``, ``names``). They are those of https://www.cs.toronto.edu/~kriz/cifar.html (CIFAR-100, Krizhevsky 2009): the first 40
fine labels by name.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastforget.auditing.measure.passes import own_randomness
from fastforget.demo.data import DataMissing
from fastforget.ops.noise import random_bits

CLASSES, SIZE = 40, 32
# of all CIFAR-100 training images, as commonly published
MEAN, DEVIATION = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)


class Block(nn.Module):
    """Two 3x3 convolutions with batch norm; the shortcut has no weights (option A: every second pixel, zeros for the new channels)."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.stride, self.new = stride, outside - inside

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)), inplace=True)))
        if self.stride != 1 or self.new:
            before = self.new // 2
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.new - before))
        return F.relu(y + x)


class ResNet20(nn.Module):
    """The CIFAR net of He et al. 2016 (arXiv 1512.03385, section 4.2) with n = 3: 16, 32 and 64 channels, 0.27 M weights."""

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        widths = [16, *[16] * 3, *[32] * 3, *[64] * 3]
        self.blocks = nn.Sequential(*(Block(inside, outside, 1 if inside == outside else 2) for inside, outside in pairwise(widths)))
        self.head = nn.Linear(64, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(F.relu(self.bn(self.conv(x)), inplace=True)).mean((2, 3)))


def resnet20(seed: int) -> ResNet20:
    """A net with the initial weights of a seed; the caller's random state stays as it was."""
    with own_randomness(seed):
        return ResNet20()


@dataclass(frozen=True)
class Request:
    """What is to be forgotten: whole classes, or ``samples`` training samples drawn with ``seed``; nothing for the original."""

    classes: tuple[int, ...] = ()
    samples: int = 0
    seed: int = 0

    def split(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Indices (forget, retain), both ascending, of the training set with these labels."""
        forget = torch.isin(labels, torch.tensor(self.classes, dtype=labels.dtype))
        if self.samples:
            forget[words(len(labels), self.seed, stream=0).argsort(stable=True)[: self.samples]] = True
        return forget.nonzero().flatten(), (~forget).nonzero().flatten()

    def facts(self) -> dict[str, Any]:
        return {**asdict(self), "classes": list(self.classes)}


REQUESTS = {
    "original": Request(),
    "class": Request(classes=(2,)),  # baby: the one of people, and hard to tell from boy and girl
    "classes": Request(classes=(4, 14, 24, 34)),  # beaver, butterfly, cockroach, fox
    "random": Request(samples=500, seed=0),
}


def words(n: int, seed: int, stream: int, step: int = 0) -> Tensor:
    """int64[n] in 0 to 2**32 - 1: the Philox words of sample 0 to n - 1, whatever the order in which samples are used."""
    return random_bits(n, seed=seed, stream=stream, step=step).long() & 0xFFFFFFFF


@dataclass
class Tiles:
    """Images uint8[n, 32, 32, 3] with labels int64[n], and the classes' names."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    names: list[str]

    def digest(self) -> str:
        """sha256 over pixels and labels, training set first: independent of how the files compress them."""
        content = hashlib.sha256()
        for part in (*self.train, *self.test):
            content.update(part.to(torch.uint8).contiguous().numpy().data)
        return content.hexdigest()

    def floats(self) -> Tiles:
        """Images as a net takes them: float32[n, 3, 32, 32], normalised."""
        (x, y), (xt, yt) = self.train, self.test
        return replace(self, train=(normalised(x).contiguous(), y), test=(normalised(xt).contiguous(), yt))


def normalised(images: Tensor) -> Tensor:
    """uint8[n, 32, 32, 3] as float32[n, 3, 32, 32] in channels_last memory."""
    scale = torch.tensor(DEVIATION) * 255
    return ((images - torch.tensor(MEAN) * 255) / scale).permute(0, 3, 1, 2)


def read(root: str | Path) -> Tiles:
    """Reads the folder.

    Raises:
        DataMissing: Pillow isn't installed, files are missing, or their numbers don't agree.
    """
    folder = Path(root)
    try:
        with np.load(folder / "labels.npz") as held:
            labels = {name: held[name].astype(np.int64) for name in ("train", "test")}
            names = [str(name) for name in held["names"]]
    except (OSError, ValueError, KeyError) as error:
        raise DataMissing(
            f"--root {root}: labels.npz with train, test and names can't be read there ({error}). Give the folder that holds it and the "
            "images as train_*.webp and test_*.webp"
        ) from error
    if len(names) != CLASSES or any(y.min(initial=0) < 0 or y.max(initial=0) >= CLASSES for y in labels.values()):
        raise DataMissing(f"--root {root}: labels.npz has {len(names)} names; expected {CLASSES}, and labels from 0 to {CLASSES - 1}")
    parts = {name: (torch.from_numpy(_images(folder, name, len(y))), torch.from_numpy(y)) for name, y in labels.items()}
    return Tiles(parts["train"], parts["test"], names)


def _images(folder: Path, name: str, expected: int) -> np.ndarray:
    try:
        from PIL import Image
    except ImportError as error:
        raise DataMissing("the images are webp files, and Pillow, which reads them, isn't installed: pip install pillow") from error
    tiles = [np.empty((0, SIZE, SIZE, 3), np.uint8)]
    for path in sorted(folder.glob(f"{name}_*.webp")):
        try:
            with Image.open(path) as image:
                sheet = np.asarray(image.convert("RGB"))
        except OSError as error:
            raise DataMissing(f"{path} can't be read as an image: {error}") from error
        rows, columns = sheet.shape[0] // SIZE, sheet.shape[1] // SIZE
        if sheet.shape != (rows * SIZE, columns * SIZE, 3):
            raise DataMissing(f"{path} is {sheet.shape[1]}x{sheet.shape[0]}, which isn't a sheet of {SIZE}x{SIZE} tiles")
        tiles.append(sheet.reshape(rows, SIZE, columns, SIZE, 3).transpose(0, 2, 1, 3, 4).reshape(-1, SIZE, SIZE, 3))
    found = np.concatenate(tiles)
    if len(found) != expected:
        raise DataMissing(f"{folder}: {name}_*.webp hold {len(found)} images, labels.npz has {expected} labels for them")
    return found
