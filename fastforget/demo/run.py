"""Train, retrain without the class, unlearn, audit, report: the package's main job on real images."""

from __future__ import annotations

import argparse
import copy
import io
import math
import os
import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from .._command import Parser, unusable
from .._files import write_json, write_whole
from .._text import visible
from ..auditing import audit
from ..methods import UNSIR, registry
from ..methods.task import Task
from ..methods.unsir.noise import Place, learn_noise
from . import contest
from .contest import MAIN, Entrant, Step
from .data import LOADERS, DataMissing, Images, load
from .nets import NETS, build
from .outcome import Outcome
from .train import train

# As many as pay in the CNN's test accuracy: fewer make a worse original, more make retraining look dear. On MNIST 5k it is 97.0,
# 97.4, 97.6, 97.7 and 97.7 % after 3, 6, 10, 12 and 20 epochs (means of three seeds), on Fashion-MNIST 87.4, 90.2, 91.1 and 92.2 % after
# 1, 3, 6 and 10 (one seed). MNIST, of the same size, gets as many as Fashion-MNIST.
EPOCHS = {"mnist5k": 10, "digits": 20, "fashion-mnist": 10, "mnist": 10, "cifar10": 6}
SMALL = ("mnist5k", "digits")


def parser() -> argparse.ArgumentParser:
    methods = registry.names()
    p = Parser(
        prog="python -m fastforget demo",
        description="Train a small network on real images, forget classes, audit it beside a retrained one, write a report.",
        epilog="Exit status: 0 the model forgot, 1 it did not, 2 the demonstration could not run.",
    )
    p.add_argument("--data", choices=tuple(LOADERS), default="mnist5k", help="default: %(default)s")
    p.add_argument("--root", type=Path, metavar="DIR", help="where the data's files lie")
    p.add_argument(
        "--method",
        choices=methods,
        default="auto",
        help="auto chooses by what is asked and given, and says why; none changes nothing: the negative control, ends with 1 "
        "(default: %(default)s)",
    )
    p.add_argument(
        "--beside",
        nargs="*",
        choices=[name for name in methods if name not in ("auto", "none")],
        metavar="METHOD",
        help="methods to run beside the chosen one, on the same original and the same sets; without a name none "
        f"(default: the others of {', '.join(contest.SIDE_BY_SIDE)}, so that three methods stand side by side)",
    )
    p.add_argument("--classes", type=int, nargs="+", default=[3], metavar="ID", help="to forget (default: 3)")
    p.add_argument("--net", choices=tuple(NETS), default="cnn", help="default: %(default)s")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--epochs", type=int, help="of training and retraining (default: by the data, as many as raise test accuracy)")
    p.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 …; auto takes a GPU where there is one")
    p.add_argument(
        "--threads",
        type=int,
        help=f"CPU threads (default: 1 for {' and '.join(SMALL)}, whose networks are so small that threads mostly "
        "wait for each other; else torch's own number)",
    )
    p.add_argument(
        "--out",
        type=Path,
        default=Path("report"),
        metavar="DIR",
        help="for report.html, receipt.json and .html, unlearned.pt (default: %(default)s)",
    )
    p.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON")
    p.add_argument("--quick", action="store_true", help="half the training epochs")
    p.add_argument("--no-progress", action="store_true", help="no progress bars")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    p = parser()
    args = p.parse_args(argv)
    _check(p, args)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        for folder in (args.out, *([args.json.parent] if args.json else [])):
            if not os.access(folder, os.W_OK):
                raise OSError(f"{folder} is not a folder that can be written")
        images = load(args.data, args.root)
        wrong = [c for c in args.classes if not 0 <= c < images.shape[2]]
        if wrong:
            p.error(f"--classes: {wrong[0]} is not a class of {images.name}; accepted are 0 to {images.shape[2] - 1}")
        for part, (_, labels) in (("training", images.train), ("test", images.test)):
            lacking = [c for c in args.classes if not bool((labels == c).any())]
            if lacking or bool(torch.isin(labels, torch.tensor(args.classes)).all()):
                what = f"no {part} image of class {lacking[0]}" if lacking else f"no {part} image of a class that stays"
                raise DataMissing(f"--data {args.data}: {images.source} holds {what}")
        with _threads(args.threads or (1 if args.data in SMALL else torch.get_num_threads())):
            return run(args, images)
    except (DataMissing, OSError) as error:
        return unusable("demo", error)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _check(p: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if len(set(args.classes)) != len(args.classes):
        p.error(f"--classes: {args.classes} names a class twice")
    if len(args.classes) > 8:
        p.error("--classes: at least two classes must stay")
    try:
        contest.usable([args.method, *(args.beside or ())])
    except (ImportError, TypeError, ValueError) as error:
        p.error(str(error))
    if args.epochs is not None and args.epochs < 1:
        p.error(f"--epochs: got {args.epochs}; accepted is 1 or more")
    if args.threads is not None and args.threads < 1:
        p.error(f"--threads: got {args.threads}; accepted is 1 or more")
    if not 0 <= args.seed < 2**63:
        p.error(f"--seed: got {args.seed}; accepted is 0 to 2**63 - 1")
    if args.device == "auto":
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=args.device)
    except (RuntimeError, AssertionError) as error:
        p.error(f"--device: {args.device} can't be used: {str(error).splitlines()[0]}")
    if args.epochs is None:
        args.epochs = max(1, EPOCHS[args.data] // (2 if args.quick else 1))


def run(args: argparse.Namespace, images: Images) -> int:
    """The demonstration itself, on checked arguments."""
    began = time.perf_counter()
    bars = not args.no_progress
    classes = sorted(args.classes)
    x, y = images.train
    gone = torch.isin(y, torch.tensor(classes))
    forget, retain = (x[gone], y[gone]), (x[~gone], y[~gone])

    batch_size = 64 if len(y) <= 10_000 else 128
    options = {"epochs": args.epochs, "seed": args.seed, "batch_size": batch_size, "progress": bars}
    original = build(args.net, *images.shape, seed=args.seed).to(args.device)
    retrained = copy.deepcopy(original)
    seconds = {
        "train": train(original, images.train, label="train the original", **options),
        "retrain": train(retrained, retain, label="retrain without the class", **options),
    }
    # what a method learns from mustn't measure it, so the same half measures all of them, whether they look at the other or not
    nonmember, test = _halves(images.test)
    entrants = contest.run(
        original, args.method, args.beside,
        classes=classes, forget=forget, retain=retain, nonmember=nonmember, test=test, seed=args.seed, progress=bars,
    )  # fmt: skip
    chosen = entrants[0]
    seconds["unlearn"] = chosen.seconds
    seconds |= {one.model: one.seconds for one in entrants[1:]}
    report = audit(
        {"original": original, **{one.model: one.result.model for one in entrants}, "retrained": retrained},
        forget=forget,
        retain=retain,
        test=test,
        controls=True,
        seed=args.seed,
        progress=bars,
    )
    timing = dict(seconds)
    seconds["audit"] = report.settings["seconds"]

    samples = {"train": args.epochs * len(y), "retrain": args.epochs * len(retain[1])}
    steps = _steps(entrants, seconds, samples)
    passes = samples | {"unlearn" if one is chosen else one.model: steps[one.model].passes for one in entrants}
    outcome = Outcome(args, images.name, report, entrants, steps, seconds, _facts(args, images, original, batch_size, entrants))
    page, receipt, weights = (args.out / name for name in ("report.html", "receipt.json", "unlearned.pt"))
    names, by = ", ".join(images.class_names[c] for c in classes), "" if chosen.method == "none" else f" by {chosen.method}"
    report.to_html(
        page,
        title=f"Forgetting {'class' if len(classes) == 1 else 'classes'} {names} of {images.name}{by}",
        about=MAIN,
        facts=outcome.facts,
        noise=_noise(args, images, original, entrants),
        timing=timing,
        passes=passes,
        class_names=images.class_names,
        images={"forget": forget[0]},
    )
    cost = {"seconds": seconds["retrain"], "passes": samples["retrain"]}
    facts = {**{name: outcome.facts[name] for name in ("data", "network", "training")}, "retraining": cost}
    outcome.audit.write_receipt(receipt, chosen.result, ids=gone.nonzero()[:, 0].tolist(), facts=facts)
    save_weights(weights, chosen.result.model)
    seconds["total"] = time.perf_counter() - began
    if args.json:
        write_json(args.json, outcome.to_dict())
    print(visible(outcome, keep="\n"))
    print(visible(f"report: {page}, receipt: {receipt}" + (f", figures: {args.json}" if args.json else "")))
    print(visible(f"python -m fastforget verify {shlex.quote(str(receipt))} --model {shlex.quote(str(weights))}"))
    return 0 if outcome.forgot else 1


def _steps(entrants: list[Entrant], seconds: dict[str, float], samples: dict[str, int]) -> dict[str, Step]:
    """Where each model came from; the speed of training itself is compared with nothing."""
    made = {
        one.model: Step(one.method, one.seconds, one.result.cost.passes, seconds["retrain"] / one.seconds if one.seconds > 0 else math.nan)
        for one in entrants
    }
    trained = {model: Step(step, seconds[step], samples[step]) for model, step in (("original", "train"), ("retrained", "retrain"))}
    return trained | made


def _facts(args: argparse.Namespace, images: Images, original: nn.Module, batch_size: int, entrants: list[Entrant]) -> dict[str, str]:
    """What the page, the receipt and the figures say about the run."""
    chosen, threads = entrants[0], torch.get_num_threads()
    result = chosen.result
    weights = result.receipt["weights_sha256"]
    return {
        "data": f"{images.name}: {len(images.train[1])} training and {len(images.test[1])} test images from {images.source}; half of the "
        "test images measures, the other half is given to the methods as unseen data",
        "network": f"{type(original).__name__}, {sum(w.numel() for w in original.parameters()):,} weights",
        "training": f"{args.epochs} epochs of Adam, batches of {batch_size}, seed {args.seed}; the "
        "retrained model starts from the same weights",
        "method": f"{chosen.method}, chosen by {args.method}: {chosen.reason}" if chosen.reason else chosen.method,
        **({"methods beside it": ", ".join(one.method for one in entrants[1:])} if len(entrants) > 1 else {}),
        **{f"method, {key}": str(value) for key, value in result.receipt.get("chosen", {}).items()},
        "method, weights before": weights["before"],
        "method, weights after": weights["after"],
        "device": f"{args.device}, {threads} thread{'s' if threads > 1 else ''}",
    }


def _halves(data: tuple[Tensor, Tensor]) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Every other sample of each class, and the rest."""
    x, y = data
    first = torch.zeros(len(y), dtype=torch.bool)
    for c in y.unique():
        first[(y == c).nonzero()[::2, 0]] = True
    return (x[first], y[first]), (x[~first], y[~first])


def _noise(args: argparse.Namespace, images: Images, original: nn.Module, entrants: list[Entrant], count: int = 12) -> dict[str, Tensor]:
    """The first of the noise images that UNSIR learned, where it ran: the same seed and model give them again."""
    result = next((one.result for one in entrants if one.method == "unsir"), None)
    if result is None:
        return {}
    options = UNSIR(noise_batch=count, l2=result.receipt["chosen"]["l2"])
    classes = sorted(args.classes)
    work, device = copy.deepcopy(original), torch.device(args.device)
    task = Task(work, lambda model, inputs: model(inputs), classes, images.shape[2], device, args.seed, False, None, None, None)
    learned = learn_noise(options, task, classes, Place(images.train[0][0]))
    pairs = zip(classes, learned.images.split(count), strict=True)
    return {f"class {images.class_names[c]}": part.cpu() for c, part in pairs}


def save_weights(path: Path, model: nn.Module) -> None:
    """The model's state_dict, whole or not at all (OSError)."""
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    write_whole(path, buffer.getvalue())
