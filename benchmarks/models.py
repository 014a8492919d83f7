"""Trains the nets under benchmarks/models: ResNet-20 on 40 classes of CIFAR-100, and retrained without what a request names.

    python -m fastforget._bench.models --root FOLDER                    all twelve; a net that is there already is skipped
    python -m fastforget._bench.models --root FOLDER --only class-0     one of them
    python -m fastforget._bench.models --list                           what is there, with its accuracy

A run that was killed goes on from its last whole epoch and ends with the same bytes (same torch, same kind of processor, same threads). In
experiments, ``models.load("class-0")`` gives the net with its request.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import itertools
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastforget import _safetensors
from fastforget._files import write_whole
from fastforget._progress import progress
from fastforget._weights import evaluating
from fastforget.demo.data import DataMissing

from . import machine
from .cifar40 import REQUESTS, SIZE, Request, Tiles, normalised, read, resnet20, words

FOLDER = Path(__file__).resolve().parent / "models"
# What experiments need first comes first: one net of each request; then two more retrained nets where a spread is judged; then the rest.
ORDER = (
    *("original-0", "class-0", "classes-0", "random-0"),
    *("class-1", "random-1", "class-2", "random-2"),
    *("original-1", "classes-1", "original-2", "classes-2"),
)
# float32 is for processors without bfloat16, which are fifteen times as slow with it
PRECISIONS: dict[str, tuple[str, torch.dtype | None]] = {
    "bfloat16": ("bfloat16 autocast over float32 weights, channels_last", torch.bfloat16),
    "float32": ("float32, channels_last", None),
}
RECIPE: dict[str, Any] = {
    "net": "ResNet-20, option A shortcuts",
    "optimizer": "SGD",
    "momentum": 0.9,
    "nesterov": True,
    "weight_decay": 5e-4,
    "schedule": "one cycle: linear to the peak, then a cosine to zero, by step",
    "peak": 0.2,
    "warmup": 0.15,
    "batch": 128,
    "augmentation": "crop after padding with 4 black pixels, horizontal flip",
    "padding": 4,
    "precision": PRECISIONS["bfloat16"][0],
    "epochs": 30,
}
EXAMINED = 500  # images at once where accuracy is measured


class Loaded(NamedTuple):
    """A net in eval mode, what it was asked to forget (retrained without), the seed of its training, and its receipt."""

    net: nn.Module
    request: Request
    seed: int
    receipt: dict[str, Any]


def load(name: str, folder: str | Path = FOLDER) -> Loaded:
    """A trained net by its name, ``"original-0"`` say.

    Raises:
        FileNotFoundError: it isn't there; the message says what is.
        ValueError: the weights aren't those of the receipt.
    """
    weights, receipt = _paths(name, Path(folder))
    if not (weights.exists() and receipt.exists()):
        there = ", ".join(n for n in ORDER if _paths(n, Path(folder))[1].exists()) or "none"
        raise FileNotFoundError(f"{name}: no such net in {folder} (there: {there}); benchmarks/models.py trains them")
    facts = json.loads(receipt.read_text())
    if hashlib.sha256(weights.read_bytes()).hexdigest() != facts["weights_sha256"]:
        raise ValueError(f"{weights} doesn't hold the weights of its receipt: its sha256 is another one. Copy or train it again")
    net = resnet20(0)
    net.load_state_dict(_safetensors.load(weights)[0])
    asked = facts["request"]
    return Loaded(net.eval(), Request(tuple(asked["classes"]), asked["samples"], asked["seed"]), facts["seed"], facts)


def _paths(name: str, folder: Path) -> tuple[Path, Path]:
    return folder / f"{name}.safetensors", folder / f"{name}.json"


def rate(step: int, steps: int, recipe: dict[str, Any]) -> float:
    """The learning rate of a step, counted from 0."""
    at, rise = (step + 1) / steps, recipe["warmup"]
    part = at / rise if at < rise else 0.5 + 0.5 * math.cos(math.pi * (at - rise) / (1 - rise))
    return recipe["peak"] * part


def batches(data: tuple[Tensor, Tensor], samples: Tensor, seed: int, epoch: int, recipe: dict[str, Any]) -> Iterator[tuple[Tensor, Tensor]]:
    """An epoch over ``samples`` of the padded images. Order, crop and flip of a sample hang on seed, epoch and sample alone."""
    padded, labels = data
    order = samples[words(len(labels), seed, stream=1, step=epoch)[samples].argsort(stable=True)]
    drawn, places, along = words(len(labels), seed, stream=2, step=epoch), 2 * recipe["padding"] + 1, torch.arange(SIZE)
    for chosen in order.split(recipe["batch"]):
        word = drawn[chosen]
        # twelve bits each for the two shifts, one for the flip
        rows = ((word & 0xFFF) * places >> 12)[:, None] + along
        columns = ((word >> 12 & 0xFFF) * places >> 12)[:, None] + torch.where((word >> 24 & 1).bool()[:, None], along.flip(0), along)
        yield normalised(padded[chosen[:, None, None], rows[:, :, None], columns[:, None, :]]), labels[chosen]


class Training:
    """A net on its way, and what a checkpoint holds of it."""

    def __init__(self, data: Tiles, request: Request, seed: int, recipe: dict[str, Any], checkpoint: Path) -> None:
        images, labels = data.train
        self.seed, self.recipe, self.checkpoint = seed, recipe, checkpoint
        self.identity = json.dumps({"data": data.digest(), "request": request.facts(), "seed": seed, "recipe": recipe}, sort_keys=True)
        self.padded = F.pad(images, (0, 0, *[recipe["padding"]] * 4)), labels
        self.samples = request.split(labels)[1]
        self.net = resnet20(seed).to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.SGD(
            self.net.parameters(),
            lr=recipe["peak"],
            momentum=recipe["momentum"],
            nesterov=recipe["nesterov"],
            weight_decay=recipe["weight_decay"],
        )
        self.curve: list[tuple[float, float]] = []  # (mean loss, accuracy) of each epoch's batches as they were trained on
        self.dtype = dict(PRECISIONS.values())[recipe["precision"]]  # of autocast; None: float32
        self.seconds = 0.0  # of this process's processor time
        if checkpoint.exists():
            self._resume()

    def _resume(self) -> None:
        state = torch.load(self.checkpoint, weights_only=True)
        if state["identity"] != self.identity:
            raise DataMissing(f"{self.checkpoint} is of other data or another recipe. Remove it, or ask for what it was made with")
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.curve, self.seconds = [tuple(point) for point in state["curve"]], state["seconds"]

    def save(self) -> None:
        buffer = io.BytesIO()
        state = {"identity": self.identity, "net": self.net.state_dict(), "optimizer": self.optimizer.state_dict()}
        torch.save({**state, "curve": self.curve, "seconds": self.seconds}, buffer)
        write_whole(self.checkpoint, buffer.getvalue())

    def epoch(self) -> None:
        """One epoch, and the checkpoint after it."""
        began = time.process_time()
        losses, hits = zip(*self.steps(), strict=True)
        self.curve.append((sum(losses) / len(self.samples), sum(hits) / len(self.samples)))
        self.seconds += time.process_time() - began
        self.save()

    def steps(self) -> Iterator[tuple[float, int]]:
        """The next epoch's steps as they are made: each one's summed loss, and how many of its samples were right."""
        epoch, per_epoch = len(self.curve), self.per_epoch
        self.net.train()
        for i, (x, y) in enumerate(batches(self.padded, self.samples, self.seed, epoch, self.recipe)):
            for group in self.optimizer.param_groups:
                group["lr"] = rate(epoch * per_epoch + i, self.recipe["epochs"] * per_epoch, self.recipe)
            with torch.autocast("cpu", self.dtype, enabled=self.dtype is not None):
                logits = self.net(x)
            loss = F.cross_entropy(logits.float(), y)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            yield loss.item() * len(y), int((logits.argmax(1) == y).sum())

    @property
    def per_epoch(self) -> int:
        return -(-len(self.samples) // self.recipe["batch"])


def training_seconds(data: Tiles, request: Request, steps: int = 10) -> float:
    """Thread seconds of a whole training without what the request names, by a few of its steps, here and now: in bfloat16 or float32,
    whichever is faster."""
    seconds = []
    for precision, _ in PRECISIONS.values():
        run = Training(data, request, 0, RECIPE | {"precision": precision}, FOLDER / ".none.checkpoint")
        made = run.steps()
        next(made)  # the first one sets things up
        began = time.thread_time()
        for _ in itertools.islice(made, steps):
            pass
        seconds.append((time.thread_time() - began) / steps * run.per_epoch * RECIPE["epochs"])
    return min(seconds)


def _correct(net: nn.Module, pair: tuple[Tensor, Tensor]) -> Tensor:
    x, y = pair
    with evaluating(net):
        return torch.cat([net(normalised(a)).argmax(1) == b for a, b in zip(x.split(EXAMINED), y.split(EXAMINED), strict=True)])


def accuracies(net: nn.Module, data: Tiles, requests: dict[str, Request]) -> dict[str, Any]:
    """In float32 and eval mode: over all, and over what each request keeps and forgets (test samples only where classes are forgotten)."""

    def mean(hits: Tensor) -> float:
        return round(hits.double().mean().item(), 5)

    train, test = _correct(net, data.train), _correct(net, data.test)
    figures: dict[str, Any] = {"train": mean(train), "test": mean(test)}
    for name, request in requests.items():
        forget, retain = request.split(data.train[1])
        row = {"train_kept": mean(train[retain]), "train_forgotten": mean(train[forget])}
        if request.classes:
            gone, kept = Request(request.classes).split(data.test[1])
            row |= {"test_kept": mean(test[kept]), "test_forgotten": mean(test[gone])}
        figures[name] = row
    return figures


def make(name: str, data: Tiles, recipe: dict[str, Any], folder: Path, say: Any) -> None:
    """Trains one net to its end, from its checkpoint if there is one, and writes weights and receipt; ``say`` gets a line per epoch."""
    kind, seed = name.rsplit("-", 1)
    request, (weights, receipt) = REQUESTS[kind], _paths(name, folder)
    checkpoint = folder / f".{name}.checkpoint"
    run = Training(data, request, int(seed), recipe, checkpoint)
    with progress(recipe["epochs"], name) as bar:
        bar.done = len(run.curve)
        while len(run.curve) < recipe["epochs"]:
            began = time.monotonic()
            run.epoch()
            loss, hits = run.curve[-1]
            bar.step(1, f"loss {loss:.3f}, {hits:.1%} of the batches right")
            say(f"{name}: epoch {len(run.curve)}/{recipe['epochs']}, loss {loss:.3f}, {hits:.1%}, {time.monotonic() - began:.0f} s")
    facts = machine.facts()
    judged = {k: r for k, r in REQUESTS.items() if k != "original" and kind in (k, "original")}
    _safetensors.save(weights, run.net.state_dict(), {"name": name})
    result = {
        "name": name,
        "request": request.facts(),
        "seed": int(seed),
        "accuracy": accuracies(run.net, data, judged),
        "data": {"sha256": data.digest(), "train": len(data.train[1]), "test": len(data.test[1]), "trained_on": len(run.samples)},
        "recipe": recipe,
        "torch": torch.__version__,
        "machine": {key: facts[key] for key in ("cpu", "cores", "system", "python", "torch_cpu")} | {"threads": torch.get_num_threads()},
        "date": facts["date"],
        "processor_seconds": round(run.seconds, 1),
        "weights_sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "curve": [[round(value, 4) for value in point] for point in run.curve],
    }
    write_whole(receipt, json.dumps(result, indent=1) + "\n")
    checkpoint.unlink(missing_ok=True)
    print(f"{name}: {_line(result)}", flush=True)


def _line(receipt: dict[str, Any]) -> str:
    accuracy = receipt["accuracy"]
    parts = [f"test {accuracy['test']:.1%}, train {accuracy['train']:.1%}"]
    for name, row in accuracy.items():
        if isinstance(row, dict):
            parts.append(f"{name}: " + ", ".join(f"{key.replace('_', ' ')} {value:.1%}" for key, value in row.items()))
    return "; ".join(parts) + f" ({receipt['processor_seconds']:.0f} s)"


def _there(name: str, folder: Path, recipe: dict[str, Any]) -> bool:
    receipt = _paths(name, folder)[1]
    if not receipt.exists():
        return False
    if json.loads(receipt.read_text())["recipe"] | {"precision": recipe["precision"]} != recipe:
        raise DataMissing(f"{receipt} is of another recipe. Remove it to train that net again, or give another --out")
    return True


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser("python -m fastforget._bench.models", description=__doc__.split("\n\n")[0])
    p.add_argument("--root", type=Path, help="folder with the images as webp tiles and labels.npz")
    p.add_argument("--only", nargs="+", choices=ORDER, default=list(ORDER), metavar="NAME", help=f"of {', '.join(ORDER)}")
    p.add_argument("--epochs", type=int, default=RECIPE["epochs"])
    p.add_argument("--precision", choices=PRECISIONS, default="bfloat16")
    p.add_argument("--out", type=Path, default=FOLDER, help="folder of weights, receipts and checkpoints")
    p.add_argument("--threads", type=int, default=1, help="torch threads; another number gives other bytes")
    p.add_argument("--list", action="store_true", help="only show what is there")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Trains what isn't there yet, in order."""
    args = parser().parse_args(argv)
    if args.list:
        for name in ORDER:
            receipt = _paths(name, args.out)[1]
            print(f"{name}: {_line(json.loads(receipt.read_text())) if receipt.exists() else 'not there'}")
        return 0
    torch.set_num_threads(args.threads)
    recipe = RECIPE | {"epochs": args.epochs, "precision": PRECISIONS[args.precision][0]}
    try:
        if args.root is None:
            raise DataMissing("--root FOLDER is needed: the folder with labels.npz, train_*.webp and test_*.webp")
        data = read(args.root)
        args.out.mkdir(parents=True, exist_ok=True)
        for name in (n for n in ORDER if n in args.only):
            if not _there(name, args.out, recipe):
                # a terminal has the bar
                make(name, data, recipe, args.out, (lambda _: None) if sys.stderr.isatty() else lambda line: print(line, flush=True))
    except DataMissing as error:
        print(f"python -m fastforget._bench.models: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
